"""Epochs shorter than the saver's interval: what is written when, and what a run that ends in between still has."""

import os

import pytest
import torch
from group import run_alone, trace

from raytrain import storage
from raytrain.checkpoints import layout, reading, writing
from raytrain.checkpoints.history import (
    EpochRow,
    History,
    RankRow,
    StepRow,
    read_epochs,
    read_ranks,
    read_steps,
)
from raytrain.checkpoints.saver import Saver
from raytrain.config import load_recipe
from raytrain.errors import StorageError
from raytrain.evaluation import predictions


@pytest.fixture(scope="module")
def recipe(dataset):
    """Two stages of three and two epochs, one thread; checkpoints are due after a minute."""
    smoke = load_recipe(
        "smoke", {"dataset": dataset.path, "train": {"batch_size": 30, "threads": 1, "ema": 0.9}}
    )
    first, second = smoke.stages[:2]
    stages = (first.model_copy(update={"epochs": 3}), second.model_copy(update={"epochs": 2}))
    return smoke.model_copy(update={"stages": stages})


def observed(recipe, run, **hooks):
    """Runs it. Returns the names in `checkpoints` at each report, which comes after each epoch."""
    seen = []

    def report(metrics):
        paths = sorted((run / "checkpoints").glob("*"))
        seen.append([path.name for path in paths])

    run_alone(recipe, run, report=report, **hooks)
    return seen


def settled(monkeypatch):
    """Makes every save wait until it is written, so that a look at the folder sees it."""
    save = Saver.save

    def waiting(self, entries, began):
        save(self, entries, began)
        self.pending.result()

    monkeypatch.setattr(Saver, "save", waiting)


def test_epochs_within_the_interval_write_no_checkpoint_until_their_stage_ends(
    recipe, tmp_path, monkeypatch
):
    settled(monkeypatch)
    saved = []
    seen = observed(
        recipe,
        tmp_path / "run",
        saved=lambda metrics: saved.append((metrics["stage"], metrics["epoch"])),
    )
    assert saved == [(1, 3), (2, 2)]
    assert seen == [
        [],
        [],
        ["best", "last", "stage-1-32"],
        ["best", "last", "stage-1-32"],
        sorted({"best", "last", "stage-1-32", "stage-2-32"}),
    ]


def test_epochs_that_are_due_are_written_each(recipe, tmp_path, monkeypatch):
    settled(monkeypatch)
    often = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"save_every_s": 0.0})}
    )
    saved = []
    seen = observed(
        often,
        tmp_path / "run",
        saved=lambda metrics: saved.append((metrics["stage"], metrics["epoch"])),
    )
    assert saved == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
    assert all("last" in names and "best" in names for names in seen)


def test_when_it_is_written_changes_no_weight_and_no_row(recipe, tmp_path):
    often = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"save_every_s": 0.0})}
    )
    run_alone(recipe, tmp_path / "seldom")
    run_alone(often, tmp_path / "often")
    assert trace(tmp_path / "seldom") == trace(tmp_path / "often")


def test_the_best_epoch_of_the_middle_is_kept_in_memory_and_written_later(
    recipe, tmp_path, monkeypatch
):
    """The middle epoch of the first stage is made the best one."""
    f2 = iter([0.2, 0.9, 0.3, 0.4, 0.5])
    real = "raytrain.evaluation.tasks.multi_label.epoch_metrics"
    monkeypatch.setattr(real, lambda *found: {"f2": next(f2), "valid_loss": 0.1, "accuracy": 0.5})
    models = []
    run_alone(recipe, tmp_path / "run", report=lambda metrics: models.append(metrics["f2"]))
    assert models == [0.2, 0.9, 0.3, 0.4, 0.5]
    best = reading.load(str(tmp_path / "run" / "checkpoints" / "best"))
    assert best.position == (1, 2, 0) and best.meta["f2"] == 0.9
    last = reading.load(str(tmp_path / "run" / "checkpoints" / "last"))
    assert not torch.equal(next(iter(best.weights().values())), next(iter(last.weights().values())))


def test_a_run_stopped_after_a_short_epoch_has_that_epoch_and_the_best_before_it(recipe, tmp_path):
    reports = []
    asked = {"report": reports.append, "stop": lambda: "SIGTERM" if len(reports) == 1 else None}
    # The first decision after the first report is made within the second epoch or at its end.
    found = run_alone(recipe, tmp_path / "run", **asked)
    assert found["stopped"] == "SIGTERM"
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert "best" in names and found["checkpoint"].rpartition("/")[2] in names
    run_alone(recipe, tmp_path / "run")
    run_alone(recipe, tmp_path / "whole")
    assert trace(tmp_path / "run") == trace(tmp_path / "whole")


def test_checkpoints_of_one_state_share_their_files(recipe, tmp_path):
    run_alone(recipe, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("model.safetensors", "ema.safetensors", "meta.json"):
        assert os.path.samefile(checkpoints / "last" / name, checkpoints / "stage-2-32" / name)
    assert not (checkpoints / "stage-2-32" / "train_state.pt").exists()
    for path in checkpoints.iterdir():
        reading.load(str(path))


def state(value, train_state=None):
    network = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(network.weight, value)
    meta = {
        "stage": 1,
        "epoch": 1,
        "epoch_steps": 0,
        "step": 1,
        "classes": ["a", "b"],
        "arch": "resnet18",
    }
    return writing.snapshot(network, meta, train_state)


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refused(*paths):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    found = state(1.0)
    writing.write(str(tmp_path / "last"), found)
    writing.write(str(tmp_path / "best"), found, str(tmp_path / "last"))
    assert not os.path.samefile(
        tmp_path / "last/model.safetensors", tmp_path / "best/model.safetensors"
    )
    assert (tmp_path / "last/MANIFEST.json").read_text() == (
        tmp_path / "best/MANIFEST.json"
    ).read_text()
    reading.load(str(tmp_path / "best"))


def test_a_new_state_leaves_the_checkpoint_that_shared_files_with_the_old_one(tmp_path):
    saver = Saver(str(tmp_path), 0.0)
    first = state(1.0)
    saver.save([("best", first), ("last", first)], 0.0)
    saver.save([("last", state(2.0))], 0.0)
    saver.wait()
    saver.close()
    values = [
        reading.load(str(tmp_path / name)).weights()["weight"][0, 0].item()
        for name in ("best", "last")
    ]
    assert values == [1.0, 2.0]


def test_the_best_of_a_save_that_failed_within_an_epoch_comes_with_the_next_one(
    tmp_path, monkeypatch
):
    saver = Saver(str(tmp_path), 0.0)
    saver.keep_best(state(3.0))
    with monkeypatch.context() as patch:

        def full(*anything):
            raise StorageError("no space left")

        patch.setattr(writing, "write", full)
        saver.save([(layout.step_name(1), state(1.0, {}))], 0.0)
        saver.pending.exception()
    saver.save([(layout.step_name(2), state(2.0, {}))], 0.0)
    saver.wait()
    saver.close()
    assert reading.load(str(tmp_path / "best")).weights()["weight"][0, 0].item() == 3.0


def test_predictions_say_which_epoch_they_are_of(recipe, tmp_path):
    run_alone(recipe, tmp_path / "run")
    meta = predictions.read(str(tmp_path / "run" / "predictions.parquet")).meta
    assert (meta["stage"], meta["epoch"]) == ("2", "2")


# The record

SCORES = {"accuracy": 0.5, "f2": 0.5, "f2_best": 0.5}


def rows(epoch):
    return (
        EpochRow(1, 32, epoch, 0.1, 0.5, 0.5, SCORES, 10.0, 1.0),
        [StepRow(1, epoch, 2 * (epoch - 1) + i, [0.1], 0.9, 0.5) for i in range(2)],
        [RankRow(1, epoch, 0, "host", 2, 0.1)],
    )


FILES = ("history.csv", "metrics.jsonl", "ranks.csv")


def recorded(run, epochs):
    history = History(run)
    for epoch in epochs:
        history.add(*rows(epoch))
        history.write(durable=False)
    return history


def test_the_record_grows_by_an_epoch_and_is_not_written_anew(tmp_path):
    history = recorded(str(tmp_path), [1])
    before = [(tmp_path / name).stat() for name in FILES]
    history.add(*rows(2))
    history.write(durable=True)
    after = [(tmp_path / name).stat() for name in FILES]
    assert [s.st_ino for s in before] == [s.st_ino for s in after]
    assert all(a.st_size > b.st_size for a, b in zip(after, before, strict=True))
    assert [row.epoch for row in read_epochs(str(tmp_path))] == [1, 2]
    assert [row.step for row in read_steps(str(tmp_path))] == [0, 1, 2, 3]


def test_rows_that_a_crash_cut_off_are_passed_over_and_gone_after_the_next_epoch(tmp_path):
    recorded(str(tmp_path), [1, 2])
    for name in FILES:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-5])
    read = (read_epochs, read_steps, read_ranks)
    assert [len(function(str(tmp_path))) for function in read] == [1, 3, 1]
    history = History(str(tmp_path), (1, 1))
    history.add(*rows(2))
    history.write(durable=False)
    recorded(str(tmp_path / "whole"), [1, 2])
    for name in FILES:
        assert (tmp_path / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_an_object_store_gets_the_record_with_each_checkpoint(monkeypatch):
    written = []
    monkeypatch.setattr(storage, "write_text", lambda path, text: written.append((path, text)))
    monkeypatch.setattr(
        storage, "write_bytes", lambda path, content, durable: written.append((path, content))
    )
    monkeypatch.setattr(
        storage, "read_bytes", lambda path: (_ for _ in ()).throw(FileNotFoundError(path))
    )
    history = History("s3://bucket/run")
    for epoch, durable in ((1, False), (2, True)):
        history.add(*rows(epoch))
        history.write(durable=durable)
    assert [storage.name_of(path) for path, _ in written] == [
        "ranks.csv",
        "history.csv",
        "metrics.jsonl",
        "summary.json",
    ]
    assert len(written[2][1].splitlines()) == 4


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="the kernel tells the peak of memory there"
)
def test_a_save_holds_no_second_copy_of_the_state(tmp_path):
    size = 2**26  # float32: 256 MB
    network = torch.nn.Linear(1, 1)
    found = writing.snapshot(network, {"stage": 1, "epoch": 1, "step": 1})
    parts = {f"part-{i}": torch.ones(size // 16) for i in range(16)}
    found = writing.Snapshot(found.meta, parts, None, {"moments": dict(parts)})
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far is forgotten (man proc)
    before = peak_kb()
    writing.write(str(tmp_path / "last"), found)
    assert peak_kb() - before < 100_000


def peak_kb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
