"""How often are equal finalists called different, and how often is a better one found?

    python tests/search/equal_finalists.py [--searches 2000]

In each search four finalists are trained again with fresh seeds, and `finals.decide` names the winner. The first one is the
given recipe; costs are drawn, so the cheapest may be any of them. A score is the finalist's worth, plus noise of the seed,
plus noise of the tiles that stays the same at all its seeds. Reruns are handed out as `reruns.still_to_train` asks.

false: share of searches of equal finalists in which any is called better than the given recipe or than the cheapest.
found: share of searches in which the one finalist that is truly better is called better than the given recipe.
named: share of them in which it wins.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from raytrain.evaluation.score import Score
from raytrain.search import finals
from raytrain.search.finalists import Finalist, rerun_of
from raytrain.search.reruns import Reading, still_to_train

SEARCHES = 2_000
FINALISTS = 4
TILES = 400
# Standard deviations of F2: of the seed of one run, and of the tiles for the difference of two recipes.
SEED_NOISE = 0.0015
PAIR_NOISE = 0.0007
GAIN = 0.004
SCORE = Score("f2", "F2")


@dataclass(frozen=True)
class Shares:
    """What the searches found, each a share of them.

    Attributes:
        false: any finalist is called better than the given recipe or than the cheapest.
        better: the last finalist is called better than the given recipe.
        named: the last finalist wins.
        dropped: any finalist gets one rerun only.
    """

    false: float
    better: float
    named: float
    dropped: float


class Made:
    """The finalists of a made-up search. The last one is truly better by the gain."""

    def __init__(self, gain, seeds, generator):
        self.generator = generator
        # What all finalists share on a tile cancels in a difference.
        common = generator.beta(8, 1, size=TILES)
        spread = PAIR_NOISE / np.sqrt(2) * np.sqrt(TILES)
        self.per_tile = common + generator.normal(0, spread, size=(FINALISTS, TILES))
        self.per_tile[-1] += gain
        self.costs = generator.uniform(0.5, 1.5, size=FINALISTS)
        self.costs[0] = 1.0
        self.how = Reading(SCORE, tuple(range(seeds)))
        self.reruns = [{} for _ in range(FINALISTS)]

    def finalists(self):
        return [
            Finalist(number, f"trial {number}", self.costs[number], number == 0, reruns)
            for number, reruns in enumerate(self.reruns)
        ]

    def train(self):
        """Trains reruns until none is needed, as many at a time as may go."""
        while needed := still_to_train(self.finalists(), self.how):
            for number, seed in needed:
                shift = self.generator.normal(0, SEED_NOISE)
                self.reruns[number][seed] = rerun_of(self.per_tile[number] + shift)


def searches(gain, seeds, count=SEARCHES):
    """Runs made-up searches and returns the shares."""
    false, better, named, dropped = [], [], [], []
    for seed in range(count):
        made = Made(gain, seeds, np.random.default_rng(seed))
        made.train()
        finalists = made.finalists()
        verdict = finals.decide(finalists, made.how)
        cheapest = int(np.argmin(made.costs))
        against_given = any(s.verdict == finals.BETTER for s in verdict.standings)
        false.append(against_given or verdict.winner != cheapest)
        better.append(verdict.standings[-1].verdict == finals.BETTER)
        named.append(verdict.winner == FINALISTS - 1)
        dropped.append(any(s.reruns < seeds for s in verdict.standings))
    return Shares(*(float(np.mean(each)) for each in (false, better, named, dropped)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=SEARCHES)
    options = parser.parse_args()
    print("| reruns | true gain | false | found | named | one rerun only | s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for seeds in (2, 3):
        for gain in (0.0, GAIN):
            began = time.monotonic()
            shares = searches(gain, seeds, options.searches)
            # A gain makes a call right, so only searches without one tell of false calls; and the reverse.
            false, found, named = f"{shares.false:.1%}", "", ""
            if gain:
                false, found, named = "", f"{shares.better:.1%}", f"{shares.named:.1%}"
            print(
                f"| {seeds} | {gain} | {false} | {found} | {named} | {shares.dropped:.1%} | "
                f"{time.monotonic() - began:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
