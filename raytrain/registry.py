"""The tasks by name, and the four modules of each, loaded when they are used.

    raytrain/data/targets/<module>.py        how labels become targets
    raytrain/evaluation/tasks/<module>.py    metrics, judgements and answers
    raytrain/tasks/<module>.py               network, loss and targets on the device (torch)
    raytrain/report/<module>.py              what a report shows

The protocols below say what each module has. A new task is these four modules and a line in
`MODULES`: only this file knows a task by its name. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from raytrain.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch

    from raytrain.config import Model, Train
    from raytrain.data.label_format import LabelFormat
    from raytrain.data.labels import Labels
    from raytrain.evaluation.conditions import Conditions
    from raytrain.evaluation.predictions import Predictions
    from raytrain.evaluation.score import Score
    from raytrain.models.networks import Network
    from raytrain.report.record import Record
    from raytrain.report.sections import Sections

    Array = np.ndarray[Any, Any]

# Name of each task in dataset.json and on the command line, and name of its modules.
MODULES = {"multi-label": "multi_label", "single-label": "single_label"}
# Of datasets that name none, and of an ingest without --task.
DEFAULT = "multi-label"


class Targets(Protocol):
    """A module of `raytrain.data.targets`.

    Attributes:
        FORMAT: how a label file is read where the user says nothing.
        RECIPE: name of the recipe to begin with.
    """

    FORMAT: LabelFormat
    RECIPE: str

    def adapted(self, form: LabelFormat) -> LabelFormat:
        """Returns the user's format with what the task makes of it."""

    def checked(self, labels: Labels) -> Labels:
        """Returns labels with a problem on each row that the task cannot use."""

    def check_empty(self, allow_empty: bool) -> None:
        """Refuses tiles without a label where the task has none such."""

    def balanced_weights(self, target: Array) -> Array:
        """Returns class weights, (K,), that make up for the frequencies of targets (N, K)."""


class Evaluation(Protocol):
    """A module of `raytrain.evaluation.tasks`.

    Attributes:
        SCORE: what says which epoch, run or trial is best.
        METRICS: metrics of an epoch beside the loss, by their column, with their names.
        ANSWER_COLUMN: header of the answers in a submission.
        HAS_THRESHOLDS: whether a label is decided by a threshold that can be fitted.
        CHECKPOINT_FACTS: what meta.json says of this task alone.
    """

    SCORE: Score
    METRICS: Mapping[str, str]
    ANSWER_COLUMN: str
    HAS_THRESHOLDS: bool
    CHECKPOINT_FACTS: Mapping[str, Any]

    def epoch_metrics(self, logits: Array, target: Array) -> dict[str, float]:
        """Returns valid_loss and the values of METRICS."""

    def probabilities(self, logits: Array) -> Array:
        """Returns the probability of each class, float64 (N, K)."""

    def judge(self, predictions: Predictions, how: Conditions = ...) -> Any:
        """Evaluates predictions; the other functions take what it returns."""

    def tile_scores(self, predictions: Predictions, how: Conditions = ...) -> dict[str, Array]:
        """Returns scores of single tiles, (N,), sorted by name: what a comparison compares."""

    def score_title(self, name: str) -> str:
        """Returns the name of one of these scores for people."""

    def table(self, judgement: Any) -> str:
        """Returns the judgement as text for the terminal."""

    def write(self, judgement: Any, out: str) -> None:
        """Writes the judgement into a directory."""

    def check_answers(self, classes: tuple[str, ...]) -> None:
        """Refuses classes whose names the file of answers cannot hold."""

    def decision(self, path: str | None, rule: str | None, classes: tuple[str, ...]) -> Any:
        """Returns how labels are decided, by a file and the name of a rule; None for one way."""

    def decided(self, logits: Array, chosen: Any) -> Array:
        """Returns the labels of tiles, bool (N, K), decided by what `decision` has returned."""

    def answers(self, predictions: Predictions, chosen: Any) -> Iterator[str]:
        """Yields the answer for each tile, decided by what `decision` has returned."""


class Loss(Protocol):
    """The loss of a batch."""

    def __call__(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the sum over tiles, so that unequal shares of a batch add up."""


class Training(Protocol):
    """A module of `raytrain.tasks`.

    Attributes:
        LOSSES: losses by the name that a recipe gives them.
        OWN_LOSS: the one that is used where the recipe names none.
        WEIGHTED: the losses that take class weights.
    """

    LOSSES: Mapping[str, Any]
    OWN_LOSS: str
    WEIGHTED: Sequence[str]

    def network(self, settings: Model, classes: int, channels: int = 3) -> Network:
        """Returns a network with random weights."""

    def device_targets(self, targets: Array, device: torch.device) -> torch.Tensor:
        """Returns the targets of all rows on a device."""

    def undone(self, outputs: torch.Tensor, symmetry: int) -> torch.Tensor:
        """Returns the outputs of a turned or mirrored tile as those of the tile."""

    def batch_loss(self, settings: Train, weights: torch.Tensor | None = None) -> Loss:
        """Returns the loss that a recipe asks for."""


class Drawing(Protocol):
    """A module of `raytrain.report`."""

    def sections(self, record: Record) -> Sections:
        """Returns what the report of a run or of an evaluation shows of this task alone."""


def targets(task: str) -> Targets:
    """Returns the module of a task in `raytrain.data.targets`."""
    return cast(Targets, _module("raytrain.data.targets", task))


def evaluation(task: str) -> Evaluation:
    """Returns the module of a task in `raytrain.evaluation.tasks`."""
    return cast(Evaluation, _module("raytrain.evaluation.tasks", task))


def training(task: str) -> Training:
    """Returns the module of a task in `raytrain.tasks`. It imports torch."""
    return cast(Training, _module("raytrain.tasks", task))


def drawing(task: str) -> Drawing:
    """Returns the module of a task in `raytrain.report`."""
    return cast(Drawing, _module("raytrain.report", task))


def check(task: str) -> None:
    """Refuses the name of an unknown task.

    Raises:
        DataError: there is no such task.
    """
    if task in MODULES:
        return
    raise DataError(
        f'there is no task "{task}".{did_you_mean(task, MODULES)}',
        "the task decides what labels, loss and metrics mean",
        f"one of {', '.join(MODULES)}; a newer raytrain may know more of them",
    )


def judged_by(columns: Iterable[str]) -> str:
    """Returns the task that wrote a history.csv, by its columns; the default one if none did.

    A run names its task in its dataset and checkpoints; its history is there without them.
    """
    known = set(columns)
    for task in MODULES:
        if evaluation(task).SCORE.best_key in known:
            return task
    return DEFAULT


def _module(room: str, task: str) -> Any:
    check(task)
    return import_module(f"{room}.{MODULES[task]}")
