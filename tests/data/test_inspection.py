"""What a look at a dataset finds: rules, leaks, rare labels, odd sizes, labels that go together."""

import numpy as np
import pytest
from handmade import encoded, scene, write_dataset
from PIL import Image

from raytrain.data.inspection import LabelRule, companions, cooccurrence, inspect, weather_rules
from raytrain.errors import DataError

CLASSES = ["clear", "cloudy", "haze", "partly_cloudy", "road", "water"]


@pytest.fixture
def dataset(tmp_path):
    """Ten tiles: t0 and t7 the same with other labels, t2 and t3 the same; t8 grey, t9 of another size."""
    pictures = [encoded(scene(i)) for i in range(10)]
    pictures[3], pictures[7] = pictures[2], encoded(scene(0), "JPEG")
    pictures[8] = encoded(Image.fromarray(scene(8)).convert("L"))
    pictures[9] = encoded(scene(9, 80))
    labels = [
        "clear road",
        "clear",
        "clear",
        "clear",
        "cloudy",
        "cloudy road",
        "water",
        "haze",
        "clear haze",
        "clear",
    ]
    tiles = {
        f"t{i}": (picture, words)
        for i, (picture, words) in enumerate(zip(pictures, labels, strict=True))
    }
    parts = [
        "train",
        "train",
        "train",
        "train",
        "train",
        "train",
        "valid",
        "valid",
        "train",
        "valid",
    ]
    other = [
        "train",
        "train",
        "valid",
        "valid",
        "train",
        "train",
        "train",
        "train",
        "test",
        "valid",
    ]
    return write_dataset(tmp_path / "set", tiles, CLASSES, {"random": parts, "other": other})


@pytest.mark.parametrize(
    ("kind", "labels", "broken"),
    [
        ("exactly-one", ("a", "b"), [0, 1]),
        ("at-most-one", ("a", "b"), [0]),
        ("at-most-one", ("a", "c"), []),
        ("alone", ("c",), [5]),
        ("requires", ("a", "b"), [2, 4]),
        ("requires", ("b", "a"), [3, 5]),
    ],
)
def test_a_rule_names_the_tiles_that_break_it(kind, labels, broken):
    targets = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 1]], np.uint8)
    assert LabelRule(kind, labels).broken_by(targets, ["a", "b", "c"]).tolist() == broken


def test_the_weather_rules_apply_where_all_four_weather_labels_are(dataset):
    found = inspect(dataset, rules=[LabelRule("requires", ("road", "clear"))])
    assert found.default_rules
    assert {str(rule): rows.tolist() for rule, rows in found.rules} == {
        "road only together with clear": [5],
        "exactly one of clear, cloudy, haze, partly_cloudy": [6, 8],
        "cloudy alone": [5],
    }
    assert weather_rules(CLASSES[1:]) == ()


def test_a_leak_is_named_with_both_tiles_and_parts_for_each_split(dataset):
    found = inspect(dataset)
    assert [(leak.split, leak.kind, leak.rows, leak.parts) for leak in found.leaks] == [
        ("random", "near duplicates", (0, 7), ("train", "valid"))
    ]
    assert (
        "split random leaks: t0 (train) and t7 (valid) show the same (near duplicates)"
        in found.warnings
    )
    assert "tiles that show the same have different labels: t0, t7" in found.warnings
    assert "2 groups of duplicates, 4 tiles" in found.warnings
    assert inspect(dataset, split="other").leaks == []


def test_labels_are_counted_by_part_and_rare_ones_named(dataset):
    found = inspect(dataset, split="random", decode=False)
    assert list(found.labels.columns) == ["label", "tiles", "random train", "random valid"]
    assert found.labels.set_index("label").loc["clear"].tolist() == [6, 5, 1]
    assert found.labels.set_index("label").loc["water"].tolist() == [1, 0, 1]
    rare = [warning for warning in found.warnings if warning.startswith("split random: ")]
    assert rare == [
        "split random: water in validation only; what is not trained is not learned",
        "split random: fewer than 2 tiles of clear (valid 1), cloudy (valid 0), haze (train 1, valid 1), "
        "partly_cloudy (train 0, valid 0), road (valid 0)",
    ]


def test_a_split_with_one_part_is_looked_at_like_any_other(tmp_path):
    tiles = {"t0": (encoded(scene(0)), "a"), "t1": (encoded(scene(1)), "a b")}
    dataset = write_dataset(
        tmp_path / "set", tiles, ["a", "b"], {"all": ["train", "train"], "none": ["valid", "valid"]}
    )
    assert inspect(dataset).warnings == [
        "split all: fewer than 2 tiles of b (train 1)",
        "split none: a, b in validation only; what is not trained is not learned",
    ]


def test_odd_sizes_and_modes_are_counted_most_frequent_first(dataset):
    found = inspect(dataset)
    assert {key: rows.tolist() for key, rows in found.sizes.items()} == {
        "64x64": list(range(9)),
        "80x80": [9],
    }
    assert found.modes["L"].tolist() == [8] and next(iter(found.modes)) == "RGB"


def test_the_mode_of_a_see_through_palette_is_told_from_others(tmp_path):
    palette = Image.fromarray(scene(1)).quantize(8)
    pictures = [
        encoded(palette, transparency=0),
        encoded(palette),
        encoded(Image.fromarray(scene(1)).convert("RGBA")),
    ]
    pictures.append(encoded(Image.fromarray(scene(1)).convert("CMYK"), "JPEG"))
    dataset = write_dataset(
        tmp_path / "set", {str(i): (picture, "") for i, picture in enumerate(pictures)}, ["a"]
    )
    modes = inspect(dataset).modes
    assert {key: rows.tolist() for key, rows in modes.items()} == {
        "P, transparent": [0],
        "P": [1],
        "RGBA": [2],
        "CMYK": [3],
    }


def test_an_unknown_label_and_an_unknown_split_are_named_with_the_nearest(dataset):
    with pytest.raises(DataError, match=r'no label "watre".*Did you mean "water"'):
        inspect(dataset, rules=[LabelRule("alone", ("watre",))])
    with pytest.raises(DataError, match=r'no split "randon".*Did you mean "random"'):
        inspect(dataset, split="randon")


def test_labels_together_are_counted_and_the_one_beyond_chance_is_named():
    targets = np.array([[1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 1]], np.uint8)
    assert cooccurrence(targets).tolist() == [[5, 2, 3], [2, 2, 2], [3, 2, 3]]
    # Every tile has the first label, so it says nothing about the others.
    assert companions(targets, ["all", "mine", "water"]) == ["", "water 100 %", "mine 67 %"]
