"""The search and two peers on real tiles, at equal seconds of training.

    python tests/search/real_peers.py --dataset DATASET --weights resnet18.pth --out peers
        --config tests/search/small.yaml --space tests/search/small_space.yaml --fresh 2

    model    the planner of this package: stages are shared, the model proposes and stops
    optuna   OptunaSearch with ASHA, as Ray Tune has them: each trial trains from its beginning
    random   random draws with ASHA on epochs, as `raytrain tune` was before

All search the same space, one trial after the other in this process. Seconds are those of the processor, so that other work on
the machine does not count. A search draws as long as it has spent less than `--budget` trainings of the given recipe; the last
trial is finished. No method runs its finalists again: each names the trial that it holds for the best one. That one is trained
with `--fresh` other seeds, the same for all methods, and the mean of these scores is what the search is worth.
Interrupted, the same command goes on after the last search that has ended.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import sharing
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from scipy.stats import t

from raytrain import storage
from raytrain.distributed import search_setup, trial
from raytrain.distributed.stage_shelf import StageShelf
from raytrain.evaluation.intervals import ENDS
from raytrain.search import table as tables
from raytrain.search.advisor import ModelAdvisor
from raytrain.search.planner import Parts, Planner
from raytrain.search.space import Draw
from raytrain.search.supply import Limits
from raytrain.search.table import Kind
from raytrain.training import loop, stages
from raytrain.training.services import Hooks

METHODS = ("model", "optuna", "random")
SEEDS = (0, 1, 2)
FIRST_FRESH_SEED = 1000
MOST_TRIALS = 10_000
# F2 at the threshold of 0.2 is known after each epoch; the objective needs the predictions.
EPOCH_SCORE = "f2"


class Stopped(Exception):
    """The scheduler ends a trial."""


class Training:
    """Trains chains from their beginning, and counts the seconds of the processor."""

    def __init__(self, options):
        self.setup, self.dataset = sharing.setup_in(options, "runs")
        self.candidates = search_setup.candidates_of(self.setup, self.dataset)
        self.complete = trial.Completion(self.dataset, self.setup.facts, self.setup.stored_size)
        self.place = Path(options.out) / "runs"
        self.seconds = 0.0

    def train(self, draw, seed=None, report=lambda metrics: None):
        """The objective after the last epoch; None if `report` raised Stopped."""
        recipe = self.candidates.space.recipe(draw)
        if seed is not None:
            train = recipe.train.model_copy(update={"seed": seed})
            recipe = recipe.model_copy(update={"train": train})
        path = self.place / "chain"
        shutil.rmtree(path, ignore_errors=True)
        began = time.process_time()
        try:
            recipe = self.complete(recipe)
            loop.fit(recipe, self.dataset, str(path), sharing.WORKER, Hooks(report))
        except Stopped:
            return None
        finally:
            self.seconds += time.process_time() - began
        scores = stages.rule_scores(str(path / "predictions.parquet"), self.dataset.task)
        return scores[self.setup.score.key]


# The methods: each returns the draw that it names, the seconds, and the number of trials


def model(options, seed, budget):
    """By the product's planner, whose clock counts the seconds of training."""
    setup, dataset = sharing.setup_in(options, f"model-{seed}")
    shutil.rmtree(setup.recipe.storage, ignore_errors=True)
    candidates = search_setup.candidates_of(setup, dataset)
    advisor = ModelAdvisor(candidates.source, seed)
    spent = [0.0]
    parts = Parts(
        table=tables.read(storage.join(setup.recipe.storage, "search")),
        candidates=candidates,
        advisor=advisor,
        shelf=StageShelf(setup.recipe, setup.score.key, dataset.task),
        limits=Limits(MOST_TRIALS, budget),
        score=setup.score,
        slots=lambda: 1,
        reruns=lambda table: (),
        clock=lambda: spent[0],
    )
    planner = Planner(parts)
    planner.enter(candidates.trial(0, Kind.GIVEN, candidates.space.given_draw()))
    completion = trial.Completion(dataset, setup.facts, setup.stored_size)
    while (row := planner.next_trial()) is not None:
        recipe = completion(candidates.space.recipe(Draw(row.schedule, row.values)))
        began = time.process_time()
        sharing.train_chain(planner, row, stages.plans(recipe, row.keys), dataset)
        spent[0] += time.process_time() - began
    shutil.rmtree(setup.recipe.storage)
    best = advisor.finalists(1)[0]
    return candidates.draw_of(best), spent[0], len(parts.table.trials)


def optuna(options, seed, budget):
    """By OptunaSearch, asked one trial after the other."""
    space = Training(options).candidates.space
    searcher = OptunaSearch(space=lambda t: ask(space, t), metric="score", mode="max", seed=seed)

    def propose(name):
        return draw_of(space, searcher.suggest(name))

    def ended(name, score):
        if score is None:
            searcher.on_trial_complete(name, error=True)
        else:
            searcher.on_trial_complete(name, {"score": score})

    return with_asha(options, budget, propose, searcher.on_trial_result, ended)


def random(options, seed, budget):
    """By random draws."""
    space = Training(options).candidates.space
    rng = np.random.default_rng(seed)

    def ignore(name, result):
        """Random draws learn nothing."""

    return with_asha(options, budget, lambda name: space.draw(rng), ignore, ignore)


def with_asha(options, budget, propose, heard, ended):
    """Trials from their beginning. The given recipe is the first one, and ASHA stops them at the ends of epochs."""
    training = Training(options)
    scheduler = ASHAScheduler(metric="score", mode="max")
    scores = []
    number = 0
    while training.seconds < budget:
        name = f"trial{number}"
        draw = training.candidates.space.given_draw()
        if number > 0:
            draw = propose(name)
        score = trained_under(scheduler, training, name, draw, heard if number else None)
        if number > 0:
            ended(name, score[1])
        if score[0] is not None:
            scores.append((score[0], draw))
        number += 1
    best = max(scores, key=lambda pair: pair[0])
    return best[1], training.seconds, number


def trained_under(scheduler, training, name, draw, heard):
    """Trains a trial under a scheduler. Returns (score if it was not stopped, last score)."""
    row = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, row)
    last = [None]
    epochs = [0]

    def report(metrics):
        epochs[0] += 1
        last[0] = metrics[EPOCH_SCORE]
        result = {"training_iteration": epochs[0], "score": last[0]}
        if heard is not None:
            heard(name, result)
        if scheduler.on_trial_result(None, row, result) == TrialScheduler.STOP:
            raise Stopped

    return training.train(draw, report=report), last[0]


def ask(space, optuna_trial):
    """Asks Optuna for a draw, field by field: the list of stages, then the place of each value in its grid.

    Ray would take a slash in a name for a level of a nested dictionary.
    """
    schedule = optuna_trial.suggest_categorical("stages", [one.name for one in space.schedules])
    for drawn in (*space.shared, *space.schedule(schedule).fields):
        levels = drawn.distribution.levels
        optuna_trial.suggest_int(f"{schedule}:{drawn.path}", 0, levels - 1)


def draw_of(space, asked):
    """The draw that Optuna has asked for."""
    schedule = space.schedule(asked["stages"])
    values = {}
    for drawn in (*space.shared, *schedule.fields):
        levels = drawn.distribution.levels
        coordinate = asked[f"{schedule.name}:{drawn.path}"] / max(1, levels - 1)
        values[drawn.path] = drawn.distribution.value(coordinate)
    return Draw(schedule.name, values)


# The benchmark


def searched(options, method, seed, budget):
    """Runs a search, and judges the draw that it names. Known results are read from their file."""
    file = Path(options.out) / f"{method}-{seed}.json"
    if file.exists():
        return json.loads(file.read_text())
    draw, seconds, trials = globals()[method](options, seed, budget)
    training = Training(options)
    fresh = [training.train(draw, FIRST_FRESH_SEED + one) for one in range(options.fresh)]
    found = {"draw": draw.to_json(), "seconds": seconds, "trials": trials, "fresh": fresh}
    file.write_text(json.dumps(found))
    print(
        f"{method} {seed}: {trials} trials, {seconds:.0f} s, named {draw.text}: {fresh}", flush=True
    )
    return found


def interval(differences):
    """Half of the 95 % interval of a mean, by Student's t over the seeds of the searches."""
    spread = np.std(differences, ddof=1) / len(differences) ** 0.5
    return float(t.ppf(ENDS[1], len(differences) - 1)) * spread


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--weights", default="")
    parser.add_argument("--out", default="peers")
    parser.add_argument("--config", default="docs/spaces/planet-small.yaml")
    parser.add_argument("--space", default="docs/spaces/planet.yaml")
    parser.add_argument("--budget", type=float, default=12)
    parser.add_argument("--fresh", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    options.trials = MOST_TRIALS
    methods = options.methods.split(",")
    training = Training(options)
    given = training.train(training.candidates.space.given_draw())
    unit = training.seconds
    print(f"the given recipe: {given:.4f} in {unit:.1f} s", flush=True)
    worth = {method: [] for method in methods}
    for seed in SEEDS:
        for method in methods:
            found = searched(options, method, seed, options.budget * unit)
            worth[method].append(np.mean(found["fresh"]))
    for method in methods:
        values = ", ".join(f"{value:.4f}" for value in worth[method])
        print(f"{method:8} {np.mean(worth[method]):.4f}   ({values})")
    for method in methods[1:]:
        difference = np.subtract(worth[methods[0]], worth[method])
        print(f"{methods[0]} - {method}: {difference.mean():+.4f} ± {interval(difference):.4f}")


if __name__ == "__main__":
    main()
