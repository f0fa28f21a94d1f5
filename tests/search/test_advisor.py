"""Proposals, verdicts and finalists of a search, in small made-up spaces."""

import json
import time

import made_up
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from raytrain.search.advice import Source
from raytrain.search.advisor import FIRST_DRAWS, LEAST_FINISHED, ModelAdvisor, expected_improvement
from raytrain.search.chains import Axes, Axis, Chain
from raytrain.search.chance import RandomAdvisor
from raytrain.search.kernel import Hyperparameters
from raytrain.search.model import Fit

WORLD = made_up.make("base", 0)


def played(advisor, proposals, world=WORLD):
    """Trains chains one after the other. Returns the table: chain, last stage, whether it was stopped."""
    table, taken, trained = [], set(), set()
    for number in range(proposals):
        proposal = advisor.propose(number, [], taken, trained)
        chain = proposal.chain
        taken.add(chain.keys[-1])
        table.append(train(advisor, chain, trained, world))
    return table


def train(advisor, chain, trained, world):
    for stages in range(1, chain.length + 1):
        trained.add(chain.keys[stages - 1])
        advisor.hear(chain, stages, world.seen(chain, stages))
        if advisor.verdict(chain, stages).stop:
            return chain, stages, True
    return chain, chain.length, False


def advisor_after(proposals, seed=3):
    advisor = ModelAdvisor(made_up.source(), seed)
    table = played(advisor, proposals)
    taken = {chain.keys[-1] for chain, _, _ in table}
    return advisor, table, taken


def test_expected_improvement_is_the_integral():
    for mean, sd, best in ((0.1, 0.5, 0.3), (0.4, 0.2, 0.1), (-1.0, 0.7, 0.2)):
        expected, _ = quad(
            lambda score, m=mean, s=sd, b=best: (score - b) * norm.pdf(score, m, s),
            best,
            mean + 12 * sd,
        )
        found = expected_improvement(np.array([mean]), np.array([sd]), best)
        assert found[0] == pytest.approx(expected, rel=1e-6)


def test_the_first_proposals_are_random():
    advisor = ModelAdvisor(made_up.source(), seed=0)
    table = played(advisor, FIRST_DRAWS)
    for number in range(FIRST_DRAWS):
        assert advisor_draw(number) == table[number][0]


def advisor_draw(number):
    """The chain that the space draws for a proposal of seed 0."""
    return made_up.draw(np.random.default_rng((0, number)))


def test_a_replay_of_what_was_heard_gives_the_same_proposals_verdicts_and_finalists():
    first, table, taken = advisor_after(20)
    assert any(stopped for _, _, stopped in table)

    again = ModelAdvisor(made_up.source(), 3)
    seen, trained = set(), set()
    for number, (chain, stages, stopped) in enumerate(table):
        assert again.propose(number, [], seen, trained).chain == chain
        seen.add(chain.keys[-1])
        assert train(again, chain, trained, WORLD) == (chain, stages, stopped)
    assert again.finalists(3) == first.finalists(3)
    assert again.propose(20, [], taken, trained) == first.propose(20, [], taken, trained)


def test_an_advisor_is_rebuilt_from_a_table_of_outcomes_and_its_hyperparameters():
    first, table, taken = advisor_after(16)
    recorded = json.dumps(
        {"scores": first.fit.scores, "values": vars(first.fit.hyperparameters)}, sort_keys=True
    )
    read = json.loads(recorded)

    again = ModelAdvisor(made_up.source(), 3)
    again.restore(Fit(read["scores"], Hyperparameters(**read["values"])))
    for chain, last, _ in table:
        for stages in range(1, last + 1):
            again.hear(chain, stages, WORLD.seen(chain, stages))
    assert again.propose(16, [], taken, ()) == first.propose(16, [], taken, ())
    assert again.finalists(3) == first.finalists(3)


def test_answers_depend_on_nothing_but_what_was_heard_and_asked():
    first, table, taken = advisor_after(12)
    plain = first.propose(12, [], taken, ())
    # Other questions in between, and questions of another order, change nothing.
    chain = table[0][0]
    first.propose(99, [chain], taken, ())
    first.verdict(made_up.draw(np.random.default_rng(5)), 1)
    first.field_worth()
    assert first.propose(12, [], taken, ()) == plain

    silent = ModelAdvisor(made_up.source(), 3)
    for chain, last, _ in table:
        for stages in range(1, last + 1):
            silent.hear(chain, stages, WORLD.seen(chain, stages))
    assert silent.propose(12, [], taken, ()) == plain


def test_a_chain_under_way_is_not_proposed_again_nor_its_twin():
    advisor, _, taken = advisor_after(12)
    first = advisor.propose(12, [], taken, ())
    beside = advisor.propose(12, [first.chain], taken | {first.chain.keys[-1]}, ())
    assert beside.chain != first.chain
    # It counts with its mean: what it would teach is not expected twice.
    assert beside.improvement < first.improvement


def test_a_proposal_tells_what_it_promises():
    advisor, _, taken = advisor_after(12)
    found = advisor.propose(12, [], taken, ())
    expected = expected_improvement(np.array([found.mean]), np.array([found.sd]), found.best)
    assert found.improvement == pytest.approx(expected[0])
    assert 0.8 < found.best < 1.0


def test_a_verdict_stops_what_lies_below_the_best_by_more_than_its_deviation():
    advisor, table, _ = advisor_after(20)
    judged = 0
    for number, (chain, last, _) in enumerate(table):
        for stages in range(1, last):
            verdict = advisor.verdict(chain, stages)
            judged += verdict.stop
            assert verdict.stop == (verdict.mean + verdict.sd < verdict.best), number
    assert judged > 0


# A space of two stages whose second rate diverges where it is high.


def two_stages(first, second):
    keys = (f"{first}", f"{first} {second}")
    return Chain("two", (), ((first / 9,), (second / 9,)), keys, (0.5, 0.5))


def two_stage_source():
    def draw(rng):
        return two_stages(int(rng.integers(10)), int(rng.integers(10)))

    def near(chain, rng):
        moved = []
        for stage in chain.stages:
            level = round(stage[0] * 9)
            moved.append(int(np.clip(level + rng.choice([-1, 0, 1]), 0, 9)))
        return two_stages(*moved)

    axes = Axes((), {"two": ((Axis("stages.1.lr"),), (Axis("stages.2.lr"),))})
    return Source(axes, draw, near)


def levels_of(chain):
    return [round(stage[0] * 9) for stage in chain.stages]


def test_no_chain_stops_before_enough_are_finished():
    advisor = ModelAdvisor(two_stage_source(), seed=0)
    poor = two_stages(0, 0)
    advisor.hear(poor, 1, 0.1)
    for number in range(LEAST_FINISHED):
        verdict = advisor.verdict(poor, 1)
        assert not verdict.stop and verdict.mean is None
        other = two_stages(3 * number, 3 * number)
        advisor.hear(other, 1, 0.1 + 0.1 * number)
        advisor.hear(other, 2, 0.1 + 0.1 * number)
    verdict = advisor.verdict(two_stages(0, 1), 1)
    assert verdict.stop
    assert verdict.mean + verdict.sd < verdict.best


def test_a_trained_prefix_costs_nothing_and_draws_the_search_to_it():
    advisor = ModelAdvisor(two_stage_source(), seed=0)
    rng = np.random.default_rng(0)
    taken = set()
    for _ in range(12):
        chain = two_stages(int(rng.integers(10)), int(rng.integers(5)))
        taken.add(chain.keys[-1])
        advisor.hear(chain, 2, 0.1 * levels_of(chain)[1])
    # The first rate does not matter, so the cheapest one is as good as any.
    trained = {two_stages(4, 0).keys[0]}
    dear = [advisor.propose(number, [], taken, ()) for number in range(12, 32)]
    cheap = [advisor.propose(number, [], taken, trained) for number in range(12, 32)]
    assert {proposal.cost_left for proposal in dear} == {1.0}
    going_on = [proposal for proposal in cheap if levels_of(proposal.chain)[0] == 4]
    assert {proposal.cost_left for proposal in going_on} == {0.5}
    assert len(going_on) > 2 * sum(levels_of(proposal.chain)[0] == 4 for proposal in dear)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_diverges_is_avoided(seed):
    advisor = ModelAdvisor(two_stage_source(), seed)
    taken, diverged = set(), []
    for number in range(30):
        chain = advisor.propose(number, [], taken, ()).chain
        taken.add(chain.keys[-1])
        first, second = levels_of(chain)
        # Half of the space diverges, and the score rises up to there.
        diverged.append(second >= 5)
        advisor.hear(chain, 1, 0.8 + 0.01 * first)
        advisor.hear(chain, 2, None if second >= 5 else 0.8 + 0.01 * (first + second))
    assert np.mean(diverged[FIRST_DRAWS:]) < 0.25
    assert all(levels_of(chain)[1] < 5 for chain in advisor.finalists(5))


def test_no_chain_goes_through_a_stage_that_diverged():
    advisor = ModelAdvisor(two_stage_source(), seed=1)
    played_levels = [(first, second) for first in range(1, 10) for second in (2, 6)]
    for first, second in played_levels:
        chain = two_stages(first, second)
        advisor.hear(chain, 1, 0.5)
        advisor.hear(chain, 2, 0.9 - 0.05 * first)
    advisor.hear(two_stages(0, 0), 1, None)
    taken = {two_stages(*levels).keys[-1] for levels in played_levels}
    for number in range(40):
        assert levels_of(advisor.propose(number, [], taken, ()).chain)[0] != 0


@pytest.mark.parametrize("kind", [ModelAdvisor, RandomAdvisor])
def test_a_space_that_is_used_up_gives_no_proposal(kind):
    everything = {two_stages(a, b).keys[-1] for a in range(10) for b in range(10)}
    advisor = kind(two_stage_source(), 0)
    for level in range(10):
        advisor.hear(two_stages(level, 3), 1, 0.5)
        advisor.hear(two_stages(level, 3), 2, 0.1 * level)
    assert advisor.propose(50, [], everything, ()) is None
    left = two_stages(4, 8)
    assert advisor.propose(50, [], everything - {left.keys[-1]}, ()).chain == left


def test_a_lucky_score_among_poor_neighbours_is_not_the_first_finalist():
    advisor = ModelAdvisor(two_stage_source(), seed=0)
    rng = np.random.default_rng(0)
    for first in range(10):
        for second in range(10):
            chain = two_stages(first, second)
            score = -0.01 * ((first - 7) ** 2 + (second - 2) ** 2) + 0.05 * rng.normal()
            if (first, second) == (1, 8):
                score = 0.2
            advisor.hear(chain, 2, score)
    first, second = levels_of(advisor.finalists(1)[0])
    assert abs(first - 7) <= 2 and abs(second - 2) <= 2


def test_the_worth_of_fields_finds_the_field_that_matters():
    advisor = ModelAdvisor(two_stage_source(), seed=0)
    assert advisor.field_worth() == []
    rng = np.random.default_rng(0)
    for _ in range(40):
        chain = two_stages(int(rng.integers(10)), int(rng.integers(10)))
        advisor.hear(chain, 2, 0.1 * levels_of(chain)[1] + 0.01 * rng.normal())
    first, second = advisor.field_worth()
    assert (first.path, second.path) == ("stages.1.lr", "stages.2.lr")
    assert second.worth == pytest.approx(0.9, abs=0.15)
    assert second.worth > 5 * first.worth
    assert first.worth < 3 * first.worth_sd
    assert len(second.levels) == len(second.mean) == len(second.sd)


def test_random_draws_stop_nothing_and_rank_by_score():
    advisor = RandomAdvisor(made_up.source(), seed=0)
    table = played(advisor, 10)
    assert not any(stopped for _, _, stopped in table)
    ends = [WORLD.seen(chain, chain.length) for chain, _, _ in table]
    best = table[int(np.argmax(ends))][0]
    assert advisor.finalists(1) == [best]
    again = RandomAdvisor(made_up.source(), seed=0)
    assert played(again, 10) == table


@pytest.mark.slow
def test_a_proposal_takes_less_than_a_second_after_200_stages():
    advisor = ModelAdvisor(made_up.source(), seed=0)
    rng = np.random.default_rng(0)
    heard, taken = set(), set()
    slowest = 0.0
    while len(heard) < 200:
        chain = made_up.draw(rng)
        taken.add(chain.keys[-1])
        for stages in range(1, chain.length + 1):
            heard.add(chain.keys[stages - 1])
            advisor.hear(chain, stages, WORLD.seen(chain, stages))
        began = time.perf_counter()
        advisor.propose(len(taken), [], taken, heard)
        slowest = max(slowest, time.perf_counter() - began)
    print(f"slowest proposal, with a fit of the model: {slowest:.2f} s")
    assert slowest < 1.0
