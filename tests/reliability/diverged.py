"""R17: a value that is not finite, in any step: once, the run recovers; always, exit code 6; no checkpoint holds it."""

from functools import partial
from pathlib import Path

import torch
from batches import Batch, batches_seen
from figures import Case, Checks, Figure, Outcome
from sentences import flaw_of
from workshop import TRAIN, dataset, recipe

from raytrain.checkpoints import reading
from raytrain.data.dataset import open_dataset
from raytrain.errors import DivergedError
from raytrain.log import collected
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker

STEPS, BATCH = TRAIN // 8, 8
# (stage, step of its epoch from 0): the first of all, one in the middle, the last of an epoch.
PLACES = {
    "the first step": (1, 0),
    "a step in the middle": (2, STEPS // 2),
    "the last step of an epoch": (3, STEPS - 1),
}


def poisoned(where: str, value: float, often: bool, folder: Path) -> Outcome:
    """Training with such a target, once or whenever that step comes."""
    path, checks, met = PLACES[where], Checks(), []

    def poison(batch: Batch) -> None:
        at = (batch.stage, batch.number)
        if batch.part == "train" and at == path and (often or not met):
            met.append(at)
            batch.tensors["target"][0, 0] = value

    settings = recipe(
        dataset(folder / "data", 64), (32, 64), epochs=1, batch_size=BATCH, save_every_s=0.0
    )
    what = f"{value} in {where}{' every time' if often else ''}"
    try:
        with collected() as lines, batches_seen(poison):
            fit(
                settings,
                open_dataset(settings.dataset),
                str(folder / "run"),
                Worker(),
                Hooks(),
                backoff=True,
            )
        # A label that is not finite can be left out only by stepping over it, which nobody promises.
        checks.add(not often, f"{what}: trained to the end")
        checks.add(
            any("half the learning rates" in line for line in lines),
            f"{what}: nobody said how it went on",
        )
    except DivergedError as error:
        checks.add(often, f"{what}: not recovered: {error}")
        checks.add(not flaw_of(error), flaw_of(error))
    except Exception as error:
        checks.add(False, f"{what}: {type(error).__name__}: {error}")
    checks.add(bool(met), f"{what}: never came")
    found = [reading.read(str(path)) for path in (folder / "run" / "checkpoints").glob("[!.]*")]
    checks.add(bool(found) or path == (1, 0), f"{what}: no checkpoint to look at")
    checks.add(_all_finite(found), f"{what}: a checkpoint holds values that are not finite")
    return checks.outcome()


def _all_finite(found: list[reading.Checkpoint]) -> bool:
    return all(_finite(c.files) and _tensors_finite(c.train_state()) for c in found)


def _finite(files: dict[str, bytes]) -> bool:
    import safetensors.torch

    states = [
        safetensors.torch.load(content)
        for name, content in files.items()
        if name.endswith(".safetensors")
    ]
    return all(bool(value.isfinite().all()) for state in states for value in state.values())


def _tensors_finite(state: object) -> bool:
    if isinstance(state, torch.Tensor):
        return bool(state.isfinite().all())
    inner = (
        state.values()
        if isinstance(state, dict)
        else state
        if isinstance(state, list | tuple)
        else ()
    )
    return all(map(_tensors_finite, inner))


FIGURES = [
    Figure(
        "R17",
        "a loss that is not finite: recovered where once, exit code 6 where always, in no checkpoint",
        "all",
        [
            Case(
                f"{value} in {where} {'always' if often else 'once'}",
                partial(poisoned, where, value, often),
                (where, often) == ("a step in the middle", True),
            )
            for where in PLACES
            for value, often in ((float("nan"), False), (float("nan"), True), (float("inf"), True))
        ],
        lambda outcomes: f"{sum(o.passed == o.of for o in outcomes)}/{len(outcomes)}",
    ),
]
