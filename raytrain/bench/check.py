"""`python -m raytrain.bench --check`: what no CPU can show, tried on a GPU within 8 minutes, a verdict a line. No ray.

Each part is a process of its own (`python -m raytrain.bench.check PART SETTING`), with a limit: what a part breaks or
hangs in does not take the others along.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from raytrain.bench import check_feeds, check_group, check_numbers, check_runs, check_speed
from raytrain.bench.figures import machine
from raytrain.bench.generate import workplace
from raytrain.bench.verdicts import FAIL, SKIPPED, Part, Setting, Verdict
from raytrain.errors import ResourceError

logger = logging.getLogger(__name__)


WHOLE_S = 480.0
# Less than a process needs to begin.
LEAST_S = 8.0
TILES, SIDE = 2000, 128
MARK = "verdict "
SHOWN_LINES = 12
SPEED = "--tiles 8000 --arch resnet50 --stage 128:64 --epochs 20 --only train --pairs 3 --steps 40"
SCHEDULE = "--schedule --tiles 3000 --arch resnet50 --epochs 2 --execution graphs"


@dataclass(frozen=True)
class Limited:
    """A part and the seconds it may take, the start of its process included."""

    run: Part
    limit_s: float


PARTS: Mapping[str, Limited] = {
    "versions": Limited(check_numbers.versions, 25),
    "numbers": Limited(check_numbers.numbers, 70),
    "waits": Limited(check_feeds.waits, 40),
    "feeds": Limited(check_feeds.feeds, 40),
    "memory": Limited(check_runs.memory, 40),
    "processes": Limited(check_group.processes, 70),
    "resume": Limited(check_runs.resume, 45),
    "speed": Limited(check_speed.speed, 240),
    "schedule": Limited(check_speed.schedule, WHOLE_S),
}


def check() -> dict[str, Any]:
    """Tries all parts on this machine's GPU. Returns what is written as JSON.

    Raises:
        ResourceError: there is no GPU that torch can use.
    """
    if not torch.cuda.is_available():
        raise ResourceError(
            f"torch {torch.__version__} sees no GPU here",
            "what --check tries exists on a GPU alone",
            "on a machine with a GPU: python -m raytrain.bench --check; nvidia-smi shows whether its driver runs",
        )
    began = time.monotonic()
    with workplace(None, TILES, SIDE) as dataset:
        setting = Setting(
            dataset.path, speed=tuple(SPEED.split()), schedule=tuple(SCHEDULE.split())
        )
        found = run_parts(setting, began + WHOLE_S)
    return document(found, time.monotonic() - began)


def document(found: list[Verdict], seconds: float) -> dict[str, Any]:
    """Machine, time, how many of which outcome, and all verdicts."""
    outcomes = [verdict.outcome for verdict in found]
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    verdicts = [asdict(verdict) for verdict in found]
    return {
        "machine": machine(),
        "seconds": round(seconds, 1),
        "outcomes": counts,
        "verdicts": verdicts,
    }


def run_parts(setting: Setting, end: float, parts: Mapping[str, Limited] = PARTS) -> list[Verdict]:
    """Runs parts one after the other until a moment of the monotonic clock; what finds no time is skipped, and said."""
    found = list[Verdict]()
    for name, part in parts.items():
        limit = min(part.limit_s, end - time.monotonic())
        if limit < LEAST_S:
            verdict = Verdict(name, "all of it", SKIPPED, f"no time is left of {WHOLE_S:.0f} s")
            logger.info(str(verdict))
            found.append(verdict)
            continue
        found += run_part(name, setting, limit)
    return found


def run_part(name: str, setting: Setting, limit: float) -> list[Verdict]:
    """Runs one part in a process of its own, ended at its limit with all that it has started."""
    words = [sys.executable, "-u", "-m", "raytrain.bench.check", name, json.dumps(asdict(setting))]
    found, lines, late = list[Verdict](), list[str](), threading.Event()
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:

        def stop() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, stop)
        timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(MARK):
                    found.append(Verdict.from_json(line.removeprefix(MARK)))
                    logger.info(str(found[-1]))
                else:
                    lines.append(line.rstrip())
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
    verdict = _end(name, late.is_set(), process.returncode, limit, lines)
    if verdict is not None:
        for line in lines[-SHOWN_LINES:]:
            logger.info(f"  {line}")
        logger.info(str(verdict))
        found.append(verdict)
    return found


def _end(name: str, late: bool, code: int, limit: float, lines: list[str]) -> Verdict | None:
    """The verdict of a process that did not end as it should."""
    if late:
        return Verdict(name, "the rest of it", SKIPPED, f"its limit of {limit:.0f} s was reached")
    if code:
        return Verdict(
            name,
            "its process",
            FAIL,
            f"exit code {code}: {lines[-1] if lines else 'it said nothing'}"[:400],
        )
    return None


def main(name: str, settings: str) -> None:
    """What the process of a part does: prints a line for each verdict as it is found."""
    for verdict in PARTS[name].run(Setting(**json.loads(settings))):
        print(f"{MARK}{verdict.to_json()}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
