"""The only Tuner: searches over any field of a recipe, the list of stages included, and over thresholds.

A trial is a plain Tune function over the same `loop.fit` in one process; ASHA ends the weak ones early. A space is a
YAML mapping from a field's path to how it is drawn:

    stages.0.lr: {loguniform: [0.003, 0.03]}
    train.wd: {choice: [0.01, 0.1]}
    stages: {choice: [[{size: 64, epochs: 2, lr: 0.01}], [{size: 128, epochs: 2, lr: 0.01}]]}

`stages` is applied first, so that a path into it changes the drawn list.
"""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import ray.tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler

from raytrain import storage
from raytrain.config import Recipe, validate
from raytrain.data.dataset import open_dataset
from raytrain.distributed import gpus
from raytrain.distributed.cluster import cpus, session
from raytrain.distributed.memory import trials_that_fit
from raytrain.distributed.nodes import check_reach
from raytrain.distributed.preflight import check_workers
from raytrain.errors import ConfigError, did_you_mean, masked, typed
from raytrain.evaluation import metrics, predictions, thresholds
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker

logger = logging.getLogger(__name__)


# ASHA ends a trial here. Trials may draw stages of any length: none ends before its own last epoch but the weak ones.
MOST_EPOCHS = 10**6
# Tune hands them to trials in a runtime environment, which Ray writes into a log of every machine.
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
SAMPLERS: dict[str, Callable[..., Any]] = {
    "choice": lambda *values: ray.tune.choice(list(values)),
    "uniform": ray.tune.uniform,
    "loguniform": ray.tune.loguniform,
    "randint": ray.tune.randint,
}


def search(
    recipe: Recipe, space: Mapping[str, Any], *, name: str, num_samples: int
) -> pd.DataFrame:
    """Runs the trials and writes `trials.csv` and `best.yaml` into `<storage>/<name>`.

    Args:
        recipe: checked by the preflight; its fields are the ones the space does not draw.
        space: path of a field to {sampler: arguments}.
        name: of the search under the recipe's storage.
        num_samples: trials.

    Returns:
        One row per trial, best F2 first: trial, f2, epochs, and a column per path.

    Raises:
        ConfigError: a path or a sampler that does not exist, a drawn value out of range, or keys in the space.
    """
    directory = storage.join(recipe.storage, name)
    if masked(str(space)) != str(space):
        raise ConfigError(
            "the space holds the keys of a URI",
            "Tune writes what it draws into files of its own",
            "leave the keys out of it, and export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    drawn = {path: sampler(path, how) for path, how in space.items()}
    # Refuses a path that does not exist before any trial starts.
    apply_draw(recipe, {path: _first(how) for path, how in space.items()})
    base = recipe.model_dump(mode="json")
    results = _tune(
        _trial,
        (base, directory),
        drawn,
        directory,
        num_samples,
        ASHAScheduler(time_attr="training_iteration", max_t=MOST_EPOCHS, reduction_factor=2),
        recipe.use_gpu,
        trials_that_fit(recipe, len(open_dataset(str(recipe.dataset)).classes)),
    )
    table = _table(results)
    storage.write_text(storage.join(directory, "trials.csv"), table.to_csv(index=False))
    best = results[table["trial"].iloc[0]].config
    chosen = storage.join(directory, "best.yaml")
    header = f"# best of {len(table)} trials: F2 {table['f2'].iloc[0]:.4f}\n# raytrain train --config {typed(chosen)}\n"
    storage.write_text(chosen, header + apply_draw(recipe, best).to_yaml())
    return table


def search_thresholds(path: str, out: str, *, num_samples: int) -> pd.DataFrame:
    """Threshold search as Tune trials over a predictions file; no training is spent on it.

    Each trial ascends from a drawn threshold in a drawn order of classes on one half of the tiles and is judged on the
    other; the start whose F2 on the fitted half is highest is taken, never the one that is judged best. Writes
    `trials.csv`, and `thresholds.json` fitted from that start on all tiles, into `out`.

    Raises:
        DataError: no predictions file, or one without targets.
    """
    found = predictions.read(path)
    judgement = thresholds.judge(found)
    assert found.target is not None  # or judge would have refused
    space = {"start": ray.tune.uniform(0.05, 0.5), "seed": ray.tune.randint(0, 10**6)}
    # The numbers travel, not the file: it may lie on this machine alone. A trial computes nothing that a GPU could.
    results = _tune(
        _threshold_trial, (found.logits, found.target), space, out, num_samples, None, False
    )
    table = _table(results)
    storage.write_text(storage.join(out, "trials.csv"), table.to_csv(index=False))
    chosen = table.sort_values("f2_fitted", ascending=False).iloc[0]
    cuts, _ = thresholds.best_per_class(
        found.logits, found.target, start=chosen["start"], seed=int(chosen["seed"])
    )
    thresholds.write(judgement, out)
    content = storage.read_json(storage.join(out, "thresholds.json"))
    content |= {"per_class": dict(zip(found.classes, cuts.tolist(), strict=True))}
    storage.write_json(storage.join(out, "thresholds.json"), content)
    return table


def sampler(path: str, how: Any) -> Any:
    """Tune's sampler for one entry of a space.

    Raises:
        ConfigError: not a mapping with one known sampler, or arguments it does not take.
    """
    name, arguments = (
        next(iter(how.items())) if isinstance(how, dict) and len(how) == 1 else (str(how), None)
    )
    if name not in SAMPLERS or not isinstance(arguments, list):
        raise ConfigError(
            f'the space draws {path} by "{name}".{did_you_mean(name, SAMPLERS)}',
            f"known are {', '.join(SAMPLERS)}, each with a list",
            f"{path}: {{loguniform: [0.001, 0.1]}}",
        )
    try:
        return SAMPLERS[name](
            *[float(a) if isinstance(a, str) and name != "choice" else a for a in arguments]
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the space draws {path} by {name} {arguments}: {error}", "", "see README, Searches"
        ) from None


def apply_draw(recipe: Recipe, draw: Mapping[str, Any]) -> Recipe:
    """The recipe with drawn values at their paths (`train.wd`, `stages.1.lr.0`), validated.

    Raises:
        ConfigError: a path that does not exist, or a value out of range.
    """
    values = copy.deepcopy(recipe.model_dump(mode="json"))
    for path in sorted(draw, key=lambda p: (p != "stages", p)):
        target: Any = values
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        try:
            for part in parents:
                target = target[part]
            target[last] = copy.deepcopy(draw[path])
        except (KeyError, IndexError, TypeError):
            raise ConfigError(
                f'the space names "{path}", which the recipe does not have',
                "the value would be drawn and never used",
                "raytrain train --print-config shows every path",
            ) from None
    return validate(values, "the drawn configuration")


def _trial(config: dict[str, Any], worker: Worker, given: tuple[dict[str, Any], str]) -> None:
    """Trains what was drawn; given are the recipe's fields and the search's place."""
    base, path = given
    recipe = apply_draw(Recipe.model_validate(base), config)
    recipe = recipe.model_copy(update={"num_workers": 1})
    hooks = Hooks(report=lambda metrics: ray.tune.report({"f2": metrics["f2"]}))
    run = storage.join(path, "trials", ray.tune.get_context().get_trial_id())
    storage.write_text(storage.join(run, "config.yaml"), recipe.to_yaml())
    assert recipe.dataset is not None
    fit(recipe, open_dataset(recipe.dataset), run, worker, hooks)


def _threshold_trial(
    config: dict[str, Any], worker: Worker, given: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
) -> None:
    """One search of thresholds over logits and targets, each (rows, classes)."""
    logits, target = given
    fitting = slice(0, None, 2)
    judging = slice(1, None, 2)
    chosen, fitted = thresholds.best_per_class(
        logits[fitting], target[fitting], start=config["start"], seed=config["seed"]
    )
    f2 = metrics.f2(logits[judging], target[judging], chosen)
    ray.tune.report({"f2": f2, "f2_fitted": fitted})


class _Lines(ray.tune.Callback):  # type: ignore[misc]  # ray is untyped for mypy
    """Says a line for each report of a trial."""

    def __init__(self, trials: int) -> None:
        self.trials, self.finished = trials, 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        logger.info(
            f"trial {trial.trial_id}  epoch {result['training_iteration']}  F2 {result['f2']:.4f}"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.finished += 1
        logger.info(f"trial {trial.trial_id} is done ({self.finished} of {self.trials})")


def _tune(
    function: Callable[[dict[str, Any], Worker, Any], None],
    given: Any,
    space: dict[str, Any],
    path: str,
    num_samples: int,
    scheduler: ASHAScheduler | None,
    use_gpu: bool | None,
    most: int | None = None,
) -> dict[str, ray.tune.Result]:
    """Runs trials, at most `most` at a time: `function` gets what was drawn, the worker that a trial is, and `given`."""
    storage.probe(path)
    # Machines have keys of their own, as `raytrain train` needs them too.
    class_cache.ENV_VARS_TO_PROPAGATE -= KEYS
    with session(), _folder_of_tune(path) as folder:
        check_workers(1)  # Tune would wait for a CPU for ever
        check_reach(path)
        machines = gpus.needed(use_gpu)
        # A trial on a GPU decodes and streams with its share of the machine's CPUs.
        share = gpus.cpus_of_each(machines) if machines else 1
        worker = Worker(device=gpus.device(bool(machines)), cpus=max(1, int(share)))
        together = gpus.count(machines) or cpus()
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(
                ray.tune.with_parameters(function, worker=worker, given=given),
                {"CPU": share, "GPU": 1} if machines else {"CPU": share},
            ),
            param_space=space,
            tune_config=ray.tune.TuneConfig(
                metric="f2",
                mode="max",
                num_samples=num_samples,
                max_concurrent_trials=min(together, most or together),
                scheduler=scheduler,
                reuse_actors=False,
            ),
            run_config=ray.tune.RunConfig(
                name="ray", storage_path=folder, verbose=0, callbacks=[_Lines(num_samples)]
            ),
        )
        grid = tuner.fit()
    failed = [result.error for result in grid if result.error]
    if len(failed) == len(grid):
        raise failed[0]
    if failed:
        logger.warning(f"{len(failed)} trials failed, the first: {str(failed[0]).splitlines()[-1]}")
    return {
        result.metrics["trial_id"]: result for result in grid if result.metrics and not result.error
    }


@contextmanager
def _folder_of_tune(path: str) -> Iterator[str]:
    """The folder in which Tune keeps files of its own: the search's place where that is a local path.

    Tune pickles where its files lie. A URI may hold keys, so there they lie in a temporary folder of this machine, which
    goes at the end: nothing reads them, and trials write what counts by themselves.
    """
    if not storage.is_uri(path):
        yield path
        return
    folder = tempfile.mkdtemp(prefix="raytrain-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _table(results: dict[str, ray.tune.Result]) -> pd.DataFrame:
    rows = [
        {"trial": trial, "epochs": result.metrics["training_iteration"]}
        | {key: value for key, value in result.metrics.items() if key.startswith("f2")}
        | result.config
        for trial, result in results.items()
    ]
    return pd.DataFrame(rows).sort_values("f2", ascending=False, ignore_index=True)


def _first(how: Any) -> Any:
    value = next(iter(how.values()))[0]
    return float(value) if "choice" not in how and isinstance(value, str) else value
