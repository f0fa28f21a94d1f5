"""Checkpoints: verified, atomic, found again."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raytrain import storage
from raytrain.checkpoints import fitting, layout, reading, writing
from raytrain.errors import ConfigError, DivergedError
from raytrain.runs import find_checkpoint

META = {
    "stage": 1,
    "epoch": 2,
    "classes": ["a", "b"],
    "arch": "resnet18",
    "normalize": "imagenet",
    "f2": 0.5,
}


def model(value=1.0):
    net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
    torch.nn.init.constant_(net[0].weight, value)
    return net


def save(path, value=1.0, stage=1, epoch=2, state=None, steps=0):
    writing.save(
        str(path),
        model(value),
        META | {"stage": stage, "epoch": epoch, "epoch_steps": steps},
        state,
    )


def test_what_was_saved_is_read_back(tmp_path):
    optimizer = torch.optim.AdamW(model().parameters())
    save(tmp_path / "last", 3.0, state=optimizer.state_dict())
    found = reading.load(str(tmp_path / "last"))
    assert found.position == (1, 2, 0) and found.meta["classes"] == ["a", "b"]
    assert found.weights()["0.weight"].eq(3).all() and "1.running_mean" in found.weights()
    # A meta.json without a version is one of the first, whose state may be the optimiser's alone.
    assert found.train_state() == {"optimizer": optimizer.state_dict()}
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.old"))


def test_the_furthest_good_checkpoint_is_found_and_the_damaged_one_named(tmp_path):
    save(tmp_path / "stage-1-64", 1.0, stage=1, epoch=5)
    save(tmp_path / "last", 2.0, stage=2, epoch=1)
    found, skipped = reading.find_latest(str(tmp_path))
    assert found.position == (2, 1, 0) and not skipped
    weights = tmp_path / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found, skipped = reading.find_latest(str(tmp_path))
    assert found.position == (1, 5, 0) and "model.safetensors" in skipped[0]
    assert reading.find_latest(str(tmp_path / "nowhere")) == (None, [])


def test_at_the_end_of_a_stage_the_one_with_optimiser_state_is_taken(tmp_path):
    save(tmp_path / "stage-1-64", stage=1, epoch=5)
    save(tmp_path / "last", stage=1, epoch=5, state={"x": 1})
    assert reading.find_latest(str(tmp_path))[0].train_state() == {"x": 1}


def test_the_newest_step_is_taken_and_damaged_ones_are_passed_over_with_their_reasons(tmp_path):
    save(tmp_path / "last", 1.0, epoch=1, state={"x": 1})
    for step, steps in ((9, 2), (10, 3), (11, 4)):
        save(tmp_path / layout.step_name(step), step, epoch=1, steps=steps, state={"x": step})
    # Later by its meta.json alone: no position, or one of another kind.
    for name, meta in (("step-00000012", b"{}"), ("step-00000013", b'{"stage": 1, "epoch": []}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_bytes(meta)
    (tmp_path / "step-00000014").mkdir()
    found, skipped = reading.find_latest(str(tmp_path))
    assert found.position == (1, 1, 4) and found.train_state() == {"x": 11}
    assert [sentence.split()[0].rpartition("/")[2] for sentence in skipped] == [
        "step-00000012",
        "step-00000013",
        "step-00000014",
    ]
    (tmp_path / "step-00000011" / "train_state.pt").unlink()
    (tmp_path / "step-00000010" / "MANIFEST.json").write_text("{")
    found, skipped = reading.find_latest(str(tmp_path))
    assert found.position == (1, 1, 2)
    assert "train_state.pt" in skipped[3] and "step-00000010 is incomplete" in skipped[4]


def test_the_best_is_no_place_to_go_on_from_within_a_stage(tmp_path):
    save(tmp_path / "best", 2.0, epoch=2)
    save(tmp_path / "last", 1.0, epoch=1, state={"x": 1})
    assert reading.find_latest(str(tmp_path))[0].position == (1, 1, 0)


def test_names_of_stages_that_begin_like_best_or_last_are_those_of_stages(tmp_path):
    save(tmp_path / "best", 3.0, epoch=9)
    save(tmp_path / "best.old", 3.0, epoch=9)
    save(tmp_path / "best-of-all", 2.0, epoch=2)
    found, _ = reading.find_latest(str(tmp_path))
    assert found.position == (1, 2, 0)
    for name in ("last", "last.old", "step-00000001"):
        assert layout.goes_on_within(name)
    for name in ("last-try", "stage-1-64"):
        assert not layout.goes_on_within(name)


def test_step_checkpoints_are_thinned_to_the_newest_and_later_ones_of_a_run_that_fell_back_go(
    tmp_path,
):
    for step in (1, 2, 3, 10, 11):
        save(tmp_path / layout.step_name(step), epoch=1, steps=step)
    save(tmp_path / "last")
    writing.thin(str(tmp_path), 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "step-00000003", "step-00000010"]
    writing.thin(str(tmp_path), 0, keep=0)
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("part", ["weights", "averages"])
def test_weights_that_are_not_finite_are_never_written(tmp_path, part):
    save(tmp_path / "last")
    broken = model(float("nan"))
    models = (broken, None) if part == "weights" else (model(), broken)
    with pytest.raises(DivergedError, match=r"0\.weight is not finite"):
        writing.save(str(tmp_path / "last"), models[0], META, None, models[1])
    assert reading.load(str(tmp_path / "last")).weights()["0.weight"].eq(1).all()


def test_a_snapshot_does_not_follow_the_training_that_goes_on():
    net, state = model(1.0), {"a": [torch.zeros(2)], "b": 1, "c": (torch.zeros(2),)}
    kept = writing.snapshot(net, META, state, net)
    with torch.no_grad():
        for tensor in (net[0].weight, state["a"][0], state["c"][0]):
            tensor += 7
    assert kept.weights["0.weight"].eq(1).all() and kept.averaged["0.weight"].eq(1).all()
    assert kept.train_state["a"][0].eq(0).all() and kept.train_state["c"][0].eq(0).all()
    assert kept.finished.train_state is None and kept.finished.weights is kept.weights


class Headed(torch.nn.Module):
    """A network with the names of ours: the last layer of the head has a row for each class."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(2, 4)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)
        )


def test_remapped_classes_keep_their_outputs(tmp_path):
    net, averaged, inputs = Headed(), Headed(), torch.randn(5, 4)
    writing.save(str(tmp_path / "c"), net, META | {"classes": ["a", "b", "c"]}, None, averaged)
    found = reading.load(str(tmp_path / "c"))
    classes = ["c", "a", "b"]
    with pytest.raises(ConfigError, match="another order") as caught:
        fitting.check_fits(found, classes, "resnet18")
    assert "--remap-labels" in caught.value.fix
    moved = fitting.remapped(found, classes)
    fitting.check_fits(moved, classes, "resnet18", "imagenet")
    for before, state in ((net, moved.weights()), (averaged, moved.ema_weights())):
        after = Headed()
        after.load_state_dict(state)
        torch.testing.assert_close(
            after.head(inputs), before.head(inputs)[:, [2, 0, 1]], rtol=0, atol=0
        )
        assert torch.equal(after.body.weight, before.body.weight)
    assert fitting.remapped(found, ["a", "b", "d"]) is found


@pytest.mark.parametrize("step", range(12))
def test_a_crash_at_any_write_leaves_a_good_checkpoint(tmp_path, monkeypatch, step):
    save(tmp_path / "last", 1.0, epoch=1)
    calls = iter(range(100))

    def crash_at(name):
        real = getattr(storage, name)

        def wrapped(*args):
            if next(calls) == step:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(storage, name, wrapped)

    for name in ("write_bytes", "move_directory", "remove"):
        crash_at(name)
    with contextlib.suppress(KeyboardInterrupt):
        save(tmp_path / "last", 2.0, epoch=2, state={"x": 1})
    monkeypatch.undo()
    found, _ = reading.find_latest(str(tmp_path))
    assert found is not None and found.weights()["0.weight"][0, 0].item() == found.position[1]


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be used"):
        reading.load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("classes", "arch", "words"),
    [
        (["b", "a"], "resnet18", "the same classes in another order"),
        (["a", "c"], "resnet18", "it alone has b; it lacks c"),
        (["a", "b"], "resnet50", "is a resnet18, the configuration says resnet50"),
    ],
)
def test_a_checkpoint_for_something_else_is_refused(tmp_path, classes, arch, words):
    save(tmp_path / "last")
    with pytest.raises(ConfigError, match=words):
        fitting.check_fits(reading.load(str(tmp_path / "last")), classes, arch)


def test_a_checkpoint_of_other_pixels_is_refused(tmp_path):
    save(tmp_path / "last")
    with pytest.raises(ConfigError, match="normalised by imagenet, the configuration says none"):
        fitting.check_fits(reading.load(str(tmp_path / "last")), ["a", "b"], "resnet18", "none")


def test_code_in_a_training_state_is_never_run(tmp_path):
    save(tmp_path / "last", state={"x": Path("/")})
    with pytest.raises(ConfigError, match=r"train_state\.pt cannot be loaded: UnpicklingError"):
        reading.load(str(tmp_path / "last")).train_state()


def rewritten(path, **files):
    """Other files with a manifest that agrees, as another program would write them."""
    for name, content in files.items():
        (path / name.replace("_", ".")).write_bytes(content)
    names = [file.name for file in path.iterdir() if file.name != layout.MANIFEST]
    manifest = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / layout.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model_safetensors": b"no tensors at all"}, "holds no plain tensors"),
        (
            {"model_safetensors": safetensors.torch.save({"a": torch.tensor([float("inf")])})},
            "not finite in a",
        ),
        ({"meta_json": b"[]"}, "does not say what the checkpoint is"),
        ({"meta_json": b'{"stage": 1, "epoch": 1, "classes": []}'}, "has no arch"),
        ({"code_py": b"import os"}, "names 'code.py'"),
    ],
)
def test_what_another_program_wrote_is_refused_in_a_sentence(tmp_path, files, words):
    save(tmp_path / "last")
    rewritten(tmp_path / "last", **files)
    with pytest.raises(ConfigError, match=words):
        reading.load(str(tmp_path / "last"))


def test_a_checkpoint_of_another_task_is_refused_though_its_classes_are_the_same(tmp_path):
    save(tmp_path / "last")
    found = reading.load(str(tmp_path / "last"))
    classes = found.meta["classes"]
    with pytest.raises(ConfigError, match="trained for the task multi-label") as error:
        fitting.check_fits(found, classes, found.meta["arch"], task="single-label")
    assert "single-label" in error.value.fix


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ('{"meta.json": "0"}', r"does not name model\.safetensors"),
        ('["meta.json", "model.safetensors"]', "is not a JSON object"),
    ],
)
def test_a_manifest_that_names_no_weights_makes_no_checkpoint(tmp_path, manifest, words):
    save(tmp_path / "last")
    (tmp_path / "last" / "MANIFEST.json").write_text(manifest)
    with pytest.raises(reading.DamagedCheckpoint, match=words):
        reading.read(str(tmp_path / "last"))


def test_the_keys_of_uris_are_left_out_of_what_is_written(tmp_path):
    writing.save(str(tmp_path / "c"), model(), META | {"dataset": "s3://KEY:SECRET@bucket/data"})
    assert reading.load(str(tmp_path / "c")).meta["dataset"] == "s3://***@bucket/data"


@pytest.mark.parametrize(
    ("text", "name"), [("run", "last"), ("run:best", "best"), ("run:stage-2-32", "stage-2-32")]
)
def test_a_name_whose_save_was_killed_half_way_is_that_of_the_checkpoint_before(
    tmp_path, text, name
):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}")
    for there in (f"{name}.old", name):
        (tmp_path / "run" / "checkpoints" / there).mkdir()
        (tmp_path / "run" / "checkpoints" / there / "MANIFEST.json").write_text("{}")
        assert find_checkpoint(text, str(tmp_path)) == str(tmp_path / "run" / "checkpoints" / there)
