"""Runs trials with Ray Tune. This is the only module that makes a `Tuner`.

    run_trials(trials)      a fixed set of trials of one CPU each, each with one result
    run_attempt(attempt)    trials that a searcher hands out, for a search

Tune keeps files of its own, which hold the paths that it is given. They lie in a temporary folder
that is removed at the end, and nothing reads them: a URI may hold keys.
"""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import ray.tune
from ray.tune.execution import class_cache

from raytrain import storage
from raytrain.distributed.nodes import Places, check_machines
from raytrain.distributed.preflight import check_workers
from raytrain.distributed.session import cpus, session
from raytrain.errors import StorageError
from raytrain.evaluation.score import Score
from raytrain.worker import Worker

logger = logging.getLogger(__name__)

# Tune passes these to trials in a runtime environment, which Ray logs on every machine.
KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
# The disk, or the share of it that the user may fill, is full.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Without its own writers of CSV, JSON and TensorBoard: nobody would read their files.
WITHOUT_WRITERS = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}


class _Progress(ray.tune.Callback):
    """Logs a line for each report of a trial and for its end."""

    def __init__(self, trials: int, score: Score) -> None:
        self.trials = trials
        self.score = score
        self.finished = 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        logger.info(f"trial {trial.trial_id}  {self.score.name} {result[self.score.key]:.4f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.finished += 1
        logger.info(f"trial {trial.trial_id} is done ({self.finished} of {self.trials})")


@dataclass(frozen=True)
class Trials:
    """What `run_trials` runs.

    Attributes:
        function: one trial; called with its values, its worker, and `given`. It returns its result.
        given: the same for all trials; must be picklable.
        space: Tune's grids by name.
        directory: directory or URI of the results.
        variants: number of trials: the points of the grids.
        score: of the results.
    """

    function: Callable[[dict[str, Any], Worker, Any], dict[str, float] | None]
    given: Any
    space: dict[str, Any]
    directory: str
    variants: int
    score: Score


@dataclass(frozen=True)
class Attempt:
    """What `run_attempt` runs.

    Attributes:
        function: one trial; called with its values, its worker, and `given`.
        given: the same for all trials; must be picklable.
        worker: device and CPUs of a trial.
        resources: what a trial asks Ray for.
        searcher: hands out trials.
        scheduler: stops trials.
        callbacks: look at all trials.
        stopper: ends all trials.
    """

    function: Callable[[dict[str, Any], Worker, Any], None]
    given: Any
    worker: Worker
    resources: Mapping[str, float]
    searcher: ray.tune.search.Searcher
    scheduler: ray.tune.schedulers.TrialScheduler
    callbacks: Sequence[ray.tune.Callback]
    stopper: ray.tune.Stopper


def run_trials(trials: Trials) -> dict[str, ray.tune.Result]:
    """Runs trials in a session of their own. Returns the results of those that did not fail.

    Raises:
        BaseException: the error of the first trial, if all failed.
    """
    storage.probe(trials.directory)
    with session(), _folder() as folder:
        check_workers(1)  # without a free CPU, Tune would wait forever
        check_machines(Places({"--storage": trials.directory}))
        function = ray.tune.with_parameters(trials.function, worker=Worker(), given=trials.given)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(function, {"CPU": 1}),
            param_space=trials.space,
            tune_config=ray.tune.TuneConfig(
                metric=trials.score.key,
                mode=trials.score.mode,
                max_concurrent_trials=cpus(),
                # A new process for each trial, so that none inherits the state of another.
                reuse_actors=False,
            ),
            run_config=ray.tune.RunConfig(
                name="ray",
                storage_path=folder,
                verbose=0,
                callbacks=[_Progress(trials.variants, trials.score)],
            ),
        )
        grid = list(tuner.fit())
    errors = [result.error for result in grid if result.error]
    if errors and len(errors) == len(grid):
        raise errors[0]
    if errors:
        last_line = str(errors[0]).splitlines()[-1]
        logger.warning(f"{len(errors)} trials failed, the first: {last_line}")
    finished = [result for result in grid if result.metrics and not result.error]
    return {result.metrics["trial_id"]: result for result in finished}


def run_attempt(attempt: Attempt) -> None:
    """Runs the trials that a searcher hands out, in the session of the caller."""
    function = ray.tune.with_parameters(
        attempt.function, worker=attempt.worker, given=attempt.given
    )
    # It would warn of each trial that wrote no files for it.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with _folder() as folder:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(function, dict(attempt.resources)),
            tune_config=ray.tune.TuneConfig(
                search_alg=attempt.searcher,
                scheduler=attempt.scheduler,
                num_samples=-1,
                # A reused process would keep a GPU idle, and hide one that is broken.
                reuse_actors=False,
            ),
            run_config=ray.tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                callbacks=list(attempt.callbacks),
                stop=attempt.stopper,
                failure_config=ray.tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()


@contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder for Tune's own files.

    Raises:
        StorageError: its disk is full.
    """
    # Every machine has its own keys; `raytrain train` needs them there as well.
    class_cache.ENV_VARS_TO_PROPAGATE -= KEYS
    folder = tempfile.mkdtemp(prefix="raytrain-")
    try:
        with mock.patch.dict("os.environ", WITHOUT_WRITERS):
            yield folder
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise StorageError(
            f"cannot write {folder}: {error.strerror}",
            "Ray Tune writes files of its own into the temporary folder while trials run",
            "free some space there (df -h), or set TMPDIR to a folder on a larger disk",
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
