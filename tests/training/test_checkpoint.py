"""Checkpoints: verified, atomic, found again."""

import contextlib
import random
from pathlib import Path

import pytest
import torch

from raytrain import storage
from raytrain.errors import ConfigError
from raytrain.training import checkpoint as ckpt

META = {"stage": 1, "epoch": 2, "classes": ["a", "b"], "arch": "resnet18", "f2": 0.5}


def model(value=1.0):
    net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
    torch.nn.init.constant_(net[0].weight, value)
    return net


def save(place, value=1.0, stage=1, epoch=2, state=None):
    ckpt.save(str(place), model(value), META | {"stage": stage, "epoch": epoch}, state)


def test_what_was_saved_is_read_back(tmp_path):
    optimizer = torch.optim.AdamW(model().parameters())
    save(tmp_path / "last", 3.0, state=optimizer.state_dict())
    found = ckpt.load(str(tmp_path / "last"))
    assert found.position == (1, 2) and found.meta["classes"] == ["a", "b"]
    assert found.weights()["0.weight"].eq(3).all() and "1.running_mean" in found.weights()
    assert found.train_state() == optimizer.state_dict()
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.old"))


def test_any_changed_byte_is_noticed(tmp_path):
    save(tmp_path / "last", state={"x": torch.zeros(3)})
    generator = random.Random(0)
    for file in sorted((tmp_path / "last").iterdir()):
        good = file.read_bytes()
        for _ in range(20):
            bad = bytearray(good)
            bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
            file.write_bytes(bad)
            with pytest.raises(ckpt.DamagedCheckpoint):
                ckpt.read(str(tmp_path / "last"))
        file.write_bytes(good)
    ckpt.read(str(tmp_path / "last"))


def test_the_furthest_good_checkpoint_is_found_and_the_damaged_one_named(tmp_path):
    save(tmp_path / "stage-1-64", 1.0, stage=1, epoch=5)
    save(tmp_path / "last", 2.0, stage=2, epoch=1)
    found, skipped = ckpt.find_latest(str(tmp_path))
    assert found.position == (2, 1) and not skipped
    weights = tmp_path / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found, skipped = ckpt.find_latest(str(tmp_path))
    assert found.position == (1, 5) and "model.safetensors" in skipped[0]
    assert ckpt.find_latest(str(tmp_path / "nowhere")) == (None, [])


def test_at_the_end_of_a_stage_the_one_with_optimiser_state_is_taken(tmp_path):
    save(tmp_path / "stage-1-64", stage=1, epoch=5)
    save(tmp_path / "last", stage=1, epoch=5, state={"x": 1})
    assert ckpt.find_latest(str(tmp_path))[0].train_state() == {"x": 1}


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
    found, _ = ckpt.find_latest(str(tmp_path))
    assert found is not None and found.weights()["0.weight"][0, 0].item() == found.position[1]


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be used"):
        ckpt.load(str(tmp_path / "nowhere"))


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
        ckpt.check_fits(ckpt.load(str(tmp_path / "last")), classes, arch)


def test_code_in_a_training_state_is_never_run(tmp_path):
    save(tmp_path / "last", state={"x": Path("/")})
    with pytest.raises(Exception, match=r"[Ww]eights"):
        ckpt.load(str(tmp_path / "last")).train_state()
