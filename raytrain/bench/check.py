"""`python -m raytrain.bench --check` tries on a GPU what no CPU can show, within 8 minutes. No Ray.

Each part runs in a process of its own (`python -m raytrain.bench.check PART SETTING`) with a time
limit, so a part that crashes or hangs does not affect the others. Each thing that is tried gives
one verdict, printed as a line.
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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from raytrain.bench import check_feeds, check_group, check_numbers, check_runs, check_speed
from raytrain.bench.figures import machine
from raytrain.bench.generate import workplace
from raytrain.bench.verdicts import DETAIL_LENGTH, FAIL, SKIPPED, Part, Setting, Verdict
from raytrain.errors import ResourceError

logger = logging.getLogger(__name__)


# Seconds for all parts together.
WHOLE_S = 480.0
# A process needs about this long to start; with less time left a part is not begun.
LEAST_S = 8.0
# Number of the generated tiles, and their side in pixels.
TILES = 2000
SIDE = 128
# How a line of a part's process begins that contains a verdict.
MARK = "verdict "
# Last lines that are shown of a process that did not end as it should.
SHOWN_LINES = 12
# Arguments of `python -m raytrain.bench` in the parts of these names.
SPEED = "--tiles 8000 --arch resnet50 --stage 128:64 --epochs 20 --only train --pairs 3 --steps 40"
SCHEDULE = "--schedule --tiles 3000 --arch resnet50 --epochs 2 --execution graphs"


@dataclass(frozen=True)
class Limited:
    """A part and the seconds that it may take, the start of its process included."""

    run: Part
    limit_s: float


# In the order in which they run: first what takes little time and what the others rely on.
PARTS: Mapping[str, Limited] = {
    "versions": Limited(check_numbers.versions, 25),
    "numbers": Limited(check_numbers.numbers, 70),
    "waits": Limited(check_feeds.waits, 40),
    "feeds": Limited(check_feeds.feeds, 40),
    "memory": Limited(check_runs.memory, 40),
    "processes": Limited(check_group.processes, 70),
    "resume": Limited(check_runs.resume, 45),
    "speed": Limited(check_speed.speed, 240),
    # Whatever time is left.
    "schedule": Limited(check_speed.schedule, WHOLE_S),
}


def check() -> dict[str, Any]:
    """Runs all parts on this machine's GPU.

    Returns:
        What is written as JSON; see `document`.

    Raises:
        ResourceError: there is no GPU that torch can use.
    """
    if not torch.cuda.is_available():
        raise ResourceError(
            f"torch {torch.__version__} sees no GPU here",
            "--check tries what only a GPU can show",
            "on a machine with a GPU: python -m raytrain.bench --check; "
            "nvidia-smi shows whether its driver runs",
        )
    began = time.monotonic()
    with workplace(None, TILES, SIDE) as dataset:
        setting = Setting(
            dataset.path, speed=tuple(SPEED.split()), schedule=tuple(SCHEDULE.split())
        )
        verdicts = run_parts(setting, began + WHOLE_S)
    return document(verdicts, time.monotonic() - began)


def document(verdicts: list[Verdict], seconds: float) -> dict[str, Any]:
    """The machine, the seconds that all took, the number of each outcome, and all verdicts."""
    outcomes = [verdict.outcome for verdict in verdicts]
    counts = {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
    return {
        "machine": machine(),
        "seconds": round(seconds, 1),
        "outcomes": counts,
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def run_parts(setting: Setting, end: float, parts: Mapping[str, Limited] = PARTS) -> list[Verdict]:
    """Runs parts one after the other.

    Args:
        setting: what they are tried with.
        end: moment of the monotonic clock at which they must have ended. Parts for which no time
            is left are skipped, with a verdict that says so.
        parts: by name.
    """
    verdicts: list[Verdict] = []
    for name, part in parts.items():
        limit_s = min(part.limit_s, end - time.monotonic())
        if limit_s < LEAST_S:
            detail = f"no time is left of {WHOLE_S:.0f} s"
            skipped = Verdict(name, "all of it", SKIPPED, detail)
            logger.info(str(skipped))
            verdicts.append(skipped)
        else:
            verdicts += run_part(name, setting, limit_s)
    return verdicts


def run_part(name: str, setting: Setting, limit_s: float) -> list[Verdict]:
    """Runs one part in a process of its own. At its limit all that it has started is ended."""
    program = [sys.executable, "-u", "-m", "raytrain.bench.check"]
    verdicts: list[Verdict] = []
    other_lines: list[str] = []
    with subprocess.Popen(
        [*program, name, json.dumps(asdict(setting))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Other programs may print bytes that are not UTF-8, such as a driver's messages.
        errors="replace",
        # A group of its own, so that its children can be ended together with it.
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        with _time_limit(process, limit_s) as late:
            _read_verdicts(process.stdout, verdicts, other_lines)
    if late.is_set():
        detail = f"its limit of {limit_s:.0f} s was reached"
        failure = Verdict(name, "the rest of it", SKIPPED, detail)
    elif process.returncode != 0:
        failure = _failed(name, process.returncode, other_lines)
    else:
        return verdicts
    for line in other_lines[-SHOWN_LINES:]:
        logger.info(f"  {line}")
    logger.info(str(failure))
    return [*verdicts, failure]


@contextmanager
def _time_limit(process: subprocess.Popen[str], seconds: float) -> Iterator[threading.Event]:
    """Ends a process and its children after some seconds, or where the context is left by an error.

    Gives an event that is set if the time was up.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield late
    except BaseException:
        # On Ctrl-C too: leaving `Popen` waits for the process, which would go on until its limit.
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()


def _read_verdicts(lines: Iterable[str], verdicts: list[Verdict], other_lines: list[str]) -> None:
    """Logs verdicts as they come, and appends them to one list and all other lines to another."""
    for line in lines:
        if line.startswith(MARK):
            verdict = Verdict.from_json(line.removeprefix(MARK))
            logger.info(str(verdict))
            verdicts.append(verdict)
        else:
            other_lines.append(line.rstrip())


def _failed(name: str, code: int, lines: list[str]) -> Verdict:
    """The verdict about a process that failed, with the last line that it printed."""
    last = "it printed nothing"
    if lines:
        last = lines[-1]
    return Verdict(name, "its process", FAIL, f"exit code {code}: {last}"[:DETAIL_LENGTH])


def main(name: str, settings: str) -> None:
    """Runs in the process of a part: prints a line for each verdict as soon as it is known.

    Args:
        name: of the part.
        settings: fields of a `Setting` as JSON.
    """
    setting = Setting(**json.loads(settings))
    for verdict in PARTS[name].run(setting):
        # At once: what was found before the limit counts.
        print(f"{MARK}{verdict.to_json()}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
