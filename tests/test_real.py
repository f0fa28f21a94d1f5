"""On real tiles, off by default: `RAYTRAIN_REAL_DATA=DIR ./dev test -m 'real and not slow'`, and `-m 'real and slow'` for training.

DIR holds planet/ and ucmerced/, each with train-jpg/ and train_v2.csv, and for training weights/build.py, which writes
a torchvision ResNet-18 state dict to the path it is given.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raytrain.cli.main import run_command
from raytrain.data import images
from raytrain.data.dataset import all_names, open_dataset, read_images
from raytrain.data.inspection import inspect
from raytrain.tiles.cache import open_store

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("own_network")]
REAL = Path(os.environ.get("RAYTRAIN_REAL_DATA") or "../shared/data")


def ingested(name, out):
    folder = REAL / name
    if not folder.exists():
        pytest.skip(f"no {folder}")
    arguments = [
        "ingest",
        "--images",
        str(folder / "train-jpg"),
        "--labels",
        str(folder / "train_v2.csv"),
    ]
    assert run_command([*arguments, "--out", str(out / name)]) == 0
    return open_dataset(str(out / name))


@pytest.mark.usefixtures("cluster")
def test_all_real_tiles_keep_their_pixels_through_shards_and_cache(tmp_path):
    dataset = ingested("planet", tmp_path)
    store = open_store(dataset, 256, directory=tmp_path / "cache")
    assert dataset.rows == 601 and len(dataset.part_rows("random", "valid")) == 120
    for row, content in enumerate(read_images(dataset, range(dataset.rows))):
        file = REAL / "planet" / "train-jpg" / f"{all_names(dataset)[row]}.jpg"
        wanted = np.asarray(
            Image.open(io.BytesIO(file.read_bytes()), formats=("JPEG",)).convert("RGB")
        )
        np.testing.assert_array_equal(images.decode(content), wanted)
        np.testing.assert_array_equal(store.pixels[row], wanted)
    assert open_store(dataset, 256, directory=tmp_path / "cache").decoded == 0


@pytest.mark.usefixtures("cluster")
def test_the_flaws_of_real_tiles_are_found_and_no_others(tmp_path):
    found = inspect(ingested("ucmerced", tmp_path))
    assert [(group.kind, found.names(group.rows)) for group in found.groups] == [
        ("equal bytes", "airplane01, airplane02")
    ]
    assert [found.sides_of(leak) for leak in found.leaks] == [
        "airplane01 (train) and airplane02 (valid)"
    ]
    assert [sum(len(rows) for rows in list(found.sizes.values())[n:]) for n in (0, 1)] == [420, 8]
    planet = inspect(ingested("planet", tmp_path))
    assert planet.groups == () and {key: len(rows) for key, rows in planet.modes.items()} == {
        "CMYK": 601
    }
    assert planet.default_rules and [len(rows) for _, rows in planet.rules] == [0, 0]


def test_the_full_label_file_gives_the_lessons_rows_and_its_one_flaw(tmp_path, capsys):
    """In a process of its own, as a user would wait for it; the seconds are printed, not asserted."""
    path = REAL / "planet-labels" / "train_v2.csv"
    if not path.exists():
        pytest.skip(f"no {path}")
    began = time.monotonic()
    program = f"""
from raytrain.data.inspection import weather_rules
from raytrain.data.labels import read_labels
from raytrain.data.splits import random_parts
import hashlib
labels = read_labels({str(path)!r})
targets = labels.targets
rows = (random_parts(len(targets)) == "valid").nonzero()[0].astype("<i8")
print(len(targets), targets.sum(), targets.max(), hashlib.sha256(rows.tobytes()).hexdigest())
for rule in weather_rules(labels.classes):
    print(rule, *labels.table["image_name"][rule.broken_by(targets, labels.classes)])
"""
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    with capsys.disabled():
        print(f"\n40,479 labels read, divided and checked in {time.monotonic() - began:.2f} s")
    lesson = "cabcefb529d3a2bc05c6e7b25bd3f9be69e54992e4091cfbeef46c0c8d6a3a84"
    counts, *rules = said.splitlines()
    assert counts == f"40479 116205 1 {lesson}"
    assert [line.split()[-1] for line in rules if "train_" in line] == ["train_24448"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("name", "seeds"), [("planet", (42, 1, 2)), ("ucmerced", (42,))])
def test_the_resnet18_recipe_reaches_its_f2(name, seeds, tmp_path):
    dataset = ingested(name, tmp_path)
    weights = tmp_path / "resnet18.pth"
    subprocess.run([sys.executable, str(REAL / "weights" / "build.py"), str(weights)], check=True)
    scores = []
    for seed in seeds:
        arguments = [
            "train",
            "--config",
            "planet-resnet18",
            "--dataset",
            dataset.path,
            "--storage",
            str(tmp_path),
        ]
        arguments += ["--model.weights", str(weights), "--num-workers", "2", "--name", str(seed)]
        assert run_command([*arguments, "--train.seed", str(seed)]) == 0
        scores.append(json.loads((tmp_path / str(seed) / "metrics.json").read_text())["f2"])
    print(f"{name}: F2 {scores}, mean {statistics.mean(scores):.4f}")
    assert statistics.mean(scores) >= 0.88
