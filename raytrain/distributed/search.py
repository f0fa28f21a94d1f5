"""A search with Ray Tune: sets it up, runs it, and names its winner.

    search(recipe, content, options, name)   a new search
    resume(directory, options)               goes on with one

The table of draws is the truth. Each attempt is a fresh run of Ray Tune, whose own files are thrown
away. A search that was stopped or killed goes on from its table and from the stages in the storage.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray

from raytrain import runs, storage, tracking
from raytrain.checkpoints import winner
from raytrain.checkpoints.joined import TrialFacts, joined, write_trial_events
from raytrain.config import Recipe
from raytrain.data.dataset import open_dataset
from raytrain.distributed import search_finals, search_setup, slots, tune
from raytrain.distributed.messages import ANSWERS_S, interruptible, mailbox
from raytrain.distributed.nodes import check_machines
from raytrain.distributed.planner import StopAll, Suggestions, Verdicts, Watch
from raytrain.distributed.preflight import check_recipe, places_of, refuse_range
from raytrain.distributed.search_checks import check_disk, check_draws, check_options
from raytrain.distributed.search_finals import Finals
from raytrain.distributed.search_lines import Lines
from raytrain.distributed.search_resources import facts_of, share_of, slots_of, worker_of
from raytrain.distributed.search_setup import (
    Options,
    Setup,
    candidates_of,
    own_draws,
    stored_size_of,
)
from raytrain.distributed.session import session
from raytrain.distributed.slots import Share
from raytrain.distributed.stage_shelf import StageShelf
from raytrain.distributed.trial import Completion, Given, config_of, run
from raytrain.distributed.waiting import wait_for_room
from raytrain.errors import (
    ConfigError,
    DivergedError,
    Interrupted,
    NoRoomError,
    RaytrainError,
    ResourceError,
    StorageError,
    UnfinishedError,
    exit_code_of,
    typed,
)
from raytrain.evaluation.objective import is_mean_over_tiles, objective
from raytrain.evaluation.own_metrics import combined
from raytrain.evaluation.score import Score
from raytrain.runlock import held
from raytrain.search import default, space_file, table, worth_file
from raytrain.search.advice import Advisor
from raytrain.search.advisor import ModelAdvisor
from raytrain.search.chance import RandomAdvisor
from raytrain.search.planner import Parts, Planner
from raytrain.search.space import Draw
from raytrain.search.supply import Limits
from raytrain.search.table import State, Table
from raytrain.training import stage_keys, stages

logger = logging.getLogger(__name__)

BEST = "best.yaml"
# Called when the files of a search have changed.
Changed = Callable[[], None]


def _nobody() -> None:
    """Nobody looks at the files."""


@dataclass(frozen=True)
class Found:
    """A search that has ended.

    Attributes:
        directory: of the search, which is also the run of its winner.
        winner: number of the winning trial.
        reason: why it won.
        best: path of best.yaml.
    """

    directory: str
    winner: int
    reason: str
    best: str


def search(
    recipe: Recipe,
    content: Mapping[str, Any] | None,
    options: Options,
    *,
    name: str,
    changed: Changed = _nobody,
    wait_s: float = 0.0,
) -> Found:
    """Runs a new search.

    Args:
        recipe: as the user gave it.
        content: of a space file; None for the default space.
        options: what is asked for.
        name: of the search, a directory under the storage.
        changed: called when files have changed.
        wait_s: seconds to wait for room for a trial in the cluster; 0 for none.

    Raises:
        UnfinishedError: a signal stopped it; `resume` goes on.
        RaytrainError: the class that fits the failure.
    """
    check_options(options)
    refuse_range(recipe, "a search")
    recipe, dataset = check_recipe(tracking.unrecorded(recipe, "a search"))
    if content is None:
        content = default.values(recipe)
    space = space_file.read(content, recipe)
    for text in options.tries:
        space.tried(text)
    score = objective(options.objective, dataset.task, combined(recipe.metrics, (), dataset.task))
    directory = storage.join(recipe.storage, name)
    with held(directory):
        runs.refuse_taken(name, recipe.storage)
        with session():
            wait_for_room(recipe, wait_s, worker_cpus=options.trial_cpus)
            answers = check_machines(places_of(recipe), gpus=recipe.use_gpu is not False)
            share = share_of(recipe, options, answers)
            check_disk(recipe, space, options, slots_of(recipe, dataset, share)())
            facts = facts_of(recipe, share)
            size = stored_size_of(space, dataset)
            options = replace(options, objective=score.key)
            setup = Setup(recipe, content, options, score, facts, size)
            check_draws(candidates_of(setup, dataset))
            setup.write(directory)
            return _run(directory, setup, share, changed)


def resume(
    directory: str, options: Options, *, changed: Changed = _nobody, wait_s: float = 0.0
) -> Found:
    """Goes on with a search.

    Args:
        directory: of the search.
        options: of the search, with other limits or resources.
        changed: called when files have changed.
        wait_s: as for `search`.

    Raises:
        ConfigError: machines or versions are not those that the search began with.
        RaytrainError: as `search`.
    """
    check_options(options)
    setup = replace(search_setup.read(directory), options=options)
    recipe, _ = check_recipe(setup.recipe)
    setup = replace(setup, recipe=recipe)
    with held(directory), session():
        wait_for_room(recipe, wait_s, worker_cpus=options.trial_cpus)
        answers = check_machines(places_of(recipe), gpus=recipe.use_gpu is not False)
        share = share_of(recipe, options, answers)
        _check_facts(directory, setup, share)
        setup.write(directory)
        storage.remove(storage.join(directory, "failure.json"))
        return _run(directory, setup, share, changed)


# Before it starts


def _check_facts(directory: str, setup: Setup, share: Share) -> None:
    found = facts_of(setup.recipe, share)
    if found == setup.facts:
        return
    changed = stage_keys.differences(setup.facts, found)
    raise ConfigError(
        f"the search {storage.name_of(directory)} cannot go on here: {changed}",
        "its stages would not be trained alike any more",
        "resume it on machines of the same kind; --trial-cpus also sets the threads of a trial, "
        "unless the recipe sets train.threads",
    )


# While it runs


def _run(directory: str, setup: Setup, share: Share, changed: Changed) -> Found:
    """Runs the search to its end. Writes failure.json if it fails or is stopped."""
    try:
        with mailbox() as box:
            planner, finals = _planner(directory, setup, share)
            lines = Lines(planner, setup.score, partial(_show, planner, setup, changed))
            _enter_own_trials(planner, setup)
            _tune(planner, setup, share, box, lines)
        found = _concluded(directory, setup, planner, finals)
        _show(planner, setup, changed)
        return found
    except BaseException as raised:
        error = _with_resume(raised, directory)
        with suppress(StorageError):
            runs.write_failure(runs.Run(directory), error, exit_code_of(error))
        with suppress(RaytrainError):
            changed()
        if error is raised:
            raise
        raise error from None


def _with_resume(error: BaseException, directory: str) -> BaseException:
    """The error that ends a search, with the command that goes on where that may help."""
    again = _resume_command(directory)
    if isinstance(error, KeyboardInterrupt):
        number: int = signal.SIGINT
        if isinstance(error, Interrupted):
            number = error.number
        return Interrupted(number, f"\n  next: {again}")
    if isinstance(error, NoRoomError):
        return NoRoomError(error.what, error.why, f"ray status shows who uses what; then {again}")
    if isinstance(error, StorageError):
        return StorageError(error.what, error.why, f"{error.fix}; then {again}")
    return error


def _resume_command(directory: str) -> str:
    return runs.resume_search_command(storage.name_of(directory), storage.parent(directory))


def _show(planner: Planner, setup: Setup, changed: Changed) -> None:
    """Writes what the model says, for the pictures that others draw."""
    parts = planner.parts
    sign = 1.0 if setup.score.higher_is_better else -1.0
    content = worth_file.content(parts.advisor, parts.candidates.space, parts.table, sign)
    storage.write_json(storage.join(parts.table.directory, worth_file.FILE), content)
    changed()


def _planner(directory: str, setup: Setup, share: Share) -> tuple[Planner, Finals]:
    recipe = setup.recipe
    dataset = open_dataset(str(recipe.dataset))
    candidates = candidates_of(setup, dataset)
    advisor: Advisor = ModelAdvisor(candidates.source, recipe.train.seed)
    if setup.options.method == "random":
        advisor = RandomAdvisor(candidates.source, recipe.train.seed)
    seeds = [recipe.train.seed + 1 + rerun for rerun in range(setup.options.reruns)]
    finals = Finals(advisor, recipe.storage, setup.score, dataset, seeds)
    parts = Parts(
        table=table.read(directory),
        candidates=candidates,
        advisor=advisor,
        shelf=StageShelf(recipe, setup.score.key, dataset.task),
        limits=Limits(setup.options.num_samples, setup.options.budget_s, setup.options.reruns),
        score=setup.score,
        slots=slots_of(recipe, dataset, share),
        reruns=finals.wanted,
    )
    return Planner(parts), finals


def _enter_own_trials(planner: Planner, setup: Setup) -> None:
    """Puts the given recipe and the user's own trials first, where the table is new."""
    candidates = planner.parts.candidates
    trials = planner.parts.table.trials
    own = own_draws(candidates.space, setup.options)
    for kind, draw in own[len(trials) :]:
        planner.enter(candidates.trial(len(trials), kind, draw))


def _tune(planner: Planner, setup: Setup, share: Share, box: Any, lines: Lines) -> None:
    """Runs Ray Tune until the planner has nothing more to hand out.

    Raises:
        UnfinishedError: a signal stopped it.
        RaytrainError: that ends the search.
    """
    given = Given(
        space=setup.space,
        facts=setup.facts,
        stored_size=setup.stored_size,
        objective=setup.score.key,
        box=box,
        gpu_share=share.gpus or 1.0,
    )
    suggestions = Suggestions(planner, config_of, lines.event)

    def ask_to_stop(reason: str) -> None:
        """Asks the running trials for a checkpoint after their next step."""
        with suppress(ray.exceptions.RayError):
            ray.get(box.put.remote(reason), timeout=ANSWERS_S)

    watch = Watch(suggestions, partial(slots.lacking, share), ask_to_stop)
    attempt = tune.Attempt(
        function=run,
        given=given,
        worker=worker_of(replace(share, workers=1)),
        resources=share.resources,
        searcher=suggestions,
        scheduler=Verdicts(suggestions),
        callbacks=[watch],
        stopper=StopAll(watch),
    )
    lines.begin()

    def deliver(name: str) -> bool:
        planner.stop(name)
        lines.stopping(name)
        ask_to_stop(name)
        return True

    interruptible(partial(tune.run_attempt, attempt), deliver)
    directory = planner.parts.table.directory
    if planner.error is not None:
        raise planner.error
    if planner.stopped:
        raise UnfinishedError(
            f"stopped by {planner.stopped}, with everything kept in {directory}",
            "",
            _resume_command(directory),
        )


# At its end


def _concluded(directory: str, setup: Setup, planner: Planner, finals: Finals) -> Found:
    """Names the winner, and writes what it leaves behind."""
    dataset = open_dataset(str(setup.recipe.dataset))
    of_tiles = is_mean_over_tiles(setup.score, dataset.task)
    if of_tiles and search_finals.has_known_test_tiles(dataset, setup.recipe.data.split):
        finals.judge_by_test_tiles(planner.parts.table)
    verdict = finals.decide(planner.parts.table)
    if verdict is None:
        raise _nothing_complete(planner.parts.table)
    content = search_finals.content(verdict, finals.part)
    storage.write_json(storage.join(directory, search_finals.FILE), content)
    trial = planner.parts.table.trials[verdict.winner]
    drawn = planner.parts.candidates.space.recipe(Draw(trial.schedule, trial.values))
    recipe = Completion(dataset, setup.facts, setup.stored_size)(drawn)
    best = storage.join(directory, BEST)
    score = trial.score
    header = (
        f"# trial {trial.number} of {len(planner.parts.table.trials)}: "
        f"{setup.score.name} {score:.4f} in the search; {verdict.reason}\n"
        f"# {search_finals.JUDGED_BY[finals.part]}\n"
        f"# raytrain train --config {typed(best)}\n"
    )
    storage.write_text(best, header + recipe.to_yaml())
    root = storage.join(recipe.storage, stages.FOLDER)
    winner.lay_out(directory, [storage.join(root, key) for key in trial.keys], recipe)
    _write_events(directory, root, planner.parts.table, setup.score)
    return Found(directory, trial.number, verdict.reason, best)


def _write_events(directory: str, root: str, found: Table, score: Score) -> None:
    """Writes the curves and drawn values of all trials for TensorBoard."""
    for trial in found.trials:
        rows = joined([storage.join(root, key) for key in trial.keys])
        scores = {}
        if trial.score is not None:
            scores[score.name] = trial.score
        path = storage.join(directory, "tensorboard", f"trial-{trial.number}")
        write_trial_events(path, rows, TrialFacts(trial.values, scores))


def _nothing_complete(found: Table) -> RaytrainError:
    """The error of a search without a single complete trial."""
    reasons = [trial.reason for trial in found.trials if trial.reason]
    what = f"none of {len(found.trials)} trials came to its end; the last one: {reasons[-1]}"
    why = "there is no winner"
    if all(trial.state is State.DIVERGED for trial in found.trials):
        return DivergedError(what, why, "lower learning rates in the recipe and in the space")
    if all(trial.state is State.OUT_OF_MEMORY for trial in found.trials):
        return ResourceError(what, why, "a smaller batch size or network, or --train.accumulate")
    return RaytrainError(what, why, "raytrain runs show NAME lists all trials with their reasons")
