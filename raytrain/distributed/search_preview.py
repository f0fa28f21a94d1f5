"""What `raytrain tune --dry-run` shows: the first trials as a tree of stages, with their cost.

Nothing is trained, and Ray is not started. The first trials are random draws in any case; what
follows depends on their scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from raytrain.config import Recipe
from raytrain.distributed import environment, slots
from raytrain.distributed.preflight import check_recipe, check_workers
from raytrain.distributed.search_checks import check_disk, check_draws, check_options
from raytrain.distributed.search_resources import facts_here, share_of, slots_of, worker_of
from raytrain.distributed.search_setup import (
    Options,
    Setup,
    candidates_of,
    own_draws,
    stored_size_of,
)
from raytrain.distributed.slots import Share
from raytrain.evaluation.objective import objective
from raytrain.evaluation.own_metrics import combined
from raytrain.search import default, space_file, tree
from raytrain.search.advice import drawn_anew
from raytrain.search.advisor import FIRST_DRAWS
from raytrain.search.candidates import Candidates, chain_of
from raytrain.search.chains import Chain
from raytrain.search.finalists import BEST
from raytrain.search.space import Draw
from raytrain.search.table import Kind, Trial


def preview(recipe: Recipe, content: Mapping[str, Any] | None, options: Options) -> Iterator[str]:
    """Checks a search, and yields the lines that describe its first trials.

    Args:
        recipe: as the user gave it.
        content: of a space file; None for the default space.
        options: what is asked for.

    Raises:
        RaytrainError: as `search`, as far as it needs no cluster.
    """
    check_options(options)
    recipe, dataset = check_recipe(recipe)
    if content is None:
        content = default.values(recipe)
    space = space_file.read(content, recipe)
    own = combined(recipe.metrics, (), dataset.task)
    score = objective(options.objective, dataset.task, own)
    share = _share(recipe, options)
    # How many run at once on a cluster is known when the search starts.
    at_once = 1
    if not environment.connects():
        at_once = slots_of(recipe, dataset, share)()
    check_disk(recipe, space, options, at_once)
    facts = facts_here(recipe, worker_of(share))
    size = stored_size_of(space, dataset)
    setup = Setup(recipe, content, options, score, facts, size)
    candidates = candidates_of(setup, dataset)
    check_draws(candidates)
    entries = [_entry(candidates, trial) for trial in _first_trials(candidates, options)]
    yield from tree.lines(entries)
    totals = tree.totals(entries)
    yield totals.line
    mean = totals.alone / totals.trials
    finalists = min(BEST + 1, options.num_samples)
    if options.reruns and finalists > 1:
        yield (
            f"reruns: up to {finalists} finalists x {options.reruns} cost about "
            f"{finalists * options.reruns * mean:.2f} on top"
        )
    if len(entries) < _known(options):
        yield "the space is used up: a thousand draws gave no new trial of allowed cost"
    elif len(entries) < options.num_samples:
        yield f"the other {options.num_samples - len(entries)} trials follow from their scores"


def _share(recipe: Recipe, options: Options) -> Share:
    """What a trial takes, compared with this machine. A cluster is asked when the search starts."""
    if not environment.connects():
        return share_of(recipe, options)
    check_workers(recipe.num_workers)
    share = Share(recipe.num_workers, options.trial_cpus or 1.0, options.trial_gpus or 0.0)
    slots.check(share)
    return share


def _first_trials(candidates: Candidates, options: Options) -> list[Trial]:
    """The trials that do not depend on scores: those of the user, and the first draws."""
    space = candidates.space
    trials: list[Trial] = []
    for kind, draw in own_draws(space, options):
        trials.append(candidates.trial(len(trials), kind, draw))
    while len(trials) < _known(options):
        taken = {trial.keys[-1] for trial in trials}
        rng = np.random.default_rng((space.given.train.seed, len(trials)))

        def closed(chain: Chain, taken: set[str] = taken) -> bool:
            return chain.keys[-1] in taken

        chain = drawn_anew(candidates.source, rng, closed)
        if chain is None:
            break
        trials.append(candidates.trial(len(trials), Kind.DRAWN, candidates.draw_of(chain)))
    return trials


def _known(options: Options) -> int:
    """How many trials are known before any score."""
    if options.method == "random":
        return options.num_samples
    return min(options.num_samples, FIRST_DRAWS)


def _entry(candidates: Candidates, trial: Trial) -> tree.Entry:
    recipe = candidates.space.recipe(Draw(trial.schedule, trial.values))
    shared = {}
    for path, value in trial.values.items():
        if not path.startswith("stages."):
            shared[path] = value
    chain = chain_of(trial)
    if chain is None:
        # A trial outside the space has no coordinates.
        nowhere = ((),) * len(trial.keys)
        chain = Chain(trial.schedule, (), nowhere, trial.keys, trial.costs)
    label = "the given recipe" if trial.kind is Kind.GIVEN else f"trial {trial.number}"
    return tree.Entry(label, chain, tree.chain_in_words(recipe, shared))
