"""Of a check: the bench itself, what cuDNN's trials and torch's stream warnings cost, and a schedule. No ray."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raytrain.bench.blocks import Side, alternate, ratios
from raytrain.bench.check_numbers import need_gpu
from raytrain.bench.schedule import NEEDED
from raytrain.bench.sides import Ceiling, Loop
from raytrain.bench.verdicts import FAIL, SKIPPED, Found, Setting, Verdict, tried
from raytrain.data.dataset import open_dataset

PAIRS, STEPS = 3, 40
ARCH, SIZE, BATCH = "resnet50", 128, 64
# Kineto sets CUPTI up anew for each profile, which crashes beside graphs: https://github.com/pytorch/pytorch/issues/75504
ENVIRONMENT = {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}


def speed(setting: Setting) -> Iterator[Verdict]:
    """What a choice that is off is worth, then the bench's figures of one stage."""
    yield tried("speed", "cudnn.benchmark", lambda: _in_turn(setting, "eager", _set_benchmark))
    yield tried(
        "speed", "warnings of another stream", lambda: _in_turn(setting, "graphs", _set_warnings)
    )
    yield from benched("speed", setting.speed)


def schedule(setting: Setting) -> Iterator[Verdict]:
    """A schedule, whole, from the command to the last file."""
    if importlib.util.find_spec(NEEDED) is None:
        yield Verdict("schedule", "the bench", SKIPPED, f"the package {NEEDED} is not installed")
        return
    yield from benched("schedule", setting.schedule)


def _set_benchmark(on: bool) -> None:
    torch.backends.cudnn.benchmark = on


def _set_warnings(on: bool) -> None:
    choose = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if choose is not None:
        choose(on)


class _Set:
    """A side that sets something before each of its blocks, and takes it back."""

    def __init__(self, side: Side, choose: Callable[[bool], None]) -> None:
        self.side, self.choose = side, choose

    def block(self, steps: int) -> float:
        """See `Side`."""
        self.choose(True)
        try:
            return self.side.block(steps)
        finally:
            self.choose(False)

    def close(self) -> None:
        """The side itself is closed by who made it."""


def _in_turn(setting: Setting, how: str, choose: Callable[[bool], None]) -> Found:
    """Rates of a step with a setting and without, in turn; whichever is faster, this passes."""
    need_gpu(setting)
    return rates_in_turn(replace(setting, arch=ARCH, size=SIZE, batch=BATCH), how, choose, STEPS)


def rates_in_turn(setting: Setting, how: str, choose: Callable[[bool], None], steps: int) -> Found:
    """As `_in_turn`, on any device."""
    recipe = setting.recipe(execution=how, precision="bf16" if setting.on_gpu else "fp32")
    with (
        tempfile.TemporaryDirectory(prefix="raytrain-check-") as run,
        closing(Loop(recipe, open_dataset(setting.dataset), 1, setting.worker, run)) as loop,
    ):
        off = Ceiling.of(loop)
        choose(False)
        sides: dict[str, Side] = {"off": off, "on": _Set(off, choose)}
        rates = alternate(sides, pairs=PAIRS, steps=steps)
    gains = ratios(rates["on"], rates["off"])
    detail = f"on / off {sorted(gains)[len(gains) // 2]:.3f} ({min(gains):.3f} to {max(gains):.3f})"
    return True, detail, {"on": rates["on"], "off": rates["off"]}


def benched(part: str, words: Sequence[str]) -> Iterator[Verdict]:
    """Runs the bench with some words, and gives a verdict for each of its figures."""
    with tempfile.TemporaryDirectory(prefix="raytrain-check-") as directory:
        file = Path(directory) / "bench.json"
        command = [sys.executable, "-u", "-m", "raytrain.bench", *words, "--json", str(file)]
        done = subprocess.run(command, env=os.environ | ENVIRONMENT, stdin=subprocess.DEVNULL)
        if done.returncode:
            yield Verdict(
                part,
                "the bench",
                FAIL,
                f"it ended with exit code {done.returncode}; what it said stands above",
            )
            return
        for figure in json.loads(file.read_text())["figures"]:
            detail = f"{figure['label']}: {figure['median']:.4g} {figure['unit']}".rstrip()
            yield tried(part, figure["name"], partial(_noted, detail, figure))


def _noted(detail: str, figure: dict[str, Any]) -> Found:
    return True, detail, figure
