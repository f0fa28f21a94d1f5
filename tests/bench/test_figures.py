"""Figures, their table and their JSON, against numbers that can be computed by hand."""

import json

from raytrain.bench.figures import Figure, document, machine_line, number, table

RATE = Figure("train.loop", "training", "tiles/s", (30.0, 10.0, 20.0, 1234.0), "resnet18")
RATIO = Figure("train.ratio", "training / step only", "", (0.96,))


def test_median_and_spread():
    assert (RATE.median, RATE.spread) == (25.0, (10.0, 1234.0))
    assert (RATIO.median, RATIO.spread) == (0.96, (0.96, 0.96))


def test_numbers_have_about_four_digits():
    shown = [number(value) for value in (0.9634, 1.0, -0.5, 12.345, 123.456, 1234.5, 40479.0)]
    assert shown == ["0.963", "1.000", "-0.500", "12.35", "123.5", "1,234", "40,479"]


def test_the_table_is_aligned_and_shows_a_spread_only_where_there_is_one():
    lines = table([RATE, RATIO]).splitlines()
    assert [line.split() for line in lines] == [
        ["what", "median", "spread", "unit", "of"],
        ["training", "25.00", "10.00", "to", "1,234", "tiles/s", "resnet18"],
        ["training", "/", "step", "only", "0.960"],
    ]
    assert lines[1].index("25.00") + len("25.00") == lines[2].index("0.960") + len("0.960")
    assert lines[0].index("unit") == lines[1].index("tiles/s")
    assert not any(line.endswith(" ") for line in lines)


def test_the_document_holds_machine_command_and_every_value():
    found = json.loads(json.dumps(document([RATE, RATIO], "raytrain bench")))
    assert found["command"] == "raytrain bench"
    assert found["machine"].keys() >= {"cpu", "cores", "gpu", "python", "packages", "date"}
    assert found["machine"]["cores"] >= 1 and "torch" in found["machine"]["packages"]
    assert found["figures"][0] == {
        "name": "train.loop",
        "label": "training",
        "unit": "tiles/s",
        "values": [30.0, 10.0, 20.0, 1234.0],
        "about": "resnet18",
        "median": 25.0,
        "min": 10.0,
        "max": 1234.0,
    }
    assert found["machine"]["cpu"] in machine_line()
