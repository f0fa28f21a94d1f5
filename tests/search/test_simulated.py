"""The clock on which searches are compared."""

import made_up
import numpy as np
import pytest
from simulated import simulate


class Watched:
    """Random draws that note what the clock does."""

    def __init__(self, seed, stop_after=None):
        self._rng = np.random.default_rng(seed)
        self._stop_after = stop_after
        self.fresh, self.heard, self.most_under_way = [], [], 0

    def propose(self, taken, under_way, trained):
        self.most_under_way = max(self.most_under_way, len(under_way) + 1)
        # Few rates, so that chains share stages.
        schedule = list(made_up.LISTS)[self._rng.integers(3)]
        rates = [int(self._rng.integers(2)) for _ in made_up.LISTS[schedule]]
        chain = made_up.chain_of(schedule, 0, rates)
        return None if chain.keys[-1] in taken else chain

    def stage_ended(self, chain, stages, score, fresh):
        self.heard.append((chain, stages))
        if fresh:
            self.fresh.append((chain.keys[stages - 1], chain.costs[stages - 1]))
        return stages == self._stop_after

    def finalists(self, count):
        return []


@pytest.mark.parametrize("slots", [1, 4])
def test_no_stage_is_trained_twice_and_each_is_paid_once(slots):
    for seed in range(20):
        search = Watched(seed)
        result = simulate(made_up.make("base", seed), search, 8, slots)
        keys = [key for key, _ in search.fresh]
        assert len(keys) == len(set(keys))
        assert result.spent == pytest.approx(sum(cost for _, cost in search.fresh))
        assert result.finished == result.started


def test_each_chain_is_heard_from_its_first_stage_to_its_last_one():
    search = Watched(0)
    simulate(made_up.make("base", 0), search, 8, 4)
    stages_of = {}
    for chain, stages in search.heard:
        stages_of.setdefault(chain.keys[-1], []).append(stages)
    for stages in stages_of.values():
        assert stages == list(range(1, len(stages) + 1))


def test_a_stopped_chain_trains_no_further_stage():
    search = Watched(0, stop_after=2)
    result = simulate(made_up.make("base", 0), search, 3, 1)
    assert max(stages for _, stages in search.heard) == 2
    assert result.finished == 0


def test_several_slots_are_under_way_at_once():
    search = Watched(0)
    simulate(made_up.make("base", 0), search, 8, 4)
    assert search.most_under_way >= 4


def test_a_world_knows_its_best_chain():
    for kind in made_up.KINDS:
        world = made_up.make(kind, 1)
        rng = np.random.default_rng(0)
        best = world.best()
        assert all(world.true(made_up.draw(rng)) <= best + 1e-12 for _ in range(500))


def test_lists_with_the_same_first_stage_see_the_same_score_there():
    world = made_up.make("late", 2)
    lesson = made_up.chain_of("lesson", 1, [3, 1, 2, 5])
    three = made_up.chain_of("three", 1, [3, 4, 4])
    assert lesson.keys[0] == three.keys[0]
    assert world.seen(lesson, 1) == world.seen(three, 1)
    assert lesson.keys[1] != three.keys[1]
