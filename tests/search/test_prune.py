"""Stages that no search refers to are removed, and no others."""

import pytest
from made_search import Maker

from raytrain import runlock, storage
from raytrain.errors import ConfigError, DataError
from raytrain.search import prune
from raytrain.search.table import Kind


@pytest.fixture
def made(tmp_path):
    """A search of one trial that was stopped, beside a stage that no search refers to."""
    made = Maker(tmp_path)
    trial = made.trial(Kind.GIVEN)
    made.whole(trial, 0.86, 0.9)
    made.stop(trial)
    made.save()
    left_over(tmp_path, "left-over")
    return made


def left_over(path, key):
    folder = path / "stages" / key
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/model").write_bytes(b"0" * 1000)


def stored(made):
    return storage.names(str(made.storage / "stages"), directories=True)


def test_only_what_no_search_refers_to_goes(made):
    found = prune.unused(str(made.storage))
    assert [(stage.key, stage.size) for stage in found.unused] == [("left-over", 1000)]
    assert (found.kept, found.training) == (2, 0)
    assert len(prune.remove(str(made.storage), found.unused)) == 1
    assert stored(made) == sorted(made.table.trials[0].keys[:2])


def test_stages_of_a_search_that_was_removed_go(made):
    storage.remove(str(made.path))
    assert len(prune.unused(str(made.storage)).unused) == 3


def test_a_stage_that_is_being_trained_stays(made):
    path = str(made.storage / "stages/left-over")
    found = prune.unused(str(made.storage))
    with runlock.held(path):
        assert prune.unused(str(made.storage)).training == 1
        assert prune.remove(str(made.storage), found.unused) == []
    assert "left-over" in stored(made)


def test_nothing_goes_while_a_search_runs(made):
    found = prune.unused(str(made.storage))
    with runlock.held(str(made.path)), pytest.raises(ConfigError, match="the search calm runs in"):
        prune.remove(str(made.storage), found.unused)
    assert "left-over" in stored(made)


def test_nothing_goes_where_a_table_is_damaged(made):
    (made.path / "trials.json").write_text('{"version": 1, "trials": [')
    with pytest.raises(DataError, match=r"trials\.json cannot be used"):
        prune.unused(str(made.storage))


def test_a_storage_without_stages_has_nothing_to_remove(tmp_path):
    assert prune.unused(str(tmp_path)) == prune.Found((), 0, 0)
