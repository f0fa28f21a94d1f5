"""What connects the planner with Ray Tune, without Ray: reports, ends, silent ends, errors."""

from types import SimpleNamespace

import pytest
from driven import Grid
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from test_planner import planner

from raytrain.distributed import planner as module
from raytrain.distributed.planner import StopAll, Suggestions, Verdicts, Watch
from raytrain.distributed.trial import config_of, packed
from raytrain.errors import ResourceError, StorageError
from raytrain.search.supply import Limits
from raytrain.search.table import State


def tune_trial(name, status):
    ended = (TuneTrial.TERMINATED, TuneTrial.ERROR)
    return SimpleNamespace(
        trial_id=name, status=status, is_finished=lambda: status in ended, get_error=lambda: None
    )


@pytest.fixture
def parts(monkeypatch):
    """A planner of two slots, its connection with Tune, and the reasons that trials were told."""
    monkeypatch.setattr(module, "process_starts", lambda: False)
    found, _, _ = planner(Grid(lengths=(2,)), slots=2, limits=Limits(4))
    suggestions = Suggestions(found, config_of, lambda number: None)
    told = []
    watch = Watch(suggestions, lambda: "it needs 1 CPU, and 0 CPU is free", told.append)
    return SimpleNamespace(planner=found, suggestions=suggestions, watch=watch, told=told)


def report(parts, name, **values):
    verdicts = Verdicts(parts.suggestions)
    return verdicts.on_trial_result(None, SimpleNamespace(trial_id=name), values)


def stage(number, score=0.5, **values):
    return {"stage": number, "score": score, "seconds": 1.0, "trained": True, **values}


def test_trials_are_handed_out_until_the_slots_are_full(parts):
    first = parts.suggestions.suggest("a")
    assert set(first) == {"number", "draw", "key"} and first["number"] == 0
    assert parts.suggestions.suggest("b") is not None
    assert parts.suggestions.suggest("c") is None


def test_a_trial_that_completes_is_closed_once(parts):
    parts.suggestions.suggest("a")
    assert report(parts, "a", **stage(1)) == TrialScheduler.CONTINUE
    assert report(parts, "a", **stage(2)) == TrialScheduler.CONTINUE
    # Tune repeats the last report at the end.
    assert report(parts, "a", **stage(2), done=True) == TrialScheduler.CONTINUE
    parts.suggestions.on_trial_complete("a")
    row = parts.planner.parts.table.trials[0]
    assert row.state is State.COMPLETE and len(row.parts) == 2
    assert 0 not in parts.planner.live


def test_a_failure_comes_back_as_the_error_that_it_was(parts):
    parts.suggestions.suggest("a")
    error = packed(StorageError("the disk is full", "nothing can be kept", "free some"))
    report(parts, "a", end="failed", **{f"error/{key}": text for key, text in error.items()})
    parts.suggestions.on_trial_complete("a")
    assert isinstance(parts.planner.error, StorageError)
    assert parts.planner.parts.table.trials[0].is_open
    assert parts.suggestions.suggest("b") == Searcher.FINISHED


def test_running_trials_are_told_once_of_an_error_that_ends_the_search(parts):
    parts.suggestions.suggest("a")
    parts.planner.fail(StorageError("the disk is full"))
    running = [tune_trial("a", TuneTrial.RUNNING)]
    for _ in range(3):
        parts.watch.on_step_end(0, running)
    assert parts.told == ["StorageError"]
    assert not StopAll(parts.watch).stop_all()
    parts.watch.on_step_end(0, [tune_trial("a", TuneTrial.TERMINATED)])
    assert StopAll(parts.watch).stop_all()


def test_a_trial_that_ended_without_a_word_is_taken_back_and_goes_again(parts):
    parts.suggestions.suggest("a")
    parts.watch.on_step_end(0, [tune_trial("a", TuneTrial.ERROR)])
    row = parts.planner.parts.table.trials[0]
    assert row.is_open and row.deaths == 1 and 0 not in parts.planner.live
    assert parts.suggestions.suggest("b")["number"] == 0


def test_a_search_that_only_waits_ends_with_what_it_lacks(parts, monkeypatch):
    parts.suggestions.suggest("a")
    pending = [tune_trial("a", TuneTrial.PENDING)]
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    parts.watch.on_step_end(0, pending)
    parts.watch.on_step_end(0, pending)
    assert isinstance(parts.planner.error, ResourceError)
    assert "0 CPU is free" in str(parts.planner.error)
    # What waited is given back, and is open for --resume.
    parts.suggestions.on_trial_complete("a")
    assert parts.planner.parts.table.trials[0].is_open


def test_a_search_that_waits_says_so_once(parts, monkeypatch, logged):
    parts.suggestions.suggest("a")
    pending = [tune_trial("a", TuneTrial.PENDING)]
    parts.watch.on_step_end(0, pending)
    assert logged == []
    monkeypatch.setattr(module, "WAIT_TOLD_S", 0.0)
    for _ in range(3):
        parts.watch.on_step_end(0, pending)
    sentence = (
        "no trial can start yet: it needs 1 CPU, and 0 CPU is free; the search waits 60 seconds"
    )
    assert [text.startswith(sentence) for text in logged] == [True]
    # The next wait is told anew.
    parts.watch.on_step_end(0, [tune_trial("a", TuneTrial.RUNNING)])
    parts.watch.on_step_end(0, pending)
    parts.watch.on_step_end(0, pending)
    assert len(logged) == 2


def test_nothing_of_a_search_is_in_the_files_of_tune(parts):
    for thing in (parts.suggestions, parts.watch, Verdicts(parts.suggestions)):
        assert thing.__getstate__() == {}
