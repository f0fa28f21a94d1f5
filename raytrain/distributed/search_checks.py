"""What is refused before a search starts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from raytrain import registry
from raytrain.config import Recipe
from raytrain.data.dataset import open_dataset
from raytrain.distributed.preflight import checkpoint_bytes, free_bytes
from raytrain.distributed.search_setup import METHODS, Options
from raytrain.errors import ConfigError, StorageError, did_you_mean
from raytrain.models import networks
from raytrain.search.advice import drawn_anew
from raytrain.search.candidates import Candidates
from raytrain.search.finalists import BEST
from raytrain.search.space import Space


def check_options(options: Options) -> None:
    """Refuses numbers and words out of range.

    Raises:
        ConfigError: there is one.
    """
    if options.num_samples < 1:
        raise ConfigError(
            f"--num-samples {options.num_samples} is less than 1",
            "a search has at least one trial, the given recipe",
            "--num-samples 30",
        )
    if options.reruns < 0:
        raise ConfigError(
            f"--reruns {options.reruns} is less than 0",
            "it says how often the finalists run again",
            "--reruns 2",
        )
    if options.budget_s is not None and options.budget_s <= 0:
        raise ConfigError(
            f"--budget-s {options.budget_s:g} is not above 0",
            "nothing would be drawn",
            "--budget-s 3600, or leave it out",
        )
    if options.method not in METHODS:
        raise ConfigError(
            f'--search "{options.method}" is unknown.{did_you_mean(options.method, METHODS)}',
            f"there are {', '.join(METHODS)}",
            "--search model",
        )


def check_draws(candidates: Candidates) -> None:
    """Refuses a space whose chains all cost more than it allows.

    Raises:
        ConfigError: no draw is cheap enough.
    """
    rng = np.random.default_rng(0)
    if drawn_anew(candidates.source, rng, lambda chain: False) is not None:
        return
    raise ConfigError(
        f"at_most: {{cost: {candidates.space.most_cost:g}}} allows none of a thousand draws",
        "only the given recipe would be trained, which costs 1",
        "a higher cost in the space, or cheaper lists of stages",
    )


def check_disk(recipe: Recipe, space: Space, options: Options, at_once: int) -> None:
    """Compares the free disk with the checkpoints of all trials, as if they shared none.

    Args:
        recipe: complete.
        space: of the search.
        options: of the search.
        at_once: how many trials can run at once.

    Raises:
        StorageError: they will not fit.
    """
    free = free_bytes(recipe.storage)
    if free is None:
        return
    dataset = open_dataset(str(recipe.dataset))
    network = registry.training(dataset.task).network(
        recipe.model, len(dataset.classes), dataset.tile_format.channels
    )
    weights = networks.parameter_count(network)
    named, full = checkpoint_bytes(recipe, weights)
    longest = max(len(schedule.numbers) for schedule in space.schedules)
    trials = options.num_samples + _most_reruns(options)
    # While a stage is trained: its best epoch, the checkpoint to resume from, and the next one.
    running = min(at_once, trials) * (named + full * 2)
    # The winner is laid out once more.
    needed = named * longest * (trials + 1) + running
    if free >= needed:
        return
    fits = max(0, int((free - running) / (named * longest)) - 1)
    raise StorageError(
        f"{trials} trials of up to {longest} stages, reruns among them and up to {at_once} at once,"
        f" take {needed / 1e6:,.0f} MB for checkpoints; {recipe.storage} has {free / 1e6:,.0f} MB"
        " free",
        f"the disk would be full in the middle of the search; {fits} trials fit",
        f"free some, or give another --storage{_smaller(options, fits)}",
    )


def _most_reruns(options: Options) -> int:
    finalists = min(options.num_samples, BEST + 1)
    # The only finalist needs no rerun.
    if finalists < 2:
        return 0
    return options.reruns * finalists


def _smaller(options: Options, fits: int) -> str:
    """Flags of a smaller search, to end a piece of advice; empty if nothing fits.

    Args:
        options: of the search that does not fit.
        fits: how many trials do, reruns among them.
    """
    for reruns in sorted({options.reruns, 0}, reverse=True):
        for trials in range(min(options.num_samples, fits), 1, -1):
            smaller = replace(options, num_samples=trials, reruns=reruns)
            if trials + _most_reruns(smaller) <= fits:
                return f"; or --num-samples {trials} --reruns {reruns}"
    return ""
