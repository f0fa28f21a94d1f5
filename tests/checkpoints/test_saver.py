"""The saver: off the training thread, one at a time, as often as its cost allows."""

import threading
import time
from pathlib import Path

import pytest
import torch

from raytrain import storage
from raytrain.checkpoints import layout, writing
from raytrain.checkpoints.saver import LEAST_INTERVAL_S, TIMES_COST, Saver
from raytrain.errors import ConfigError, StorageError
from raytrain.models import networks


def state(step, train_state=None):
    meta = {"stage": 1, "epoch": 0, "epoch_steps": step, "step": step}
    return writing.snapshot(torch.nn.Linear(2, 2), meta, train_state)


@pytest.fixture
def saver(tmp_path):
    saver = Saver(str(tmp_path), 0.0)
    yield saver
    saver.close()


def save(saver, step):
    saver.save([(layout.step_name(step), state(step))], time.monotonic())


def test_a_save_runs_in_a_thread_and_the_next_one_waits_for_it(saver, tmp_path, monkeypatch):
    let, running, threads, write = threading.Event(), [], [], writing.write

    def slow(path, what, twin):
        threads.append(threading.current_thread())
        running.append(path)
        assert len(running) == 1
        let.wait(30)
        write(path, what, twin)
        running.remove(path)

    monkeypatch.setattr(writing, "write", slow)
    save(saver, 1)
    assert not saver.due() and not (tmp_path / "step-00000001").exists()
    let.set()
    save(saver, 2)
    saver.wait()
    assert saver.due()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000001", "step-00000002"]
    assert threading.main_thread() not in threads


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="with one thread torch keeps no pool")
def test_a_save_leaves_no_pool_of_threads_behind(saver):
    threads = Path("/proc/self/task")
    network = networks.to_device(
        torch.nn.Sequential(torch.nn.Conv2d(64, 256, 3)), torch.device("cpu")
    )
    assert network[0].weight.numel() > 100_000, "so many that torch divides them among threads"
    snapshot = writing.snapshot(
        network,
        {"stage": 1, "epoch": 0, "epoch_steps": 1, "step": 1},
        {"momentum": network.state_dict()},
    )
    before = set(threads.iterdir())
    saver.save([("step-00000001", snapshot)], time.monotonic())
    saver.wait()
    assert len(set(threads.iterdir()) - before) == 1, "the saver's own"


@pytest.fixture
def full(monkeypatch):
    """A disk without space; called, it has some again."""

    def write(path, what, twin):
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write", write)
        yield patch.undo


def test_an_error_at_the_end_of_an_epoch_is_raised_by_the_next_look_and_once(saver, full):
    saver.save([("last", state(1))], 0.0)
    saver.pending.exception()
    with pytest.raises(StorageError, match="no space left"):
        saver.due()
    full()
    save(saver, 2)
    saver.wait()


def test_within_an_epoch_training_goes_on_until_the_third_save_in_a_row_fails(
    saver, full, tmp_path, logged
):
    for step in (1, 2, 3):
        save(saver, step)
        saver.pending.exception()
        assert len(logged) == step - 1
    assert logged == [
        f"no checkpoint: no space left; training goes on ({n} of 3 in a row)" for n in (1, 2)
    ]
    with pytest.raises(StorageError):
        saver.due()


def test_storage_that_comes_back_ends_the_count_and_what_must_be_there_is_waited_for(
    saver, full, tmp_path, logged
):
    save(saver, 1)
    saver.pending.exception()
    with pytest.raises(StorageError):
        saver.wait()  # as at the end of a run that was stopped
    full()
    save(saver, 2)
    saver.wait()
    assert saver.failures == 0 and not logged and (tmp_path / "step-00000002").exists()


def test_without_a_setting_the_interval_follows_the_measured_cost(tmp_path):
    saver = Saver(str(tmp_path), None)
    assert saver.interval_s == LEAST_INTERVAL_S and not saver.due()
    saver.save([("last", state(1))], time.monotonic() - 10)
    saver.wait()
    assert saver.interval_s == pytest.approx(TIMES_COST * saver.cost_s) and saver.cost_s >= 10
    saver.close()
    assert Saver(str(tmp_path), 5.0).interval_s == 5.0


def test_where_nothing_can_be_renamed_the_last_state_stands_elsewhere_while_last_is_written(
    monkeypatch,
):
    written = []
    monkeypatch.setattr(
        writing, "write", lambda path, what, twin=None: written.append(storage.name_of(path))
    )
    monkeypatch.setattr(storage, "names", lambda path, directories: [])
    saver = Saver("s3://bucket/run/checkpoints", 0.0)
    saver.save([("best", state(7)), ("last", state(7))], 0.0)
    saver.wait()
    saver.close()
    assert written == ["best", "step-00000007", "last"]


def test_leftovers_of_a_killed_save_are_cleared(tmp_path):
    for name in ("last", "step-00000001.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    saver = Saver(str(tmp_path / "checkpoints"), 0.0)
    saver.claim()
    saver.close()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last"]


def test_workers_that_were_cut_off_write_and_remove_nothing_once_others_took_over(tmp_path):
    old, new = (Saver(str(tmp_path / "checkpoints"), 0.0) for _ in range(2))
    old.claim()
    save(old, 5)
    old.wait()
    new.claim()
    save(new, 6)
    new.wait()
    save(old, 5)
    with pytest.raises(ConfigError, match="other workers train"):
        old.settle()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000005",
        "step-00000006",
    ]
    (tmp_path / "writer.json").unlink()
    save(new, 7)
    new.wait()
    old.close()
    new.close()
