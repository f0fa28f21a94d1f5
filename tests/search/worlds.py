"""Which search finds the better chain for the same training cost, in made-up worlds? Nothing trains.

    python tests/search/worlds.py --worlds 100 --budget 12 --slots 1 --methods model,tpe,random

Prints the mean regret of each method in each kind of world, x 10,000, with its standard error, and the model's share of
that of TPE. Regret is the true score of the best chain less that of the chosen one. A budget of 1 is the cost of the given
recipe; two reruns choose among the three finalists, and come on top. `made_up` describes the worlds, `baselines` the peers.
"""

import argparse
import heapq
import time
from dataclasses import dataclass

import baselines
import made_up
import numpy as np

from raytrain.search.advisor import ModelAdvisor
from raytrain.search.chance import RandomAdvisor

FINALISTS = 3
RERUNS = 2
# Chains that wait, for each slot, until the stage that they lack is trained by another one.
WAITING_PER_SLOT = 2
UNIT = 10_000


@dataclass
class Run:
    """A chain that has a slot.

    Attributes:
        chain: the chain.
        number: no two have the same.
        stages: how many of its stages are done.
    """

    chain: made_up.Chain
    number: int
    stages: int = 0

    def going_to_train(self, key):
        """Whether a stage is still before it."""
        return key in self.chain.keys[self.stages :]


@dataclass(frozen=True)
class Result:
    """What a search came to.

    Attributes:
        finalists: its best chains, the best one first.
        spent: cost of all stages that were trained.
        drawn: number of chains that were proposed.
        finished: number of those that came to their end.
    """

    finalists: list
    spent: float
    drawn: int
    finished: int


def simulate(world, search, budget, slots):
    """Runs a search on a clock on which a stage takes as long as it costs.

    Args:
        world: gives the scores.
        search: has propose(taken, under_way, trained), stage_ended(chain, stages, score, fresh) and finalists(count).
        budget: no chain starts once this much is spent.
        slots: how many chains train at once.
    """
    scores, taken = {}, set()
    waiting, running, ends = [], [], []
    spent, finished, started = 0.0, 0, 0

    def next_chain():
        """The next chain that may start: no running one is going to train the stage that it lacks."""
        for chain in waiting:
            if startable(chain, scores, running):
                waiting.remove(chain)
                return chain
        while len(waiting) < WAITING_PER_SLOT * slots:
            under_way = [run.chain for run in running] + waiting
            chain = search.propose(taken, under_way, trained_or_soon(scores, running))
            if chain is None:
                return None
            taken.add(chain.keys[-1])
            if startable(chain, scores, running):
                return chain
            waiting.append(chain)
        return None

    def go_on(run, now):
        """Starts the next stage of a run that lacks one. Returns its cost, or None where the run ends."""
        chain = run.chain
        while run.stages < chain.length:
            key = chain.keys[run.stages]
            if key not in scores:
                cost = chain.costs[run.stages]
                heapq.heappush(ends, (now + cost, run.number, run))
                return cost
            run.stages += 1
            if search.stage_ended(chain, run.stages, scores[key], fresh=False):
                return None
        return None

    now = 0.0
    while True:
        while len(running) < slots and spent < budget:
            chain = next_chain()
            if chain is None:
                break
            started += 1
            run = Run(chain, started)
            cost = go_on(run, now)
            if cost is None:
                finished += run.stages == chain.length
                continue
            running.append(run)
            spent += cost
        if not ends:
            return Result(search.finalists(FINALISTS), spent, len(taken), finished)
        now, _, run = heapq.heappop(ends)
        run.stages += 1
        chain = run.chain
        key = chain.keys[run.stages - 1]
        scores[key] = world.seen(chain, run.stages)
        stopped = search.stage_ended(chain, run.stages, scores[key], fresh=True)
        cost = None if stopped else go_on(run, now)
        if cost is not None:
            spent += cost
            continue
        running.remove(run)
        finished += run.stages == chain.length


def startable(chain, scores, running):
    """Whether no running chain is going to train the first stage that a chain lacks."""
    for key in chain.keys:
        if key not in scores:
            return not any(run.going_to_train(key) for run in running)
    return True


def trained_or_soon(scores, running):
    """Keys of stages that cost nothing: they are trained, or a running chain is going to train them."""
    keys = set(scores)
    for run in running:
        keys.update(run.chain.keys)
    return keys


class Advised:
    """An advisor of the product, as a search of the simulation."""

    def __init__(self, advisor):
        self._advisor = advisor
        self._number = 0
        self.slowest = 0.0

    def propose(self, taken, under_way, trained):
        self._number += 1
        began = time.perf_counter()
        proposal = self._advisor.propose(self._number, under_way, taken, trained)
        self.slowest = max(self.slowest, time.perf_counter() - began)
        if proposal is None:
            return None
        return proposal.chain

    def stage_ended(self, chain, stages, score, fresh):
        self._advisor.hear(chain, stages, score)
        # The proposal knew of stages that were trained already.
        return fresh and self._advisor.verdict(chain, stages).stop

    def finalists(self, count):
        return self._advisor.finalists(count)


def method_named(name, seed, slots):
    """A search by its name."""
    if name == "model":
        return Advised(ModelAdvisor(made_up.space(), seed))
    if name == "draws":
        return Advised(RandomAdvisor(made_up.space(), seed))
    if name == "random":
        return baselines.RandomHalving(made_up.space(), seed, slots)
    if name == "tpe":
        return baselines.TpeHalving(made_up, seed, slots)
    raise SystemExit(f"there is no method {name}: model, draws, random, tpe")


def regret(world, finalists, seed):
    """Of the finalist that its reruns name."""
    means = []
    for place, chain in enumerate(finalists):
        rng = np.random.default_rng((seed, place))
        means.append(world.true(chain) + world.noise / RERUNS**0.5 * rng.normal())
    return world.best() - world.true(finalists[int(np.argmax(means))])


def measured(kind, method, options):
    """Regrets in many worlds of a kind, float64 (W,)."""
    found = []
    for seed in range(options.first, options.first + options.worlds):
        world = made_up.make(kind, seed)
        search = method_named(method, seed, options.slots)
        result = simulate(world, search, options.budget, options.slots)
        found.append(regret(world, result.finalists, seed))
    return np.array(found)


def line(name, regrets, seconds):
    """Mean and standard error of regrets, in words."""
    error = regrets.std() / len(regrets) ** 0.5
    mean = regrets.mean()
    return f"{name:8} {UNIT * mean:6.2f} ± {UNIT * error:4.2f}   ({seconds:.0f} s)"


def compare(first, second):
    """The share of two means, with the standard error that their worlds in pairs give."""
    share = first.mean() / second.mean()
    error = (first - share * second).std() / len(first) ** 0.5 / second.mean()
    return f"{share:.2f} ± {error:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    parser.add_argument("--budget", type=float, default=12)
    parser.add_argument("--kinds", default=",".join(made_up.KINDS))
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--methods", default="model,tpe,random")
    options = parser.parse_args()
    methods = options.methods.split(",")
    everything = {method: [] for method in methods}
    for kind in options.kinds.split(","):
        for method in methods:
            began = time.perf_counter()
            regrets = measured(kind, method, options)
            everything[method].append(regrets)
            seconds = time.perf_counter() - began
            print(f"{kind:6} {line(method, regrets, seconds)}", flush=True)
        if "model" in methods and "tpe" in methods:
            share = compare(everything["model"][-1], everything["tpe"][-1])
            print(f"{kind:6} model / tpe {share}", flush=True)
    together = {method: np.concatenate(regrets) for method, regrets in everything.items()}
    for method, regrets in together.items():
        print(f"all    {method:8} {UNIT * regrets.mean():6.2f}")
    if "model" in methods and "tpe" in methods:
        print(f"all    model / tpe {compare(together['model'], together['tpe'])}")


if __name__ == "__main__":
    main()
