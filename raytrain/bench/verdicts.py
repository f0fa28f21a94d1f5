"""What a check of a GPU finds, one verdict a line, and what its parts are tried with. No Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch

from raytrain.config import Data, Model, Recipe, Stage, Train
from raytrain.worker import Worker

# Outcomes of a verdict.
PASS = "PASS"
FAIL = "FAIL"
SKIPPED = "SKIPPED"
NEEDS_GPU = "needs a GPU"
# Large enough that a wrong step shows in the losses after a few steps.
LEARNING_RATE = 0.01
# No checkpoint falls into a check by the clock.
NEVER_S = 9999.0
# Details of a verdict are cut to this number of characters.
DETAIL_LENGTH = 400
# Which section of a recipe a setting belongs to; all others belong to `train`.
MODEL_FIELDS = ("dropout", "batch_norm")
RECIPE_FIELDS = ("tiles", "lr")


@dataclass(frozen=True)
class Verdict:
    """The result of one thing that was tried.

    Attributes:
        part: of the check.
        name: of what was tried; unique within its part.
        outcome: PASS, FAIL or SKIPPED.
        detail: what was observed, or why it was skipped.
        values: the numbers behind it.
    """

    part: str
    name: str
    outcome: str
    detail: str
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The verdict as a line for people."""
        return f"{self.outcome:7} {self.part}: {self.name} ({self.detail})"

    def to_json(self) -> str:
        """The verdict as one line of JSON, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Verdict:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Setting:
    """What the parts of a check are tried with.

    Attributes:
        dataset: directory of a dataset of generated tiles with the split `random`.
        device: cuda or cpu; on a CPU the parts run as far as they can, for tests.
        arch: torchvision's name of the network.
        size: side of the tiles in training, pixels.
        batch: tiles of a global batch.
        steps: number of steps in which waiting for the device is watched.
        speed: arguments of `python -m raytrain.bench` in the part of that name.
        schedule: likewise.
    """

    dataset: str
    device: str = "cuda"
    arch: str = "resnet18"
    size: int = 64
    batch: int = 32
    steps: int = 49
    speed: tuple[str, ...] = ()
    schedule: tuple[str, ...] = ()

    @property
    def worker(self) -> Worker:
        """One process on the device."""
        return Worker(device=torch.device(self.device))

    @property
    def on_gpu(self) -> bool:
        """Whether the parts that need a GPU can run."""
        return self.device == "cuda"

    @property
    def precision(self) -> str:
        """The precision of parts that compare no numbers: bf16 on a GPU, fp32 on a CPU."""
        if self.on_gpu:
            return "bf16"
        return "fp32"

    def execution(self, how: str) -> str:
        """The execution that was asked for on a GPU, eager on a CPU."""
        if self.on_gpu:
            return how
        return "eager"

    def recipe(self, stages: list[dict[str, Any]] | None = None, **changes: Any) -> Recipe:
        """Makes a recipe in fp32, whose numbers can be compared.

        Args:
            stages: for each stage what differs from one epoch of the whole network; by default
                there is one such stage.
            changes: settings of `train`, or those in `MODEL_FIELDS` and `RECIPE_FIELDS`.
        """
        usual = {"size": self.size, "epochs": 1, "freeze": False, "lr": LEARNING_RATE}
        made = []
        for stage in stages or [{}]:
            made.append(Stage.model_validate(usual | stage))
        model = {}
        top = {}
        train: dict[str, Any] = {
            "precision": "fp32",
            "batch_size": self.batch,
            "execution": "eager",
            "save_every_s": NEVER_S,
        }
        for name, value in changes.items():
            if name in MODEL_FIELDS:
                model[name] = value
            elif name in RECIPE_FIELDS:
                top[name] = value
            else:
                train[name] = value
        return Recipe(
            model=Model(arch=self.arch, weights="none", **model),
            data=Data(split="random"),
            train=Train.model_validate(train),
            stages=tuple(made),
            dataset=self.dataset,
            **top,
        )


class Skip(Exception):
    """Something cannot be tried here; the text gives the reason."""


def need_gpu(setting: Setting) -> None:
    """Skips what needs a GPU.

    Raises:
        Skip: the check runs on a CPU.
    """
    if not setting.on_gpu:
        raise Skip(NEEDS_GPU)


class Found(NamedTuple):
    """What a trial found: whether all is well, what was observed, and the numbers behind it."""

    well: bool
    detail: str
    values: dict[str, Any]


# A part of a check tries one thing after the other and gives a verdict for each.
Part = Callable[[Setting], Iterator[Verdict]]


def tried(part: str, name: str, find: Callable[[], Found]) -> Verdict:
    """Runs a trial. Any error of it is a FAIL, so that the next trials still run.

    Args:
        part: of the check.
        name: of the trial.
        find: the trial itself; may raise `Skip`.
    """
    try:
        found = find()
    except Skip as reason:
        return Verdict(part, name, SKIPPED, str(reason))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        detail = f"{type(error).__name__}: {lines[0]}"
        return Verdict(part, name, FAIL, detail[:DETAIL_LENGTH])
    outcome = FAIL
    if found.well:
        outcome = PASS
    return Verdict(part, name, outcome, found.detail, found.values)


def within(difference: float, limit: float, what: str) -> Found:
    """What is found where a difference must not exceed a limit.

    Args:
        difference: as measured.
        limit: up to which all is well.
        what: words that the difference follows in the detail.
    """
    detail = f"{what} {difference:.1e}, at most {limit:.0e} is right"
    return Found(difference <= limit, detail, {"difference": difference})


@contextmanager
def replays_counted() -> Iterator[list[int]]:
    """Counts the replays of CUDA graphs: two in a step, forward and backward.

    Gives a list whose only element is the count so far.
    """
    count = [0]
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: Any) -> None:
        count[0] += 1
        replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", counted):
        yield count
