"""Which search finds the better chain for the same training cost, in made-up worlds? Nothing trains.

    python tests/search/worlds.py --worlds 100 --budget 12 --slots 1 --methods model,tpe,random

Prints the mean regret of each method in each kind of world, x 10,000, with its standard error, and the model's share of
that of TPE. Regret is the true score of the best chain less that of the chosen one. A budget of 1 is the cost of the given
recipe; two reruns choose among the three finalists, and come on top. `made_up` describes the worlds, `baselines` the peers.
"""

import argparse
import time

import baselines
import driven
import made_up
import numpy as np
from simulated import FINALISTS, simulate

from raytrain.search.advisor import ModelAdvisor
from raytrain.search.chance import RandomAdvisor
from raytrain.search.supply import Limits

RERUNS = 2
MOST_TRIALS = 10_000
UNIT = 10_000


# The product's; the peers are in `baselines`.
ADVISORS = {"model": ModelAdvisor, "draws": RandomAdvisor}


def finalists_of(method, world, seed, options):
    """The finalists that a search names in a world."""
    if method in ADVISORS:
        return planned(ADVISORS[method], world, seed, options)
    if method == "random":
        peer = baselines.RandomHalving(made_up.source(), seed, options.slots)
    elif method == "tpe":
        peer = baselines.TpeHalving(made_up, seed, options.slots)
    else:
        raise SystemExit(f"there is no method {method}: model, draws, random, tpe")
    return simulate(world, peer, options.budget, options.slots).finalists


def planned(advisor, world, seed, options):
    """The finalists of a search by the product's planner, on a clock on which a stage takes as long as it costs."""
    made = []

    def begin(source):
        made.append(advisor(source, seed))
        return made[-1]

    clock = driven.World(
        made_up.source(),
        lambda key, chain, stage: world.seen(chain, stage),
        seed,
        seconds_of=lambda cost: cost,
    )
    clock.run(driven.Search("search", begin, Limits(MOST_TRIALS, options.budget), options.slots))
    return made[-1].finalists(FINALISTS)


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
        found.append(regret(world, finalists_of(method, world, seed, options), seed))
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
