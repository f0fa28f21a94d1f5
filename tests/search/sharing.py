"""What sharing stages and stopping early save on real tiles, and whether the same trials come out.

    python tests/search/sharing.py --dataset DATASET --weights resnet18.pth --out sharing

The first 12 different trials that the space draws with seed 0 are trained three times in this process, one after the other:
each alone, sharing their stages, and sharing with the model that stops them. Then a search in which the model also proposes
them. DATASET is an ingested one; resnet18.pth are weights to start from. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from raytrain import storage
from raytrain.config import load_recipe, parse_yaml
from raytrain.data.dataset import open_dataset
from raytrain.distributed import search_setup, trial
from raytrain.distributed.preflight import check_recipe
from raytrain.distributed.search_resources import facts_here
from raytrain.distributed.search_setup import Options, Setup
from raytrain.distributed.stage_shelf import StageShelf
from raytrain.evaluation.objective import objective
from raytrain.search import table as tables
from raytrain.search.advice import Proposal, Verdict, drawn_anew
from raytrain.search.advisor import ModelAdvisor
from raytrain.search.candidates import chain_of
from raytrain.search.chance import RandomAdvisor
from raytrain.search.failures import End, How
from raytrain.search.outcomes import Found
from raytrain.search.planner import Parts, Planner
from raytrain.search.space import Draw
from raytrain.search.supply import Limits
from raytrain.search.table import State
from raytrain.training import loop, stages
from raytrain.training.services import Hooks
from raytrain.worker import Worker

TRIALS = 12
WORKER = Worker(cpus=1)


class Given:
    """Proposes given chains in their order, and leaves the rest to another advisor."""

    def __init__(self, advisor, chains):
        self.advisor, self.chains = advisor, chains

    def propose(self, number, under_way, taken, trained):
        if number >= len(self.chains):
            return None
        return Proposal(self.chains[number], self.chains[number].cost_left(trained))

    def hear(self, chain, stage, score):
        self.advisor.hear(chain, stage, score)

    def verdict(self, chain, stage):
        return self.advisor.verdict(chain, stage)

    def finalists(self, count):
        return self.advisor.finalists(count)


def setup_in(options, place):
    """The search in a storage of its own."""
    values = {"dataset": options.dataset, "storage": str(Path(options.out) / place)}
    if options.weights:
        values["model"] = {"weights": options.weights}
    recipe, dataset = check_recipe(load_recipe(options.config, values))
    content = parse_yaml(Path(options.space).read_text(), options.space)
    asked = Options(num_samples=options.trials)
    score = objective(None, dataset.task)
    setup = Setup(recipe, content, asked, score, facts_here(recipe, WORKER), 0)
    return replace(setup, stored_size=search_setup.stored_size_of(setup.space, dataset)), dataset


def first_draws(candidates, count):
    """The first different chains that the space draws with seed 0."""
    rng = np.random.default_rng(0)
    found = []
    taken = set()
    while len(found) < count:
        chain = drawn_anew(candidates.source, rng, lambda one: one.keys[-1] in taken)
        taken.add(chain.keys[-1])
        found.append(chain)
    return found


def run(options, place, choose):
    """A search with one slot in this process. `choose` makes its advisor. Returns its table."""
    setup, dataset = setup_in(options, place)
    candidates = search_setup.candidates_of(setup, dataset)
    directory = storage.join(setup.recipe.storage, "search")
    parts = Parts(
        table=tables.read(directory),
        candidates=candidates,
        advisor=choose(candidates),
        shelf=StageShelf(setup.recipe, setup.score.key, dataset.task),
        limits=Limits(options.trials),
        score=setup.score,
        slots=lambda: 1,
        reruns=lambda table: (),
    )
    planner = Planner(parts)
    completion = trial.Completion(dataset, setup.facts, setup.stored_size)
    while (row := planner.next_trial()) is not None:
        recipe = completion(candidates.space.recipe(Draw(row.schedule, row.values)))
        train_chain(planner, row, stages.plans(recipe, row.keys), dataset)
    return parts.table


def train_chain(planner, row, plans, dataset):
    """Trains what a trial lacks, as its process does."""
    for number, plan in enumerate(plans, 1):
        known = stages.find(plan)
        outcome = known or stages.train(plan, dataset, train_here)
        score = outcome.scores.get(planner.parts.score.key)
        found = Found(score, outcome.seconds, outcome.reason)
        if planner.stage_done(row.number, number, found, trained=known is None):
            break
    planner.ended(row.number, End(How.DONE))


def train_here(recipe, path):
    metrics = loop.fit(recipe, open_dataset(recipe.dataset), path, WORKER, Hooks())
    return metrics | {"machine": stages.machine_of(WORKER.device)}


def alone(options):
    """Each trial in a storage of its own. Returns (rows, seconds, epochs)."""
    rows = []
    for number in range(options.trials):

        def choose(candidates, number=number):
            chains = first_draws(candidates, options.trials)
            return Given(RandomAdvisor(candidates.source, 0), [chains[number]])

        one = argparse.Namespace(**{**vars(options), "trials": 1})
        rows += run(one, f"alone/{number}", choose).trials
    return rows


def work(root):
    """Seconds and epochs of all stages below a folder."""
    outcomes = [json.loads(p.read_text()) for p in Path(root).rglob("outcome.json")]
    return sum(o["seconds"] for o in outcomes), sum(o["epochs"] for o in outcomes), len(outcomes)


def seconds_alone(root):
    """Mean seconds of each stage that was trained for trials alone, by its key."""
    found = collections.defaultdict(list)
    for path in (Path(root) / "alone").rglob("outcome.json"):
        found[path.parent.name].append(json.loads(path.read_text())["seconds"])
    return {key: np.mean(seconds) for key, seconds in found.items()}


def saved(root, name):
    """Share of the seconds of `alone` that was saved, where each stage counts with its seconds there.

    So what else runs on the machine does not matter. None where other stages were trained.
    """
    alone = seconds_alone(root)
    keys = [path.parent.name for path in (Path(root) / name).rglob("outcome.json")]
    if not set(keys) <= set(alone):
        return None
    return 1 - sum(alone[key] for key in keys) / work(Path(root) / "alone")[0]


def replayed(table, candidates):
    """How many verdicts and proposals of a table the model gives again from the recorded outcomes alone."""
    same = 0
    asked = 0
    for row in table.trials:
        for verdict in row.verdicts:
            advisor = ModelAdvisor(candidates.source, candidates.space.given.train.seed)
            for heard in table.heard[: verdict.heard]:
                advisor.hear(chain_of(table.trials[heard.trial]), heard.stage, heard.score)
            again = advisor.verdict(chain_of(row), verdict.stage)
            asked += 1
            same += again == Verdict(verdict.stops, verdict.mean, verdict.sd, verdict.best)
    return same, asked


def proposals_again(table, candidates):
    """How many trials of a table the model proposes again from what was known then."""
    same = 0
    for row in table.trials:
        before = table.trials[: row.number]
        advisor = ModelAdvisor(candidates.source, candidates.space.given.train.seed)
        for heard in table.heard[: row.heard]:
            advisor.hear(chain_of(table.trials[heard.trial]), heard.stage, heard.score)
        known = {table.trials[h.trial].keys[h.stage - 1] for h in table.heard[: row.heard]}
        # With one slot, every trial has ended before the next one is drawn.
        proposal = advisor.propose(row.number, [], {one.keys[-1] for one in before}, known)
        same += proposal.chain.keys == row.keys
    return same, len(table.trials)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--weights", default="")
    parser.add_argument("--out", default="sharing")
    parser.add_argument("--config", default="docs/spaces/planet-small.yaml")
    parser.add_argument("--space", default="docs/spaces/planet.yaml")
    parser.add_argument("--trials", type=int, default=TRIALS)
    options = parser.parse_args()
    began = time.monotonic()
    setup, dataset = setup_in(options, "shared")
    candidates = search_setup.candidates_of(setup, dataset)
    seed = setup.recipe.train.seed
    chains = first_draws(candidates, options.trials)
    single = alone(options)
    shared = run(
        options,
        "shared",
        lambda c: Given(RandomAdvisor(c.source, seed), first_draws(c, options.trials)),
    )
    stopped = run(
        options,
        "stopped",
        lambda c: Given(ModelAdvisor(c.source, seed), first_draws(c, options.trials)),
    )
    model = run(options, "model", lambda c: ModelAdvisor(c.source, seed))

    print("\n| trial | drawn | score after each stage | stopped after |\n| --- | --- | --- | --- |")
    for row, other in zip(shared.trials, stopped.trials, strict=True):
        values = ", ".join(f"{path} {value}" for path, value in row.values.items())
        scores = ", ".join(f"{part.score:.4f}" for part in row.parts)
        after = len(other.parts) if other.state is State.STOPPED else "-"
        print(f"| {row.number} | {row.schedule}: {values} | {scores} | {after} |")
    print("\n| | seconds | saved | stages | epochs | best |\n| --- | --- | --- | --- | --- | --- |")
    root = Path(options.out)
    for name, rows in (
        ("alone", single),
        ("shared", shared.trials),
        ("stopped", stopped.trials),
        ("model", model.trials),
    ):
        seconds, epochs, count = work(root / name)
        best = max(row.score for row in rows if row.score is not None)
        share = saved(root, name)
        words = "-" if share is None else f"{share:.0%}"
        print(f"| {name} | {seconds:.0f} | {words} | {count} | {epochs} | {best:.4f} |")
    of_alone = [[part.score for part in row.parts] for row in single]
    of_shared = [[part.score for part in row.parts] for row in shared.trials]
    print(f"\nscores alone and shared equal to the last digit: {of_alone == of_shared}")
    tree = {key for chain in chains for key in chain.keys}
    print(f"stages of the tree {len(tree)}, trained {work(root / 'shared')[2]}")
    best = max(shared.trials, key=lambda row: row.score)
    print(
        f"the best trial survived the stops: {stopped.trials[best.number].state is State.COMPLETE}"
    )
    most = max(len(row.parts) for row in shared.trials)
    for stage in range(1, most):
        longer = [row for row in shared.trials if len(row.parts) > stage]
        found = spearmanr([r.parts[stage - 1].score for r in longer], [r.score for r in longer])
        print(
            f"rank correlation of stage {stage} with the end, {len(longer)} trials: {found.statistic:.2f}"
        )
    print("verdicts given again by a replay: {} of {}".format(*replayed(stopped, candidates)))
    print("proposals given again by a replay: {} of {}".format(*proposals_again(model, candidates)))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
