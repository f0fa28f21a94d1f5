"""Made-up worlds in which a search trains nothing: every chain has a true score, and each seed another noise.

The kinds:

    base     each stage has a best rate; half of what an early stage loses is healed
    inter    the best rate of a stage moves with the rate of the one before it
    cliff    a rate that is far too high costs much more
    decor    early stages say little: nine tenths of what they lose are healed
    flat     the loss grows slowly far from the best rate
    late     the worth of a list of stages shows only at the end, and misleads before
    noisy    twice the noise of a seed

Scores are about those of the lesson: 0.93 at best, seeds scatter by 0.0015.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from raytrain.search.advice import Source
from raytrain.search.chains import Axes, Axis, Chain

KINDS = ("base", "inter", "cliff", "decor", "flat", "late", "noisy")
# For each list its stages: size, epochs, and what a step costs (a frozen one less).
LISTS = {
    "lesson": ((128, 5, 0.75), (128, 5, 1), (256, 5, 0.75), (256, 5, 1)),
    "ramp": ((64, 5, 0.75), (128, 5, 1), (256, 5, 0.75), (256, 5, 1)),
    "three": ((128, 5, 0.75), (192, 5, 1), (256, 5, 1)),
}
RATES = 7
DECAYS = 3
NOISE = 0.0015
BEST = 0.93
# What a chain lacks for each stage that is not done.
PER_STAGE = 0.01


def work(stage):
    """Of a stage, in pixels."""
    size, epochs, share = stage
    return size**2 * epochs * share


WHOLE = sum(work(stage) for stage in LISTS["lesson"])
COSTS = {name: tuple(work(stage) / WHOLE for stage in LISTS[name]) for name in LISTS}


def place(level, levels):
    """The coordinate of a level of a grid."""
    return level / (levels - 1)


def level_of(coordinate, levels):
    """The level of a coordinate."""
    return round(coordinate * (levels - 1))


def chain_of(schedule, decay, rates):
    """A chain from the levels of its fields. Lists share their first stage if it is the same."""
    keys = []
    for done in range(1, len(rates) + 1):
        begun = LISTS[schedule][0] if done == 1 else schedule
        keys.append(f"{begun} {decay} {tuple(rates[:done])}")
    return Chain(
        schedule=schedule,
        shared=(place(decay, DECAYS),),
        stages=tuple((place(rate, RATES),) for rate in rates),
        keys=tuple(keys),
        costs=COSTS[schedule],
    )


def levels(chain):
    """The level of the decay, and those of the rates."""
    rates = [level_of(stage[0], RATES) for stage in chain.stages]
    return level_of(chain.shared[0], DECAYS), rates


def draw(rng):
    """A random chain."""
    schedule = list(LISTS)[rng.integers(len(LISTS))]
    rates = [int(rng.integers(RATES)) for _ in LISTS[schedule]]
    return chain_of(schedule, int(rng.integers(DECAYS)), rates)


def near(chain, rng):
    """A neighbour: each field moves by up to two levels with a chance of a half, the decay with a quarter."""
    decay, rates = levels(chain)
    moved = [stepped(rate, RATES, 0.5, rng) for rate in rates]
    return chain_of(chain.schedule, stepped(decay, DECAYS, 0.25, rng), moved)


def stepped(level, levels_in_all, chance, rng):
    if rng.random() >= chance:
        return level
    return int(np.clip(level + rng.choice([-2, -1, 1, 2]), 0, levels_in_all - 1))


def source():
    """The space of all worlds."""
    rate_axes = {}
    for name, stages in LISTS.items():
        rate_axes[name] = tuple((Axis(f"stages.{i}.lr"),) for i in range(1, len(stages) + 1))
    return Source(Axes((Axis("train.wd"),), rate_axes), draw, near)


@dataclass(frozen=True)
class World:
    """What training would give.

    Attributes:
        kind: one of KINDS.
        seed: of the world.
        optima: best rate of each stage of each list, in levels.
        weights: loss by stage for one level away from it, squared.
        lists: worth of each list.
        decays: worth of each decay.
    """

    kind: str
    seed: int
    optima: dict
    weights: dict
    lists: dict
    decays: np.ndarray

    @property
    def noise(self):
        """Standard deviation of scores over seeds."""
        if self.kind == "noisy":
            return 2 * NOISE
        return NOISE

    def true(self, chain, stages=None):
        """The score of a chain after some stages, or all, without noise."""
        length = chain.length
        done = stages or length
        # A stage that lists share has one score: that of the first of them.
        schedule = chain.schedule
        if done == 1:
            schedule = first_with(LISTS[schedule][0])
        missing = PER_STAGE * (len(LISTS[schedule]) - done)
        decay, rates = levels(chain)
        worth = self._list_worth(schedule, done) + self.decays[decay]
        return BEST - missing + worth - self._loss(schedule, rates[:done])

    def seen(self, chain, stages):
        """The score after some stages that a search sees: the same for all chains with that key."""
        key = f"{self.seed} {chain.keys[stages - 1]}"
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        return self.true(chain, stages) + self.noise * rng.normal()

    def best(self):
        """The highest true score: each rate in turn is set to its best level, from several starts."""
        highest = -np.inf
        decay = int(np.argmax(self.decays))
        for schedule, stages in LISTS.items():
            for start in range(20):
                rng = np.random.default_rng(start)
                rates = [int(rng.integers(RATES)) for _ in stages]
                highest = max(highest, self._climb(schedule, decay, rates))
        return highest

    def _climb(self, schedule, decay, rates):
        for _ in range(4):
            for stage in range(len(rates)):
                scores = []
                for rate in range(RATES):
                    tried = [*rates[:stage], rate, *rates[stage + 1 :]]
                    scores.append(self.true(chain_of(schedule, decay, tried)))
                rates[stage] = int(np.argmax(scores))
        return max(scores)

    def _list_worth(self, schedule, done):
        worth = self.lists[schedule]
        if self.kind == "late" and done < len(LISTS[schedule]):
            return -0.5 * worth
        return worth

    def _loss(self, schedule, rates):
        healed = 0.1 if self.kind == "decor" else 0.5
        total = 0.0
        before = 0.0
        for stage, rate in enumerate(rates):
            optimum = self.optima[schedule, stage]
            if self.kind == "inter":
                optimum += 0.5 * before
            away = rate - optimum
            before = away
            loss = self._stage_loss(self.weights[schedule, stage], away)
            if stage + 1 < len(rates):
                loss *= healed
            total += loss
        return total

    def _stage_loss(self, weight, away):
        if self.kind == "flat":
            return weight * 4 * np.log1p(away**2 / 2)
        if self.kind == "cliff" and away > 1.5:
            return weight * away**2 + 0.01 * (away - 1.5)
        return weight * away**2


def first_with(stage):
    """The first list that begins with a stage."""
    for name, stages in LISTS.items():
        if stages[0] == stage:
            return name
    raise ValueError(stage)


def make(kind, seed):
    """Draws a world."""
    rng = np.random.default_rng(seed)
    optima, weights = {}, {}
    for name, stages in LISTS.items():
        for stage in range(len(stages)):
            optima[name, stage] = rng.uniform(1, RATES - 2)
            weights[name, stage] = rng.uniform(0.0004, 0.0016)
    for name, stages in LISTS.items():
        first = first_with(stages[0])
        optima[name, 0] = optima[first, 0]
        weights[name, 0] = weights[first, 0]
    worths = dict(zip(LISTS, rng.normal(0, 0.002, len(LISTS)), strict=True))
    return World(kind, seed, optima, weights, worths, rng.normal(0, 0.001, DECAYS))
