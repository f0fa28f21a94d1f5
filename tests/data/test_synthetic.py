"""Synthetic tiles: the same anywhere, with the real file's statistics and quirks, and a mark for every label."""

import csv
import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from raytrain.data import images, synthetic
from raytrain.data.synthetic_paint import paint
from raytrain.evaluation.baselines import best_constant

WEATHER = {"clear", "cloudy", "haze", "partly_cloudy"}


@pytest.fixture(scope="module")
def label_sets():
    return [set(synthetic.labels(3, index)) for index in range(5000)]


def test_a_tile_depends_on_seed_and_index_alone():
    code = "import hashlib; from raytrain.data import synthetic as s; print(hashlib.sha256(s.encoded(4, 25)).hexdigest())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert hashlib.sha256(synthetic.encoded(4, 25)).hexdigest() == other
    assert not np.array_equal(synthetic.tile(4, 25), synthetic.tile(4, 26))
    assert not np.array_equal(synthetic.tile(4, 25), synthetic.tile(5, 25))


def test_every_other_tile_is_a_four_component_jpeg_that_reads_as_painted():
    for index, mode in ((20, "RGB"), (21, "CMYK")):
        content = synthetic.encoded(0, index)
        image = Image.open(io.BytesIO(content), formats=("JPEG",))
        assert (
            image.mode == mode
            and image.size == (256, 256)
            and image.info["comment"] == b"synthetic"
        )
        difference = np.abs(images.decode(content).astype(int) - synthetic.tile(0, index))
        assert difference.mean() < 4


def test_the_label_file_has_the_quirks_of_the_real_one(tmp_path):
    folder, label_file = synthetic.write(tmp_path, 20, seed=2)
    rows = list(csv.DictReader(label_file.open()))
    assert [row["image_name"] for row in rows] == [f"synthetic_{i:06}" for i in range(20)]
    assert {p.stem for p in folder.iterdir()} == {row["image_name"] for row in rows}
    tags = [row["tags"].split() for row in rows]
    assert len(tags[synthetic.REPEATED_TAG]) == len(set(tags[synthetic.REPEATED_TAG])) + 1
    assert tags[synthetic.UNSORTED_TAGS] != sorted(tags[synthetic.UNSORTED_TAGS])
    assert not set(tags[synthetic.NO_WEATHER]) & WEATHER
    assert len(tags[synthetic.NINE_LABELS]) == 9


def test_writing_again_changes_nothing_and_another_seed_everything(tmp_path):
    folder, _ = synthetic.write(tmp_path, 10, seed=2)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    synthetic.write(tmp_path, 10, seed=2)
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()} == before
    synthetic.write(tmp_path, 10, seed=3)
    assert all(p.read_bytes() != before[p.name][1] for p in folder.iterdir())


def test_weather_is_exclusive_and_cloudy_alone(label_sets):
    for index, labels in enumerate(label_sets):
        assert labels <= set(synthetic.CLASSES)
        assert len(labels & WEATHER) == (0 if index == synthetic.NO_WEATHER else 1)
        assert "cloudy" not in labels or labels == {"cloudy"}


def share(label_sets, label, given=None):
    among = [labels for labels in label_sets if given is None or given in labels]
    return sum(label in labels for labels in among) / len(among)


def test_labels_and_their_company_are_as_frequent_as_in_the_real_file(label_sets):
    # Shares of the 40,479 real tiles; rare label sets are a little more frequent here.
    for label, real in {
        "primary": 0.927,
        "clear": 0.702,
        "agriculture": 0.304,
        "road": 0.199,
        "water": 0.183,
    }.items():
        assert share(label_sets, label) == pytest.approx(real, abs=0.1)
    for given, label, real in (
        ("habitation", "road", 0.76),
        ("habitation", "agriculture", 0.75),
        ("cultivation", "agriculture", 0.75),
        ("artisinal_mine", "water", 0.88),
    ):
        assert share(label_sets, label, given) == pytest.approx(real, abs=0.12)
    assert all(share(label_sets, label) > 0.001 for label in synthetic.CLASSES)


def test_no_constant_answer_is_good(label_sets):
    target = np.array([[c in labels for c in synthetic.CLASSES] for labels in label_sets])
    assert 0.64 < best_constant(target)[1] < 0.72


@pytest.mark.parametrize("label", [c for c in synthetic.CLASSES if c != "clear"])
def test_every_label_leaves_a_mark(label):
    base = {"clear", "primary"} if label != "primary" else {"clear"}
    changed = base | {label}
    for seed in range(3):
        with_it = paint(frozenset(changed), np.random.default_rng(seed)).astype(int)
        without = paint(frozenset(base), np.random.default_rng(seed)).astype(int)
        marked = (np.abs(with_it - without).max(2) > 12).mean()
        assert marked > 0.005
