"""Are the intervals true? Predictions drawn from known worlds, judged, and compared with fresh tiles.

    python tests/evaluation/truth.py [--repetitions 300]

In each repetition 600 tiles x 17 labels are drawn and judged. The truth of a rule is the F2 on 200,000 fresh tiles of the
same world (20,000 for expected-F2 decoding), as the mean of its two half-fits. The table tells for each rule how often the
95 % interval covers that, and what the fit on all tiles, which is the one that is used, has more. Then pairs of equally
good files are compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np

from raytrain.evaluation import comparison, judgement, metrics, rules
from raytrain.evaluation.conditions import Conditions
from raytrain.evaluation.predictions import Predictions

TILES = 600
LABELS = 17
FRESH = 200_000
FRESH_DECODED = 20_000
REPETITIONS = 300
PAIRS = 2_000
# A recommendation that costs more F2 than this is a wrong one.
LOSS = 0.001
# As frequent as Planet's labels.
FREQUENCY = np.geomspace(0.92, 0.003, LABELS)


@dataclass(frozen=True)
class World:
    """How logits come from the truth.

    Attributes:
        name: for the table.
        scale: logits are the log odds times this: above 1 the network is too sure.
        shifts: deviation of an own shift of each label.
        skill: deviation of the log odds between tiles.
        shared: the part of it that all labels share, 0 to 1: labels are then not independent given the logits' tile.
    """

    name: str
    scale: float = 1.0
    shifts: float = 0.0
    skill: float = 2.5
    shared: float = 0.3

    def draw(self, tiles, generator):
        """Logits float32 and target uint8, both (tiles, LABELS)."""
        base = np.log(FREQUENCY / (1 - FREQUENCY)) * 1.5
        own = generator.normal(size=(tiles, LABELS))
        common = generator.normal(size=(tiles, 1))
        odds = base + self.skill * (np.sqrt(1 - self.shared) * own + np.sqrt(self.shared) * common)
        target = generator.random(odds.shape) < metrics.sigmoid(odds)
        shift = np.random.default_rng(1).normal(size=LABELS) * self.shifts
        return (odds * self.scale + shift).astype(np.float32), target.astype(np.uint8)


WORLDS = (
    World("calibrated"),
    World("too sure", scale=2.0),
    World("labels shifted", scale=1.3, shifts=1.0),
)


def named(logits, target):
    names = tuple(f"t{row:04}" for row in range(len(logits)))
    return Predictions(names, logits, target, tuple(f"label_{k}" for k in range(LABELS)))


class Fresh:
    """Many tiles of a world, on which the F2 of a decision is as good as its true one."""

    def __init__(self, world):
        self.logits, self.target = world.draw(FRESH, np.random.default_rng(99))
        self.probability = metrics.sigmoid(self.logits)

    def f2(self, decision):
        if isinstance(decision, rules.Thresholds):
            predicted = self.probability > decision.cuts
            return metrics.f2_per_tile(predicted, self.target).mean()
        some = slice(FRESH_DECODED)
        labels = decision.labels(self.logits[some])
        return metrics.f2_per_tile(labels, self.target[some]).mean()


@dataclass(frozen=True)
class Truth:
    """What `repetitions` found, by rule.

    Attributes:
        covered: share of repetitions whose interval covers the true F2.
        gap: mean of the true F2 of the fit on all tiles less that of the half-fits.
        true: mean true F2 of the half-fits.
        recommended: share of repetitions in which the rule was recommended.
        wrong: share of repetitions whose recommended rule, as fitted on all tiles, truly loses more than LOSS against 0.2.
    """

    covered: dict[str, float]
    gap: dict[str, float]
    true: dict[str, float]
    recommended: dict[str, float]
    wrong: float


def repetitions(world, count=REPETITIONS):
    """Judges `count` draws of a world."""
    fresh = Fresh(world)
    at_default = fresh.f2(rules.default(LABELS))
    covered = {name: [] for name in rules.RULES}
    gap, true = {name: [] for name in rules.RULES}, {name: [] for name in rules.RULES}
    chosen, wrong = [], []
    for seed in range(count):
        found = judgement.judge(named(*world.draw(TILES, np.random.default_rng(seed))))
        losses = {}
        for name in rules.RULES:
            halves = np.mean([fresh.f2(fit[name]) for fit in found.fits])
            whole = fresh.f2(found.fitted[name])
            score = found.scores[name]
            covered[name].append(score.low <= halves <= score.high)
            gap[name].append(whole - halves)
            true[name].append(halves)
            losses[name] = _default(name, fresh, at_default) - whole
        chosen.append(found.recommended)
        wrong.append(losses[found.recommended] > LOSS)
    return Truth(
        covered={name: float(np.mean(values)) for name, values in covered.items()},
        gap={name: float(np.mean(values)) for name, values in gap.items()},
        true={name: float(np.mean(values)) for name, values in true.items()},
        recommended={name: chosen.count(name) / count for name in rules.RULES},
        wrong=float(np.mean(wrong)),
    )


def _default(name, fresh, at_default):
    """The F2 of 0.2 on the tiles that the rule's own was computed on."""
    if name != "expected":
        return at_default
    some = slice(FRESH_DECODED)
    predicted = fresh.probability[some] > metrics.THRESHOLD
    return metrics.f2_per_tile(predicted, fresh.target[some]).mean()


def called_different(count=PAIRS):
    """Share of pairs of equally good files whose interval leaves 0 out, by rule: both are the truth with noise of one size."""
    world = WORLDS[0]
    different = dict.fromkeys(rules.RULES.values(), 0)
    for seed in range(count):
        generator = np.random.default_rng(10_000 + seed)
        logits, target = world.draw(TILES, generator)
        noisy = (logits + generator.normal(size=logits.shape) for _ in range(2))
        first, second = (named(values.astype(np.float32), target) for values in noisy)
        found = comparison.compare(first, second, Conditions(seed=seed))
        for name, score in found.scores.items():
            different[name] += score.verdict != "no difference"
    return {name: number / count for name, number in different.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    print(f"| world | rule | true F2 | covered | fit on all, more | recommended |\n{'| --- ' * 6}|")
    for world in WORLDS:
        began = time.monotonic()
        truth = repetitions(world, options.repetitions)
        for name, title in rules.RULES.items():
            print(
                f"| {world.name} | {title} | {truth.true[name]:.4f} | {truth.covered[name]:.1%} | "
                f"{truth.gap[name]:+.4f} | {truth.recommended[name]:.1%} |"
            )
        print(
            f"{world.name}: recommended rule worse than 0.2 by more than {LOSS} in {truth.wrong:.1%}; "
            f"{time.monotonic() - began:.0f} s",
            file=sys.stderr,
        )
    shares = called_different(options.pairs)
    found = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
    print(f"\nequally good files whose interval leaves 0 out, of {options.pairs:,} pairs: {found}")
    print("only the first of these rules gets a verdict")


if __name__ == "__main__":
    main()
