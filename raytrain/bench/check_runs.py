"""Of a check: too little memory and the advice that follows, and a run that stops and goes on. No ray."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from raytrain import storage
from raytrain.bench.check_numbers import finished, need_gpu
from raytrain.bench.verdicts import Found, Setting, Verdict, tried
from raytrain.checkpoints.history import read_epochs
from raytrain.checkpoints.layout import STEP
from raytrain.config import LAYER_GROUPS, Recipe
from raytrain.data.dataset import open_dataset
from raytrain.errors import ResourceError
from raytrain.models import networks
from raytrain.tiles.feeds import CacheFeed, Source
from raytrain.training import execution, optim
from raytrain.training.hooks import Hooks
from raytrain.training.loop import fit
from raytrain.training.step import Stepper

# Of the GPU's memory.
SHARE = 0.05
OUTPUTS, STORED = 5, 16
LARGEST_BATCH = 2**16
# Of a loss, between a run that was stopped and one that was not: cuDNN's sums have no fixed order.
ROUNDING = 0.02
# Reserved by torch after the second unfrozen stage, against the first.
GROWTH = 1.25


def memory(setting: Setting) -> Iterator[Verdict]:
    """With a twentieth of the memory: a step too large, and whether what its error advises runs."""
    for how in ("eager", "graphs"):
        yield tried("memory", f"the advised accumulate, {how}", partial(_advice, setting, how))


def _advice(setting: Setting, how: str) -> Found:
    with limited(setting):
        batch, advice = _too_large(setting, how)
        advised = re.fullmatch(r"--train.accumulate (\d+)", advice)
        if advised is None:
            return False, f"{batch} tiles do not fit, advised is: {advice}", {"batch": batch}
        passes = int(advised[1])
        _steps(setting, how, batch, passes, 3)
    return (
        True,
        f"{batch} tiles do not fit in one pass, in {passes} they do",
        {"batch": batch, "accumulate": passes},
    )


@contextmanager
def limited(setting: Setting) -> Iterator[None]:
    """Takes most of the GPU's memory away."""
    need_gpu(setting)
    torch.cuda.set_per_process_memory_fraction(SHARE)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def _too_large(setting: Setting, how: str) -> tuple[int, str]:
    """The first doubling of tiles that does not fit into one pass, and what its error advises.

    Not the error itself: its traceback would hold the network.
    """
    batch = setting.batch
    while batch <= LARGEST_BATCH:
        try:
            _steps(setting, how, batch, 1, 1)
        except ResourceError as error:
            return batch, error.fix
        batch *= 2
    raise RuntimeError(f"{batch // 2} tiles fit into {SHARE:.0%} of the GPU's memory")


def _steps(setting: Setting, how: str, batch: int, passes: int, steps: int) -> None:
    """Some steps of a new network on random tiles."""
    device = torch.device(setting.device)
    precision = "bf16" if setting.on_gpu else "fp32"
    recipe = setting.recipe(batch_size=batch, accumulate=passes, precision=precision)
    model = networks.build(setting.arch, OUTPUTS, 0.5)
    networks.to_device(model, device)
    if setting.on_gpu:
        shape = (-(-batch // passes), 3, setting.size, setting.size)
        execution.set_execution(model, how, shape, precision, device, lambda line: None)
    optimizer = optim.make_optimizer(model, [1e-3] * LAYER_GROUPS, 0.01)
    pixels = np.random.default_rng(0).integers(
        0, 256, (STORED, setting.size, setting.size, 3), dtype=np.uint8
    )
    targets = torch.zeros(STORED, OUTPUTS, dtype=torch.uint8, device=device)
    source = Source(CacheFeed(pixels, device), targets)
    step = Stepper(recipe, 1, model.train(), optimizer, source, setting.worker)
    for number in range(steps):
        step(np.arange(batch) % STORED, 1, number).values.tolist()


def resume(setting: Setting) -> Iterator[Verdict]:
    """A run that is stopped within an epoch and goes on, and the memory after each of four stages."""
    yield tried("resume", "stopped within an epoch", lambda: _resumed(setting))
    yield tried("resume", "memory after each stage", lambda: _memory_of_stages(setting))


def _resumed(setting: Setting) -> Found:
    recipe = setting.recipe(
        [{"epochs": 2}, {"epochs": 1}], execution="graphs" if setting.on_gpu else "eager"
    )
    with tempfile.TemporaryDirectory(prefix="raytrain-check-") as directory:
        whole, stopped = f"{directory}/whole", f"{directory}/stopped"
        _fit(setting, recipe, whole, Hooks())
        first = _fit(setting, recipe, stopped, Hooks(stop=lambda: "the check"))
        if not storage.name_of(first["checkpoint"]).startswith(STEP):
            return (
                False,
                f"the run did not stop within an epoch, but with {first['checkpoint']}",
                {},
            )
        _fit(setting, recipe, stopped, Hooks())
        one, other = ([row.train_loss for row in read_epochs(run)] for run in (whole, stopped))
    if len(one) != len(other):
        return False, f"{len(other)} epochs instead of {len(one)}", {}
    difference = max(abs(a - b) / a for a, b in zip(one, other, strict=True))
    detail = f"losses of {len(one)} epochs differ by {difference:.1e} of theirs, at most {ROUNDING:.0e} is right"
    return difference <= ROUNDING, detail, {"difference": difference}


def _fit(setting: Setting, recipe: Recipe, run: str, hooks: Hooks) -> dict[str, Any]:
    found: dict[str, Any] = {}
    finished(
        lambda: found.update(fit(recipe, open_dataset(setting.dataset), run, setting.worker, hooks))
    )
    return found


def _memory_of_stages(setting: Setting) -> Found:
    need_gpu(setting)
    stages = [{"freeze": number % 2 == 0} for number in range(4)]
    recipe, reserved = setting.recipe(stages, execution="graphs", precision="bf16"), list[float]()

    def note(number: int, model: torch.nn.Module) -> None:
        reserved.append(torch.cuda.memory_reserved() / 1e9)

    with tempfile.TemporaryDirectory(prefix="raytrain-check-") as run:
        _fit(setting, recipe, run, Hooks(on_stage_end=note))
    well = reserved[3] <= GROWTH * reserved[1]
    return (
        well,
        ", ".join(f"{value:.2f}" for value in reserved) + " GB reserved",
        {"reserved_gb": reserved},
    )
