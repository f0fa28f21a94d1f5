"""Searches with Ray Tune over any field of a recipe, stages included.

A trial is a plain Tune function that runs the same `loop.fit` in one process. ASHA stops the weak
trials early. A space is a YAML mapping from a field's path to how its value is drawn; numbers in
a path count from 1:

    stages.1.lr: {loguniform: [0.003, 0.03]}
    train.wd: {choice: [0.01, 0.1]}
    stages: {choice: [[{size: 64, epochs: 2, lr: 0.01}], [{size: 128, epochs: 2, lr: 0.01}]]}

`stages` is applied first, so that a path into it changes the drawn list.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import ray.tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler

from raytrain import registry, storage
from raytrain.config import Recipe, validate, with_fields
from raytrain.data.dataset import open_dataset
from raytrain.distributed import gpus
from raytrain.distributed.memory import trials_that_fit
from raytrain.distributed.nodes import check_reach
from raytrain.distributed.preflight import check_workers
from raytrain.distributed.session import cpus, session
from raytrain.errors import ConfigError, did_you_mean, masked, typed
from raytrain.evaluation.score import Score
from raytrain.training import normalization
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker, compute_device

logger = logging.getLogger(__name__)


# ASHA ends a trial after so many epochs. No trial may reach it: drawn stages can have any length,
# and only weak trials end before their own last epoch.
MOST_EPOCHS = 10**6
# Tune passes these to trials in a runtime environment, which Ray logs on every machine.
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}


def _choice(*values: Any) -> Any:
    """Tune's choice, which takes a list, called like the other samplers."""
    return ray.tune.choice(list(values))


SAMPLERS: dict[str, Callable[..., Any]] = {
    "choice": _choice,
    "uniform": ray.tune.uniform,
    "loguniform": ray.tune.loguniform,
    "randint": ray.tune.randint,
}


def search(
    recipe: Recipe, space: Mapping[str, Any], *, name: str, num_samples: int
) -> pd.DataFrame:
    """Runs the trials and writes `trials.csv` and `best.yaml` into `<storage>/<name>`.

    Args:
        recipe: checked by the preflight; holds the fields that the space does not draw.
        space: path of a field to {sampler: arguments}.
        name: name of the search under the recipe's storage.
        num_samples: number of trials.

    Returns:
        One row per trial, the best first: trial, epochs, its score, and a column per path.

    Raises:
        ConfigError: a path or a sampler that does not exist, a drawn value out of range, or keys
            in the space.
    """
    directory = storage.join(recipe.storage, name)
    _refuse_keys(space)
    samplers = {path: sampler(path, how) for path, how in space.items()}
    # Refuses a path that does not exist before any trial starts.
    apply_draw(recipe, {path: _first_value(how) for path, how in space.items()})
    dataset = open_dataset(str(recipe.dataset))
    score = registry.evaluation(dataset.task).SCORE
    trials = Trials(
        function=_trial,
        # Plain values: a trial may run on another machine, and validates them again.
        given=(recipe.model_dump(mode="json"), directory),
        space=samplers,
        directory=directory,
        num_samples=num_samples,
        scheduler=ASHAScheduler(
            time_attr="training_iteration", max_t=MOST_EPOCHS, reduction_factor=2
        ),
        use_gpu=recipe.use_gpu,
        most_at_once=trials_that_fit(recipe, len(dataset.classes), dataset.tile_format.channels),
        score=score,
    )
    results = run_trials(trials)
    table = _table(results, score)
    storage.write_text(storage.join(directory, "trials.csv"), table.to_csv(index=False))
    best = results[table["trial"].iloc[0]].config
    chosen = storage.join(directory, "best.yaml")
    header = (
        f"# best of {len(table)} trials: {score.name} {table[score.key].iloc[0]:.4f}\n"
        f"# raytrain train --config {typed(chosen)}\n"
    )
    storage.write_text(chosen, header + apply_draw(recipe, best).to_yaml())
    return table


def _refuse_keys(space: Mapping[str, Any]) -> None:
    if masked(str(space)) == str(space):
        return
    raise ConfigError(
        "the space holds the keys of a URI",
        "Tune writes the values it draws into its own files",
        "leave the keys out of it, and export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )


def sampler(path: str, how: Any) -> Any:
    """Tune's sampler for one entry of a space.

    Args:
        path: path of the field, for messages.
        how: a mapping with one sampler and the list of its arguments.

    Raises:
        ConfigError: not a mapping with one known sampler, or arguments it does not take.
    """
    name = str(how)
    arguments = None
    if isinstance(how, dict) and len(how) == 1:
        name, arguments = next(iter(how.items()))
    if name not in SAMPLERS or not isinstance(arguments, list):
        raise ConfigError(
            f'the space draws {path} by "{name}".{did_you_mean(name, SAMPLERS)}',
            f"the samplers are {', '.join(SAMPLERS)}, each with a list",
            f"{path}: {{loguniform: [0.001, 0.1]}}",
        )
    if name != "choice":
        # YAML reads 1e-3, without a dot, as text.
        arguments = [float(a) if isinstance(a, str) else a for a in arguments]
    try:
        return SAMPLERS[name](*arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the space draws {path} by {name} {arguments}: {error}", "", "see README, Searches"
        ) from None


def _first_value(how: Any) -> Any:
    """A value that a sampler may draw, to try its path: the first of a list or the lower bound."""
    name, arguments = next(iter(how.items()))
    first = arguments[0]
    if name != "choice" and isinstance(first, str):
        return float(first)
    return first


def apply_draw(recipe: Recipe, draw: Mapping[str, Any]) -> Recipe:
    """The recipe with drawn values at their paths (`train.wd`, `stages.2.lr.1`), validated.

    Args:
        recipe: holds the fields that are not drawn.
        draw: values by path, as `config.set_field` takes them: numbers count from 1.

    Raises:
        ConfigError: a path that does not exist, or a value out of range.
    """
    values = with_fields(recipe.model_dump(mode="json"), draw)
    return validate(values, "the drawn configuration")


def _trial(config: dict[str, Any], worker: Worker, given: tuple[dict[str, Any], str]) -> None:
    """Trains one drawn recipe.

    Args:
        config: the drawn values by path.
        worker: device and CPUs of the trial.
        given: the fields of the recipe, and the search's directory.
    """
    base, directory = given
    recipe = apply_draw(Recipe.model_validate(base), config)
    # A trial is one process, whatever the recipe says of workers.
    recipe = recipe.model_copy(update={"num_workers": 1})
    assert recipe.dataset is not None
    dataset = open_dataset(recipe.dataset)
    # A space may draw `dataset` for data.normalize.
    recipe = normalization.resolved(recipe, dataset)
    run = storage.join(directory, "trials", ray.tune.get_context().get_trial_id())
    storage.write_text(storage.join(run, "config.yaml"), recipe.to_yaml())
    key = registry.evaluation(dataset.task).SCORE.key

    def report(metrics: Mapping[str, Any]) -> None:
        ray.tune.report({key: metrics[key]})

    fit(recipe, dataset, run, worker, Hooks(report=report))


class _Progress(ray.tune.Callback):  # type: ignore[misc]  # ray is untyped for mypy
    """Logs a line for each report of a trial and for its end."""

    def __init__(self, trials: int, score: Score) -> None:
        self.trials = trials
        self.score = score
        self.finished = 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        epoch = result["training_iteration"]
        logger.info(
            f"trial {trial.trial_id}  epoch {epoch}  {self.score.name} {result[self.score.key]:.4f}"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.finished += 1
        logger.info(f"trial {trial.trial_id} is done ({self.finished} of {self.trials})")


@dataclass(frozen=True)
class Trials:
    """What `run_trials` runs.

    Attributes:
        function: one trial; called with the drawn values, its worker, and `given`. It reports to
            Tune, or returns its result.
        given: the same for all trials; must be picklable.
        space: Tune's samplers by name or path.
        directory: directory or URI of the search.
        num_samples: number of draws from the space.
        variants: number of trials of each draw: the points of a grid in the space.
        score: what says which trial is best.
        scheduler: stops weak trials early; None runs every trial to its end.
        use_gpu: as in a recipe.
        most_at_once: how many trials fit into memory; None if that is no limit.
    """

    function: Callable[[dict[str, Any], Worker, Any], dict[str, float] | None]
    given: Any
    space: dict[str, Any]
    directory: str
    num_samples: int
    score: Score
    scheduler: ASHAScheduler | None = None
    use_gpu: bool | None = None
    most_at_once: int | None = None
    variants: int = 1


def run_trials(trials: Trials) -> dict[str, ray.tune.Result]:
    """Runs trials in a session of their own. Returns the results of those that did not fail.

    Raises:
        BaseException: the error of the first trial, if all failed.
    """
    storage.probe(trials.directory)
    # Every machine has its own keys; `raytrain train` needs them there as well.
    class_cache.ENV_VARS_TO_PROPAGATE -= KEYS
    with session(), _folder_of_tune(trials.directory) as folder:
        check_workers(1)  # without a free CPU, Tune would wait forever
        check_reach(trials.directory)
        grid = list(_tuner(trials, folder).fit())
    errors = [result.error for result in grid if result.error]
    if errors and len(errors) == len(grid):
        raise errors[0]
    if errors:
        last_line = str(errors[0]).splitlines()[-1]
        logger.warning(f"{len(errors)} trials failed, the first: {last_line}")
    finished = [result for result in grid if result.metrics and not result.error]
    return {result.metrics["trial_id"]: result for result in finished}


def _tuner(trials: Trials, folder: str) -> Any:
    """Tune's `Tuner` for some trials, which keeps its files in `folder`."""
    machines = gpus.needed(trials.use_gpu)
    resources: dict[str, float] = {"CPU": 1}
    at_once = cpus()
    if machines:
        # A trial on a GPU decodes and streams with its share of the machine's CPUs.
        resources = {"CPU": gpus.cpus_of_each(machines), "GPU": 1}
        at_once = gpus.count(machines)
    if trials.most_at_once:
        at_once = min(at_once, trials.most_at_once)
    worker = Worker(device=compute_device(bool(machines)), cpus=max(1, int(resources["CPU"])))
    function = ray.tune.with_parameters(trials.function, worker=worker, given=trials.given)
    return ray.tune.Tuner(
        ray.tune.with_resources(function, resources),
        param_space=trials.space,
        tune_config=ray.tune.TuneConfig(
            metric=trials.score.key,
            mode=trials.score.mode,
            num_samples=trials.num_samples,
            max_concurrent_trials=at_once,
            scheduler=trials.scheduler,
            # A new process for each trial, so that none inherits memory or state of another.
            reuse_actors=False,
        ),
        run_config=ray.tune.RunConfig(
            name="ray",
            storage_path=folder,
            verbose=0,
            callbacks=[_Progress(trials.num_samples * trials.variants, trials.score)],
        ),
    )


@contextmanager
def _folder_of_tune(directory: str) -> Iterator[str]:
    """The folder for Tune's own files: the search's directory if that is a local path.

    Tune pickles the path of its files, and a URI may hold keys. For a URI they are therefore kept
    in a temporary folder of this machine and removed at the end. Nothing reads them: the trials
    write their results themselves.
    """
    if not storage.is_uri(directory):
        yield directory
        return
    folder = tempfile.mkdtemp(prefix="raytrain-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _table(results: dict[str, ray.tune.Result], score: Score) -> pd.DataFrame:
    """One row per trial, the best first."""
    rows = []
    for trial, result in results.items():
        row = {"trial": trial, "epochs": result.metrics["training_iteration"]}
        for key, value in result.metrics.items():
            if key == score.key:
                row[key] = value
        row.update(result.config)
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.sort_values(score.key, ascending=not score.higher_is_better, ignore_index=True)
