"""The score that a search looks for, by its name and with its direction. No torch, no ray."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from raytrain import registry
from raytrain.errors import ConfigError, did_you_mean
from raytrain.evaluation import rules
from raytrain.evaluation.score import Score

LOSS = "valid_loss"
# Of tasks whose labels are decided by thresholds: the held-out score with one threshold for all.
OF_THRESHOLDS = "global"


def objective(name: str | None, task: str, own: Collection[str] = ()) -> Score:
    """Returns the score that a search looks for.

    Args:
        name: of a metric of the task, valid_loss, a metric of the user's own, or a decision rule;
            None for the task's usual one.
        task: of the dataset.
        own: names of the user's own metrics; higher is better.

    Raises:
        ConfigError: there is no such score.
    """
    known = _known(task, own)
    if name is None:
        name = OF_THRESHOLDS if OF_THRESHOLDS in known else registry.evaluation(task).SCORE.key
    if name in known:
        return known[name]
    raise ConfigError(
        f'--objective "{name}" is no score of the task {task}.{did_you_mean(name, known)}',
        "a search compares its trials by it",
        f"one of {', '.join(known)}",
    )


def is_mean_over_tiles(score: Score, task: str) -> bool:
    """Returns whether a score is a mean of scores of single tiles.

    Args:
        score: of `objective`.
        task: of the dataset.
    """
    module = registry.evaluation(task)
    if score.key == module.SCORE.key:
        return True
    return module.HAS_THRESHOLDS and score.key in rules.RULES


def _known(task: str, own: Collection[str]) -> Mapping[str, Score]:
    module = registry.evaluation(task)
    found = {LOSS: Score(LOSS, "validation loss", higher_is_better=False)}
    for key, title in module.METRICS.items():
        found[key] = Score(key, title)
    if module.HAS_THRESHOLDS:
        for rule, title in rules.RULES.items():
            found[rule] = Score(rule, f"{module.SCORE.name} ({title})")
    found[module.SCORE.key] = module.SCORE
    for key in own:
        found[key] = Score(key, key)
    return found
