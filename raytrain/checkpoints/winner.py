"""Lays the winner of a search out as the run that its recipe would leave.

    <storage>/<search>/    config.yaml, env.json, history.csv, metrics.jsonl, ranks.csv,
                           predictions.parquet, thresholds.json, lr-find/, checkpoints/

Its stages were trained in run directories of their own. Afterwards the name of the search is that
of a run. What a report adds is written by `raytrain.report.conclude`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytrain import registry, storage
from raytrain.checkpoints import writing
from raytrain.checkpoints.joined import joined
from raytrain.checkpoints.layout import BEST, LAST
from raytrain.config import Recipe
from raytrain.evaluation import predictions

CONFIG = "config.yaml"
ENVIRONMENT = "env.json"
PREDICTIONS = "predictions.parquet"
THRESHOLDS = "thresholds.json"
RANGE_TESTS = "lr-find"
# Fields of a recipe that are others where a stage is trained alone.
OF_ONE_STAGE = ("stages", "select", "storage", "init_from", "remap_labels")


def lay_out(directory: str, stages: Sequence[str], recipe: Recipe) -> None:
    """Writes the run into the directory of the search. It may be called again after a crash.

    Checkpoints and range tests have the names that the recipe gives to its stages; in the
    directories of the stages they have the lesson's. `last` is the checkpoint of the last stage,
    and `best` that of the stage with the best score at its end: stages keep no checkpoint of an
    epoch within them.

    Args:
        directory: of the search.
        stages: run directories of the winner's stages, in order; all are complete.
        recipe: of the winner, as best.yaml has it. Its selected stages are those above.

    Raises:
        FileNotFoundError: a stage is not complete.
        StorageError: something cannot be written.
    """
    placed = _placed(stages, recipe)
    joined(stages).write(directory)
    _copy_checkpoints(directory, placed, recipe)
    _write_predictions(directory, stages[-1])
    _copy_if_there(storage.join(stages[-1], THRESHOLDS), storage.join(directory, THRESHOLDS))
    _copy_if_there(storage.join(stages[0], ENVIRONMENT), storage.join(directory, ENVIRONMENT))
    for stage in placed:
        _copy_range_test(directory, stage)
    # Last: with this file the directory is a run.
    storage.write_text(storage.join(directory, CONFIG), recipe.to_yaml())


@dataclass(frozen=True)
class _Stage:
    """A stage of the winner.

    Attributes:
        path: its run directory.
        stored_name: that its checkpoint and its range test have there.
        name: that the recipe gives it.
    """

    path: str
    stored_name: str
    name: str

    @property
    def checkpoint(self) -> str:
        """Path of the checkpoint that it has left behind."""
        return storage.join(self.path, "checkpoints", self.stored_name)


def _placed(stages: Sequence[str], recipe: Recipe) -> list[_Stage]:
    """The stages with their names."""
    first, last = recipe.selected
    stored = recipe.default_stage_names[first - 1 : last]
    names = recipe.stage_names[first - 1 : last]
    found = []
    for path, stored_name, name in zip(stages, stored, names, strict=True):
        found.append(_Stage(path, stored_name, name))
    return found


def _copy_checkpoints(directory: str, stages: Sequence[_Stage], recipe: Recipe) -> None:
    """Copies those of all stages under their names, and names the last and the best one."""
    facts = _facts_of_one_run(stages, recipe)
    folder = storage.join(directory, "checkpoints")
    for stage, meta in zip(stages, facts, strict=True):
        writing.copy(stage.checkpoint, storage.join(folder, stage.name), meta)
    best = _best(facts)
    writing.copy(stages[best].checkpoint, storage.join(folder, BEST), facts[best])
    writing.copy(stages[-1].checkpoint, storage.join(folder, LAST), facts[-1])


def _copy_range_test(directory: str, stage: _Stage) -> None:
    """Copies the files of a stage's range test under its name, if it had one."""
    tests = storage.join(stage.path, RANGE_TESTS)
    for file in storage.names(tests):
        ending = file.removeprefix(stage.stored_name)
        target = storage.join(directory, RANGE_TESTS, f"{stage.name}{ending}")
        _copy_if_there(storage.join(tests, file), target)


def _facts_of_one_run(stages: Sequence[_Stage], recipe: Recipe) -> list[dict[str, Any]]:
    """Content of meta.json of each stage as one run over all of them writes it."""
    metas = []
    for stage in stages:
        metas.append(storage.read_json(storage.join(stage.checkpoint, writing.META)))
    whole = recipe.model_dump(mode="json")
    # The other fields as training has resolved them, such as its precision.
    values = metas[-1]["recipe"] | {name: whole[name] for name in OF_ONE_STAGE}
    steps = 0
    found = []
    for stage, meta in zip(stages, metas, strict=True):
        steps += meta["step"]
        # The stage alone starts from the one before it, the run from where the first one did.
        parent = metas[0]["parent"]
        changes = {"recipe": values, "stage_name": stage.name, "step": steps, "parent": parent}
        found.append(meta | changes)
    return found


def _best(metas: Sequence[dict[str, Any]]) -> int:
    """Index of the stage with the best score at its end; the first one of equal ones."""
    score = registry.evaluation(metas[-1]["task"]).SCORE
    best = 0
    for number, meta in enumerate(metas):
        if score.is_better(meta[score.key], metas[best][score.key]):
            best = number
    return best


def _write_predictions(directory: str, stage: str) -> None:
    """Copies the predictions of the last stage; they name the checkpoint in the new place."""
    found = predictions.read(storage.join(stage, PREDICTIONS))
    meta = found.meta | {"checkpoint": storage.join(directory, "checkpoints", LAST)}
    predictions.write(storage.join(directory, PREDICTIONS), replace(found, meta=meta))


def _copy_if_there(source: str, target: str) -> None:
    try:
        content = storage.read_bytes(source)
    except FileNotFoundError:
        return
    storage.write_bytes(target, content)
