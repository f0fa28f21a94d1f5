"""A trial of a search, in the process that Ray Tune starts for it.

It trains the stages of its chain that nobody has trained, one after the other, and reports each
outcome. Between two stages it waits for the answer, which may end it. Its own errors are reports,
too: what Ray Tune sees as an error is the death of the process or a fault of the program.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.tune
import torch

from raytrain import errors, registry, storage
from raytrain.config import OF_DATASET, Normalization, Recipe
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.distributed.messages import Inbox, log_in_driver
from raytrain.distributed.train import train_stage
from raytrain.errors import (
    ConfigError,
    MemoryExceededError,
    RaytrainError,
    ResourceError,
    TakenError,
)
from raytrain.evaluation import own_metrics, predictions
from raytrain.evaluation.own_metrics import Metric
from raytrain.log import send_messages
from raytrain.search.space import Draw, Space
from raytrain.search.table import State, Trial
from raytrain.training import loop, normalization, stage_keys, stages
from raytrain.training.services import Hooks
from raytrain.training.stage_keys import Facts
from raytrain.training.stages import Outcome, Plan
from raytrain.training.state import Metrics
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """What all trials of a search share.

    Attributes:
        space: makes recipes of draws.
        facts: what the machines must decide about training.
        stored_size: side of the decoded tiles, pixels.
        objective: name of the score in outcomes.
        box: handle of the mailbox.
        gpu_share: part of a GPU that the trial has.
    """

    space: Space
    facts: Facts
    stored_size: int
    objective: str
    box: Any
    gpu_share: float = 1.0


def config_of(trial: Trial) -> dict[str, Any]:
    """Returns what Ray Tune passes to a trial: small, as Tune writes it into names of files."""
    draw = {"schedule": trial.schedule, "values": trial.values, "seed": trial.seed}
    return {"number": trial.number, "draw": json.dumps(draw), "key": trial.keys[-1]}


class Completion:
    """Makes complete recipes of draws: nothing is left to the machine that trains them."""

    def __init__(self, dataset: Dataset, facts: Facts, stored_size: int) -> None:
        """Starts.

        Args:
            dataset: opened.
            facts: what the machines decide.
            stored_size: side of the decoded tiles, pixels.
        """
        self.dataset = dataset
        self.facts = facts
        self.stored_size = stored_size
        # Of data.normalize = dataset: all trials have the same training tiles.
        self._statistics: Normalization | None = None

    def __call__(self, recipe: Recipe, seed: int | None = None) -> Recipe:
        """Returns the complete recipe.

        Args:
            recipe: of a draw.
            seed: of training, where it is not that of the recipe.
        """
        data = recipe.data.model_copy(update={"stored_size": self.stored_size})
        recipe = recipe.model_copy(update={"data": data})
        if recipe.data.normalize == OF_DATASET:
            recipe = self._normalized(recipe)
        if seed is not None:
            train = recipe.train.model_copy(update={"seed": seed})
            recipe = recipe.model_copy(update={"train": train})
        return stage_keys.with_facts(recipe, self.facts)

    def _normalized(self, recipe: Recipe) -> Recipe:
        if self._statistics is None:
            self._statistics = normalization.resolved(recipe, self.dataset).data.normalize
        data = recipe.data.model_copy(update={"normalize": self._statistics})
        return recipe.model_copy(update={"data": data})


def run(config: dict[str, Any], worker: Worker, given: Given) -> None:
    """Trains a trial and reports each of its stages, and how it ended if it did not complete.

    Args:
        config: as `config_of` makes it.
        worker: device and CPUs of the trial.
        given: what all trials share.
    """
    # Lines of epochs would drown those of the search; what is wrong must be seen.
    send_messages(partial(_send_warning, given.box), rank=0)
    number = config["number"]
    try:
        draw = json.loads(config["draw"])
        recipe = given.space.recipe(Draw.from_json(draw))
        chain = _opened(recipe, draw["seed"], config["key"], worker, given)
        chain.train(partial(_report, number))
    except TakenError as error:
        ray.tune.report({"number": number, "end": "taken", "reason": error.what})
    except stages.Stopped:
        ray.tune.report({"number": number, "end": "signalled"})
    except RaytrainError as error:
        ray.tune.report({"number": number, "end": "failed", "error": packed(error)})


def _send_warning(box: Any, level: int, text: str) -> None:
    if level >= logging.WARNING:
        log_in_driver(box, level, text)


def _report(number: int, report: dict[str, Any]) -> None:
    ray.tune.report({"number": number, **report})


def packed(error: RaytrainError) -> dict[str, str]:
    """Returns an error as plain text by field, which survives any way."""
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "why": error.why,
        "fix": error.fix,
    }


def unpacked(content: Mapping[str, str]) -> RaytrainError:
    """Returns the error that `packed` has taken apart."""
    kind = getattr(errors, content["kind"], RaytrainError)
    found: RaytrainError = kind(content["what"], content["why"], content["fix"])
    return found


def _opened(drawn: Recipe, seed: int | None, last_key: str, worker: Worker, given: Given) -> Chain:
    """Checks that this machine computes what the search has begun with, and plans the stages.

    Args:
        drawn: the recipe of the draw.
        seed: of training, where it is not that of the recipe.
        last_key: of the trial's last stage, as the driver has named it.
        worker: this process.
        given: what all trials share.

    Raises:
        ResourceError: the machine decides otherwise about precision, threads or tiles.
        ConfigError: it has other versions or other code.
    """
    assert drawn.dataset is not None  # the driver has checked it
    dataset = open_dataset(drawn.dataset)
    if worker.device.type == "cuda" and given.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(given.gpu_share)
    recipe = Completion(dataset, given.facts, given.stored_size)(drawn, seed)
    # What a worker group decides is known only when it runs; all of its workers agree.
    if recipe.num_workers == 1:
        _check_facts(drawn, dataset, worker, given)
    keys = stage_keys.keys(recipe, dataset, given.facts)
    if keys[-1] != last_key:
        raise ConfigError(
            "this machine names the stages of a trial in another way than the driver",
            "it has another version of torch, torchvision, timm or raytrain",
            "install the same packages on all machines of the cluster",
        )
    inbox = Inbox(given.box)
    train: stages.Train = partial(train_stage, reason=lambda: inbox.reason)
    if recipe.num_workers == 1:
        train = partial(_train_here, dataset=dataset, worker=worker, inbox=inbox)
    plans = stages.plans(recipe, keys)
    return Chain(plans, dataset, train, lambda: inbox.reason, given.objective)


def _check_facts(drawn: Recipe, dataset: Dataset, worker: Worker, given: Given) -> None:
    found = stage_keys.facts(drawn, dataset, worker)
    if found == given.facts:
        return
    raise ResourceError(
        f"this machine would train otherwise: {stage_keys.differences(given.facts, found)}",
        "stages of both kinds could not be shared or compared",
        "raytrain tune --resume on machines of one kind; or another search whose recipe sets "
        "train.precision, train.threads and tiles",
    )


def _train_here(
    recipe: Recipe, path: str, *, dataset: Dataset, worker: Worker, inbox: Inbox
) -> Metrics:
    """Trains a stage in this process."""
    hooks = Hooks(stop=inbox.stop, keep=inbox.keep)
    metrics = loop.fit(recipe, dataset, path, worker, hooks)
    return metrics | {"machine": stages.machine_of(worker.device)}


@dataclass(frozen=True)
class Chain:
    """The stages of a trial and what trains them.

    Attributes:
        plans: of the stages.
        dataset: opened.
        function: trains one.
        reason: of a signal that stops the search; None without one.
        objective: name of the score in outcomes.
    """

    plans: tuple[Plan, ...]
    dataset: Dataset
    function: stages.Train
    reason: Callable[[], str | None]
    objective: str

    def train(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Trains the stages that have no outcome yet, and reports each.

        Args:
            report: called with the outcome of each stage. It returns when the trial may go on.

        Raises:
            TakenError: another process trains the next stage.
            stages.Stopped: a signal stopped the search.
            RaytrainError: as `stages.train`.
        """
        for place, plan in enumerate(self.plans):
            reason = self.reason()
            if reason is not None:
                raise stages.Stopped(reason)
            try:
                found, trained = self._outcome(place)
            except MemoryExceededError as error:
                report(_without_score(place, State.OUT_OF_MEMORY, error.what))
                return
            if found.state == stages.DIVERGED:
                told = _without_score(place, State.DIVERGED, found.reason)
                report(told | {"trained": trained, "seconds": found.seconds})
                return
            own = own_metrics.combined(plan.recipe.metrics, (), self.dataset.task)
            score = score_of(plan.path, found, self.objective, self.dataset.task, own)
            report(
                {
                    "stage": place + 1,
                    "score": score,
                    "seconds": found.seconds,
                    "trained": trained,
                }
            )

    def _outcome(self, place: int) -> tuple[Outcome, bool]:
        """The outcome of a stage, and whether it was trained now."""
        plan = self.plans[place]
        found = stages.find(plan)
        if found is not None:
            return found, False
        if place > 0 and stages.forget_if_damaged(self.plans[place - 1]):
            self._outcome(place - 1)
        return stages.train(plan, self.dataset, self.function), True


def _without_score(place: int, state: State, reason: str) -> dict[str, Any]:
    return {
        "stage": place + 1,
        "score": None,
        "seconds": 0.0,
        "trained": True,
        "state": state.value,
        "reason": reason,
    }


def score_of(
    path: str, found: Outcome, objective: str, task: str, own: Mapping[str, Metric]
) -> float:
    """Returns the objective of a complete stage.

    The outcome of a search with other metrics of the user's own lacks those of this one, which are
    then computed from the predictions.

    Args:
        path: of the stage's run directory.
        found: its outcome.
        objective: name of the score.
        task: of the dataset.
        own: metrics of the user's own by name.
    """
    if objective in found.scores:
        return found.scores[objective]
    judged = predictions.read(storage.join(path, "predictions.parquet")).judged()
    assert judged.target is not None  # tiles that validate have labels
    probabilities = registry.evaluation(task).probabilities(judged.logits)
    return own_metrics.values(own, probabilities, judged.target)[objective]
