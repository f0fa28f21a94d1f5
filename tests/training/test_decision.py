"""Decisions between steps: asked as often as time says, not at every step."""

import pytest

from raytrain.training import decision
from raytrain.training.decision import Action, Decisions
from raytrain.worker import Worker


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(decision.time, "monotonic", lambda: now[0])
    return now


def asked_at(decisions, clock, seconds, steps):
    """Numbers of the steps after which rank 0 decided, when each takes so long."""
    found = []
    decisions.decide = lambda: found.append(len(found)) or Action.GO_ON
    numbers = []
    for step in range(1, steps + 1):
        clock[0] += seconds
        before = len(found)
        decisions.after_step()
        numbers += [step] if len(found) > before else []
    return numbers


def test_short_steps_are_looked_at_every_half_second_and_long_ones_after_each(clock):
    assert asked_at(Decisions(Worker(), lambda: Action.GO_ON, 60.0), clock, 0.0101, 200) == [
        1,
        50,
        99,
        148,
        197,
    ]
    assert asked_at(Decisions(Worker(), lambda: Action.GO_ON, 60.0), clock, 3.0, 4) == [1, 2, 3, 4]


def test_a_shorter_interval_between_checkpoints_is_looked_at_as_often(clock):
    assert asked_at(Decisions(Worker(), lambda: Action.GO_ON, 0.0), clock, 0.01, 5) == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_a_clock_that_stands_still_asks_again_before_long(clock):
    decisions = Decisions(Worker(), lambda: Action.GO_ON, 60.0)
    decisions.after_step()
    assert decisions.wanted == decision.MOST_STEPS


def test_the_answer_is_what_was_decided(clock):
    answers = iter([Action.SAVE, Action.STOP])
    decisions = Decisions(Worker(), lambda: next(answers), 0.0)
    assert [decisions.after_step(), decisions.now()] == [Action.SAVE, Action.STOP]
