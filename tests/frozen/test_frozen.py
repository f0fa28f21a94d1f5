"""Files that earlier versions wrote are opened by this one: `make.py` made them."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from raytrain import runs
from raytrain.checkpoints import reading, versions
from raytrain.checkpoints.history import read_epochs, read_steps
from raytrain.data.dataset import all_names, decoded_images, open_dataset
from raytrain.errors import ConfigError
from raytrain.evaluation import judgement, predictions
from raytrain.models import networks
from raytrain.training.inference import Inference, logits_of
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.worker import Worker

ARCHIVE = Path(__file__).with_name("formats.tar.xz")
VERSIONS = ["checkpoint-1", "checkpoint-2"]


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(params=VERSIONS)
def folder(formats, tmp_path, monkeypatch, request):
    """A copy of what a version wrote, as the current folder: its paths are relative."""
    copy = tmp_path / request.param
    shutil.copytree(formats / request.param, copy)
    monkeypatch.chdir(copy)
    return copy


def test_the_archive_is_small_and_holds_today_s_format():
    assert ARCHIVE.stat().st_size < 2e6
    with tarfile.open(ARCHIVE) as tar:
        names = {name.split("/")[0] for name in tar.getnames()}
    assert names == set(VERSIONS) and f"checkpoint-{versions.VERSION}" in names


def test_a_dataset_opens_with_all_its_tiles(folder):
    dataset = open_dataset("dataset")
    tiles = list(decoded_images(dataset, list(range(dataset.rows)), 32))
    assert len(tiles) == 20 and tiles[0].shape == (32, 32, 3)
    assert len(dataset.part_rows("random", "train")) == 16


def test_predictions_are_judged_and_belong_to_the_checkpoint(folder):
    found = predictions.read("runs/frozen/predictions.parquet")
    assert found.logits.shape == (4, 11)
    assert found.meta["checkpoint"] == "runs/frozen/checkpoints/last"
    checkpoint = reading.load("runs/frozen/checkpoints/last")
    model = networks.build(checkpoint.meta["arch"], len(found.classes), 0.0)
    model.load_state_dict(checkpoint.judged_weights())
    dataset = open_dataset("dataset")
    names = all_names(dataset)
    rows = [names.index(name) for name in found.names]
    images = torch.from_numpy(np.stack(list(decoded_images(dataset, rows, 32))))
    how = Inference(checkpoint.meta["size"], checkpoint.meta["normalize"], "fp32")
    logits = logits_of(model.eval(), images.permute(0, 3, 1, 2), how)
    # Bits follow the processor, and a threshold on them is far from this.
    np.testing.assert_allclose(logits.numpy(), found.logits, atol=1e-3)
    assert 0 <= judgement.judge(found).scores["default"].value <= 1


def test_a_run_is_read_and_resumed_to_its_end(folder):
    run = runs.find("frozen", "runs")
    assert [row.epoch for row in read_epochs(run.path)] == [1]
    found = reading.load("runs/frozen/checkpoints/last")
    assert found.position == (1, 1, 0) and found.meta["lr_scale"] == 1.0
    assert found.train_state()["optimizer"]["param_groups"]
    recipe = run.recipe.model_copy(update={"dataset": str(folder / "dataset")})
    done = fit(recipe, open_dataset("dataset"), run.path, Worker(), Hooks())
    assert (done["stage"], done["epoch"]) == (1, 2)
    assert [row.epoch for row in read_epochs(run.path)] == [1, 2]
    assert [step.step for step in read_steps(run.path)] == [0, 1]
    written = reading.load("runs/frozen/checkpoints/stage-1-32")
    assert written.version == versions.VERSION and written.position == (1, 2, 0)


def test_a_checkpoint_of_a_newer_version_is_refused(folder):
    last = folder / "runs" / "frozen" / "checkpoints" / "last"
    meta = json.loads((last / "meta.json").read_text()) | {
        versions.KEY: versions.EXTENDED_VERSION + 1
    }
    (last / "meta.json").write_text(json.dumps(meta))
    manifest = json.loads((last / "MANIFEST.json").read_text())
    manifest["meta.json"] = hashlib.sha256((last / "meta.json").read_bytes()).hexdigest()
    (last / "MANIFEST.json").write_text(json.dumps(manifest))
    # Not passed over as damaged: the run would be trained again from before it.
    with pytest.raises(ConfigError, match=r"has format 4, this raytrain reads up to 3"):
        reading.find_latest(str(last.parent))
