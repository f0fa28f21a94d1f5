"""What a check of a GPU finds: one verdict a line. No ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import torch

from raytrain.config import Data, Model, Recipe, Stage, Train
from raytrain.worker import Worker

PASS, FAIL, SKIPPED = "PASS", "FAIL", "SKIPPED"
NEEDS_GPU = "needs a GPU"
LR = 0.01


@dataclass(frozen=True)
class Verdict:
    """Of one thing that was tried: its outcome, what was seen, and the numbers behind it."""

    part: str
    name: str
    outcome: str
    detail: str
    values: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.outcome:7} {self.part}: {self.name} ({self.detail})"

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Verdict:
        """What `to_json` gave."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Setting:
    """What the parts of a check are tried with.

    Attributes:
        dataset: directory of a dataset of `tiles` generated tiles, with the split `random`.
        device: type, cuda or cpu; on a CPU the parts run as far as they can, for tests.
        arch: torchvision's name of the network.
        size: side of the tiles, pixels.
        batch: tiles of a step.
        steps: of a loop that is watched.
        speed, schedule: words for `python -m raytrain.bench`.
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
        """Whether the parts that need a GPU run."""
        return self.device == "cuda"

    def recipe(self, stages: list[dict[str, Any]] | None = None, **changes: Any) -> Recipe:
        """A recipe of fp32, whose numbers can be compared; by default one stage of the whole network.

        Args:
            stages: what differs from one epoch of all groups.
            changes: fields of `train`; and `tiles`, `lr`, `dropout`, `batch_norm` of where they belong.
        """
        usual = {"size": self.size, "epochs": 1, "freeze": False, "lr": LR}
        made = tuple(Stage.model_validate(usual | stage) for stage in stages or [{}])
        model = {name: changes.pop(name) for name in ("dropout", "batch_norm") if name in changes}
        above = {name: changes.pop(name) for name in ("tiles", "lr") if name in changes}
        train = {
            "precision": "fp32",
            "batch_size": self.batch,
            "execution": "eager",
            "save_every_s": 9999.0,
        } | changes
        return Recipe(
            model=Model(arch=self.arch, weights="none", **model),
            data=Data(split="random"),
            train=Train.model_validate(train),
            stages=made,
            dataset=self.dataset,
            **above,
        )


class Skip(Exception):
    """A thing cannot be tried here; its text says why."""


Found = tuple[bool, str, dict[str, Any]]
# What a part of a check is: tries things one after the other.
Part = Callable[[Setting], Iterator[Verdict]]


def tried(part: str, name: str, find: Callable[[], Found]) -> Verdict:
    """The verdict of `find`, which gives (whether all is well, what was seen, numbers); an error of it is a FAIL."""
    try:
        well, detail, values = find()
    except Skip as reason:
        return Verdict(part, name, SKIPPED, str(reason))
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "")
        return Verdict(part, name, FAIL, f"{type(error).__name__}: {said}"[:400])
    return Verdict(part, name, PASS if well else FAIL, detail, values)


def close(found: float, limit: float, what: str) -> Found:
    """The finding of a difference that must not be larger than a limit."""
    return (
        found <= limit,
        f"{what} {found:.1e}, at most {limit:.0e} is right",
        {"difference": found},
    )


@contextmanager
def replays_counted() -> Iterator[list[int]]:
    """Counts in its only element how often a CUDA graph is replayed: two times a step, forward and backward."""
    count, replay = [0], torch.cuda.CUDAGraph.replay

    def counted(graph: Any) -> None:
        count[0] += 1
        replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", counted):
        yield count
