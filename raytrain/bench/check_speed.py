"""Parts of the check: what settings of torch cost, the bench itself, and a schedule. No Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain.bench.blocks import Side, alternate, ratios
from raytrain.bench.check_common import temporary_directory
from raytrain.bench.schedule import NEEDED, can_write_checkpoints
from raytrain.bench.sides import Ceiling, Loop
from raytrain.bench.verdicts import FAIL, SKIPPED, Found, Setting, Verdict, need_gpu, tried
from raytrain.data.dataset import open_dataset

# Rounds, and steps of a block in a round.
PAIRS = 3
STEPS = 40
# What the settings of torch are measured on.
ARCH = "resnet50"
SIZE = 128
BATCH = 64
# Otherwise Kineto, torch's profiler, sets CUPTI up anew for each profile, which crashes with CUDA
# graphs: https://github.com/pytorch/pytorch/issues/75504
ENVIRONMENT = {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}
# Switches a setting of torch on or off.
Switch = Callable[[bool], None]


def speed(setting: Setting) -> Iterator[Verdict]:
    """Measures two settings that are off by default, and runs the bench for one stage."""
    benchmark = partial(_on_and_off, setting, "eager", _set_benchmark)
    yield tried("speed", "cudnn.benchmark", benchmark)
    warnings = partial(_on_and_off, setting, "graphs", _set_warnings)
    yield tried("speed", "warnings of another stream", warnings)
    yield from benched("speed", setting.speed)


def schedule(setting: Setting) -> Iterator[Verdict]:
    """Runs a whole schedule, from its command to its last file."""
    if not can_write_checkpoints():
        yield Verdict("schedule", "the bench", SKIPPED, f"the package {NEEDED} is not installed")
        return
    yield from benched("schedule", setting.schedule)


def _set_benchmark(on: bool) -> None:
    torch.backends.cudnn.benchmark = on


def _set_warnings(on: bool) -> None:
    # Older releases of torch have no such warnings.
    choose = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if choose is not None:
        choose(on)


class _SwitchedOn:
    """A side that switches a setting on for each of its blocks and off afterwards."""

    def __init__(self, side: Side, switch: Switch) -> None:
        self.side = side
        self.switch = switch

    def block(self, steps: int) -> float:
        """See `Side.block`."""
        self.switch(True)
        try:
            return self.side.block(steps)
        finally:
            self.switch(False)

    def close(self) -> None:
        """Does nothing: the wrapped side belongs to whoever made it."""


def _on_and_off(setting: Setting, how: str, switch: Switch) -> Found:
    """Compares the rates of a step with a setting on and off, on a GPU."""
    need_gpu(setting)
    return rates_in_turn(replace(setting, arch=ARCH, size=SIZE, batch=BATCH), how, switch, STEPS)


def rates_in_turn(setting: Setting, how: str, switch: Switch, steps: int) -> Found:
    """Compares the rates of a step with a setting on and off, on any device.

    Whichever is faster, all is well: the rates are for people to judge.

    Args:
        setting: of the check.
        how: execution of the network.
        switch: switches the setting on or off.
        steps: of a block.
    """
    recipe = setting.recipe(execution=how, precision=setting.precision)
    dataset = open_dataset(setting.dataset)
    with (
        temporary_directory() as run,
        closing(Loop(recipe, dataset, 1, setting.worker, run)) as loop,
    ):
        off = Ceiling.of(loop)
        switch(False)
        # Both sides share the network, so nothing but the setting differs.
        sides: dict[str, Side] = {"off": off, "on": _SwitchedOn(off, switch)}
        rates = alternate(sides, pairs=PAIRS, steps=steps)
    gains = ratios(rates["on"], rates["off"])
    detail = f"on / off {np.median(gains):.3f} ({min(gains):.3f} to {max(gains):.3f})"
    return Found(True, detail, {"on": rates["on"], "off": rates["off"]})


def benched(part: str, arguments: Sequence[str]) -> Iterator[Verdict]:
    """Runs `python -m raytrain.bench` and gives a verdict for each of its figures.

    Args:
        part: of the check.
        arguments: of the command.
    """
    with temporary_directory() as directory:
        file = Path(directory) / "bench.json"
        program = [sys.executable, "-u", "-m", "raytrain.bench"]
        done = subprocess.run(
            [*program, *arguments, "--json", str(file)],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            detail = f"it ended with exit code {done.returncode}; its own message is printed above"
            yield Verdict(part, "the bench", FAIL, detail)
            return
        for figure in json.loads(file.read_text())["figures"]:
            yield tried(part, figure["name"], partial(_of_figure, figure))


def _of_figure(figure: dict[str, Any]) -> Found:
    """A figure has no right value, so all is well where it was measured."""
    detail = f"{figure['label']}: {figure['median']:.4g} {figure['unit']}"
    return Found(True, detail.rstrip(), figure)
