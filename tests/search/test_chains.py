"""The model on real chains: does it know their ends better than their own scores tell?

30 chains of four stages with random rates, on Planet tiles. Each is left out in turn, and the others fit the hyperparameters.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from raytrain.search.chains import Axes, Axis, Chain
from raytrain.search.model import Fit, Model
from raytrain.search.points import Point

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RAYTRAIN_REAL_DATA", ROOT.parent / "shared" / "data"))
RECORDED = DATA.parent / "reference" / "search" / "chains.json"
# The lowest rate of each stage; the highest one is 100 times as high.
LOWEST = (0.001, 0.0003, 0.0005, 0.0001)
RATES = tuple((Axis(f"stages.{stage}.lr"),) for stage in (1, 2, 3, 4))
AXES = Axes(shared=(), stages={"four": RATES})
# More scores than there are: no fit is due any more.
NEVER_AGAIN = 10**6


def random_chains():
    """The chains, and the F2 of their stages, float64 (30, 4)."""
    table = json.loads(RECORDED.read_text())
    chains, scores = [], []
    for row in table["chains"]:
        named = dict(zip(table["columns"], row, strict=True))
        if named["seed"] != 42:
            continue
        rates = [named[name] for name in "abcd"]
        places = np.log(np.divide(rates, LOWEST)) / np.log(100)
        keys = tuple(str(rates[:stage]) for stage in (1, 2, 3, 4))
        stages = tuple((float(place),) for place in places)
        chains.append(Chain("four", (), stages, keys, (0.25,) * 4))
        scores.append(named["f2"])
    return chains, np.array(scores)


def expected_ends(chains, scores, left_out):
    """What is expected of the end of a chain after 0, 1, 2 and 3 of its stages."""
    model = Model(AXES, seed=0)
    for number, chain in enumerate(chains):
        if number != left_out:
            for stage in (1, 2, 3, 4):
                model.hear(Point(chain, stage), scores[number, stage - 1])
    model.restore(Fit(NEVER_AGAIN, model.fit.hyperparameters))
    chain = chains[left_out]
    means = []
    for stage in (1, 2, 3, 4):
        means.append(model.posterior([chain]).ends([chain]).mean[0])
        model.hear(Point(chain, stage), scores[left_out, stage - 1])
    return means


@pytest.mark.real
def test_the_model_ranks_real_chains_by_their_rates_and_by_their_own_scores():
    if not RECORDED.exists():
        pytest.skip(f"no recorded chains at {RECORDED}")
    chains, scores = random_chains()
    assert len(chains) == 30
    means = np.array([expected_ends(chains, scores, number) for number in range(30)])

    ranks = [spearmanr(means[:, stages], scores[:, 3])[0] for stages in range(4)]
    print("rank correlation with the end after 0, 1, 2, 3 stages:", np.round(ranks, 2))
    assert min(ranks[:3]) >= 0.4
    assert ranks[3] >= 0.55
