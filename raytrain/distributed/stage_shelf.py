"""The stages in the storage, as the planner of a search asks for them."""

from __future__ import annotations

from typing import Any

from raytrain import runlock, storage
from raytrain.checkpoints import layout, reading
from raytrain.config import Recipe
from raytrain.distributed.trial import score_of
from raytrain.errors import RaytrainError
from raytrain.evaluation.own_metrics import combined
from raytrain.search.outcomes import Found
from raytrain.training import stages


class StageShelf:
    """Answers as a `Shelf`."""

    def __init__(self, recipe: Recipe, objective: str, task: str) -> None:
        """Starts.

        Args:
            recipe: that the search was given; it names the storage and the user's own metrics.
            objective: name of the score in outcomes.
            task: of the dataset.
        """
        self._root = storage.join(recipe.storage, stages.FOLDER)
        self._metrics = recipe.metrics
        self._objective = objective
        self._task = task

    def outcome(self, key: str, name: str) -> Found | None:
        """Returns the outcome of a stage; None where it has none, or its checkpoint is gone."""
        path = storage.join(self._root, key)
        found = stages.outcome_in(path, name)
        if found is None:
            return None
        if found.state == stages.DIVERGED:
            return Found(None, found.seconds, found.reason)
        own = combined(self._metrics, (), self._task)
        return Found(score_of(path, found, self._objective, self._task, own), found.seconds)

    def owner(self, key: str) -> str:
        """Returns who trains a stage now, in words; empty where nobody does."""
        path = storage.join(self._root, key)
        if not runlock.is_held(path):
            return ""
        return runlock.owner_in_words(path)

    def reached(self, key: str) -> Any:
        """Returns the position of the newest checkpoint of a stage."""
        try:
            return reading.furthest(storage.join(self._root, key, "checkpoints"))
        except RaytrainError:
            return layout.BEGINNING
