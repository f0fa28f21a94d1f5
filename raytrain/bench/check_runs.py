"""Parts of the check: too little GPU memory, and runs that stop and resume. No Ray."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from raytrain import registry, storage
from raytrain.bench.check_common import temporary_directory, whole_run
from raytrain.bench.verdicts import Found, Setting, Verdict, need_gpu, tried
from raytrain.checkpoints.history import read_epochs
from raytrain.checkpoints.layout import STEP
from raytrain.config import LAYER_GROUPS
from raytrain.errors import ResourceError
from raytrain.models import networks
from raytrain.tiles.feeds import CacheFeed, Source
from raytrain.training import execution, optim
from raytrain.training.services import Hooks
from raytrain.training.state import Metrics
from raytrain.training.step import Stepper
from raytrain.training.trained import Trained

# The share of the GPU's memory that remains: a step that is too large for it is still quick.
SHARE = 0.05
# Logits of the network, and tiles that all batches are made of.
OUTPUTS = 5
STORED = 16
LARGEST_BATCH = 2**16
# Limit of the relative difference of a loss between a run that was stopped and one that was not:
# the sums of cuDNN have no fixed order.
ROUNDING = 0.02
# Limit of the memory that torch reserves in the second unfrozen stage, as a multiple of the first.
GROWTH = 1.25


def memory(setting: Setting) -> Iterator[Verdict]:
    """Tries a step that is too large for the memory, and then what its error message advises."""
    for how in ("eager", "graphs"):
        yield tried("memory", f"the advised accumulate, {how}", partial(_advice, setting, how))


def _advice(setting: Setting, how: str) -> Found:
    with limited(setting):
        batch, advice = _too_large(setting, how)
        advised = re.fullmatch(r"--train.accumulate (\d+)", advice)
        if advised is None:
            detail = f"{batch} tiles do not fit, advised is: {advice}"
            return Found(False, detail, {"batch": batch})
        passes = int(advised[1])
        # More steps than one: the optimiser takes its memory in the first.
        _train(setting, how, batch, passes, steps=3)
    detail = f"{batch} tiles do not fit in one pass, in {passes} they do"
    return Found(True, detail, {"batch": batch, "accumulate": passes})


@contextmanager
def limited(setting: Setting) -> Iterator[None]:
    """Takes most of the GPU's memory away from this process as long as the context lasts.

    Raises:
        Skip: the check runs on a CPU.
    """
    need_gpu(setting)
    torch.cuda.set_per_process_memory_fraction(SHARE)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def _too_large(setting: Setting, how: str) -> tuple[int, str]:
    """The first power-of-two multiple of the batch that does not fit, and the advice of its error.

    Raises:
        RuntimeError: everything fits.
    """
    batch = setting.batch
    while batch <= LARGEST_BATCH:
        try:
            _train(setting, how, batch, passes=1, steps=1)
        except ResourceError as error:
            # Not the error itself: its traceback would keep the network in memory.
            return batch, error.fix
        batch *= 2
    raise RuntimeError(f"{batch // 2} tiles fit into {SHARE:.0%} of the GPU's memory")


def _train(setting: Setting, how: str, batch: int, passes: int, steps: int) -> None:
    """Trains some steps of a new network on random tiles.

    Args:
        setting: of the check.
        how: execution of the network; on a CPU always eager.
        batch: tiles of a global batch.
        passes: number of passes that the gradient of a batch is accumulated over.
        steps: number of steps.

    Raises:
        ResourceError: they do not fit into the memory.
    """
    step = _stepper(setting, how, batch, passes)
    # The same few tiles over and over, so that the tiles themselves take no memory.
    rows = np.arange(batch) % STORED
    for number in range(steps):
        outcome = step(rows, 1, number)
        # Waits for the step, whose error would otherwise come in a later one.
        outcome.values.tolist()


def _stepper(setting: Setting, how: str, batch: int, passes: int) -> Stepper:
    device = torch.device(setting.device)
    precision = setting.precision
    recipe = setting.recipe(batch_size=batch, accumulate=passes, precision=precision)
    model = networks.build(setting.arch, OUTPUTS, dropout=0.5)
    networks.to_device(model, device)
    if setting.on_gpu:
        # Tiles of the largest pass: batch / passes, rounded up.
        tiles = -(-batch // passes)
        shape = (tiles, 3, setting.size, setting.size)
        execution.set_execution(model, how, shape, precision, device)
    optimizer = optim.make_optimizer(model, [1e-3] * LAYER_GROUPS, 0.01)
    pixels = np.random.default_rng(0).integers(
        0, 256, (STORED, setting.size, setting.size, 3), dtype=np.uint8
    )
    targets = torch.zeros(STORED, OUTPUTS, dtype=torch.uint8, device=device)
    source = Source(CacheFeed(pixels, device), targets)
    trained = Trained(model.train(), optimizer)
    loss = registry.training(registry.DEFAULT).batch_loss(recipe.train)
    return Stepper(recipe, 1, trained, source, loss, setting.worker)


def resume(setting: Setting) -> Iterator[Verdict]:
    """Tries a run that is stopped within an epoch and resumed, and the memory after each stage."""
    yield tried("resume", "stopped within an epoch", partial(_resumed, setting))
    yield tried("resume", "memory after each stage", partial(_memory_of_stages, setting))


def _resumed(setting: Setting) -> Found:
    """Compares the losses of a run that was stopped and resumed to those of one that was not."""
    stages = [{"epochs": 2}, {"epochs": 1}]
    recipe = setting.recipe(stages, execution=setting.execution("graphs"))
    with temporary_directory() as directory:
        whole = f"{directory}/whole"
        stopped = f"{directory}/stopped"
        whole_run(setting, recipe, whole, Hooks())
        first = whole_run(setting, recipe, stopped, Hooks(stop=_stop_at_once))
        if not storage.name_of(first["checkpoint"]).startswith(STEP):
            detail = f"the run did not stop within an epoch, but with {first['checkpoint']}"
            return Found(False, detail, {})
        whole_run(setting, recipe, stopped, Hooks())
        right = _losses(whole)
        found = _losses(stopped)
    if len(right) != len(found):
        return Found(False, f"{len(found)} epochs instead of {len(right)}", {})
    differences = [abs(a - b) / a for a, b in zip(right, found, strict=True)]
    difference = max(differences)
    detail = (
        f"losses of {len(right)} epochs differ by {difference:.1e} of theirs, "
        f"at most {ROUNDING:.0e} is right"
    )
    return Found(difference <= ROUNDING, detail, {"difference": difference})


def _stop_at_once() -> str:
    """Answers the question between two steps whether to stop: yes, and this is the reason."""
    return "the check"


def _losses(run: str) -> list[float]:
    """The training loss of each epoch of a run."""
    return [row.train_loss for row in read_epochs(run)]


def _memory_of_stages(setting: Setting) -> Found:
    """Compares the memory after two unfrozen stages: the graphs of old stages must be freed."""
    need_gpu(setting)
    stages = [{"freeze": number % 2 == 0, "epochs": 1} for number in range(4)]
    recipe = setting.recipe(stages, execution="graphs", precision="bf16")
    reserved: list[float] = []

    def note(metrics: Metrics) -> None:
        # A stage has one epoch.
        reserved.append(torch.cuda.memory_reserved() / 1e9)

    with temporary_directory() as run:
        whole_run(setting, recipe, run, Hooks(report=note))
    # The second and the fourth stage are unfrozen.
    well = reserved[3] <= GROWTH * reserved[1]
    gigabytes = ", ".join(f"{value:.2f}" for value in reserved)
    return Found(well, f"{gigabytes} GB reserved", {"reserved_gb": reserved})
