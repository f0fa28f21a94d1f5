"""`raytrain bench`: parts, mistakes, and how its Ray parts read the lines of other processes."""

import json
import sys

import pytest

from raytrain.cli.bench import PARTS, chosen_parts
from raytrain.cli.main import run_command


def test_all_parts_are_measured_by_default_but_the_comparisons():
    usual = tuple(
        part for part in PARTS if part not in ("peer", "variants", "profile", "checkpoints")
    )
    assert chosen_parts(None, peer=False) == usual
    assert set(chosen_parts(None, peer=True)) == {*usual, "peer"}
    assert chosen_parts("start, decode", peer=False) == ("decode", "start")
    assert chosen_parts("train", peer=True) == ("train", "peer")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "trian"], 'there is no part "trian". Did you mean "train"?'),
        (["--pairs", "0"], "--pairs 0 is less than 1"),
        (["--generate", "0"], "--generate 0 is less than 1"),
        (["--json", "nowhere/bench.json"], "there is no folder nowhere"),
        (
            ["--generate", "16", "--only", "decode"],
            "a batch size of 32 is more than the 13 training tiles",
        ),
        (["--stages", "9"], "--stages 9"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(words, said, capsys):
    assert run_command(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_the_table_and_writes_the_values(tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert (
        run_command(
            [
                "bench",
                "--config",
                "smoke",
                "--generate",
                "16",
                "--pairs",
                "2",
                "--only",
                "decode",
                "--json",
                str(out),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [figure["name"] for figure in found["figures"]] == ["decode"] and len(
        found["figures"][0]["values"]
    ) == 2
    assert (
        "one core, 256 px" in printed
        and str(out) in printed
        and found["command"].split()[0] == "raytrain"
    )


def test_the_start_of_another_process_is_read_off_its_lines(monkeypatch):
    from raytrain.distributed import bench
    from raytrain.distributed.bench import _moments

    monkeypatch.setattr(
        bench, "POLITE_S", 1.0
    )  # where SIGINT is ignored, as under nohup, it is ended by force

    code = """
import time
print("noise", flush=True); time.sleep(.3)
print("first of all", flush=True); time.sleep(.3)
print("then", time.time() - 1000, flush=True)
time.sleep(1000)
"""
    found = _moments([sys.executable, "-c", code], [("a", "", "first "), ("b", "", "then")])
    assert found[0] >= 0.3 and -1001 < found[1] < -900


def test_a_process_that_ends_before_its_line_is_reported_with_what_it_said():
    from raytrain.distributed.bench import _moments

    with pytest.raises(RuntimeError, match="all I had to say"):
        _moments([sys.executable, "-c", "print('all I had to say')"], [("a", "", "first ")])


def test_the_lines_of_train_are_those_that_the_bench_waits_for():
    import re

    from raytrain.distributed.bench import MOMENTS

    lines = [
        "run bench in x",
        "starting 2 CPU workers (about 15 seconds)",
        "new run, from random weights",
        "tiles: rank 0 of 2 decoded 3 of 4 at 64 px in 0:01, the others were in x",
        "tiles: in x, 8 MB at 64 px",
        "stage 1 epoch 1: first step of 3 done in 0.1 s",
    ]
    assert [
        [i for i, line in enumerate(lines) if re.match(rule, line)] for _, _, rule in MOMENTS
    ] == [
        [1],
        [2],
        [4],
        [5],
    ]


def test_parts_of_the_start_add_up_to_the_whole():
    from raytrain.distributed.bench import start_figures

    found = {
        f.name: f for f in start_figures([2.0], [[4.0, 9.0, 9.5, 12.0]], [[3.0, 5.0, 8.0]], "")
    }
    assert [found[f"start.{key}"].median for key in ("ray", "network", "tiles", "step")] == [
        4.0,
        5.0,
        0.5,
        2.5,
    ]
    assert [found[f"start.empty.{key}"].median for key in ("import", "ray", "begin")] == [
        3.0,
        2.0,
        3.0,
    ]
    assert (found["start"].median, found["start.empty"].median, found["start.excess"].median) == (
        12.0,
        8.0,
        4.0,
    )


def test_the_rate_of_predict_counts_from_the_first_block_of_every_process():
    from raytrain.distributed.bench import _after_first_blocks, _Lines

    lines = _Lines()
    lines.timed = [
        (8.0, "predict: 64 of 256 tiles"),
        (8.5, "predict: 128 of 256 tiles"),
        (9.0, "other"),
        (9.5, "predict: 192 of 256 tiles"),
        (10.5, "predict: 256 of 256 tiles"),
    ]
    assert _after_first_blocks(lines, 2) == (8.5, 64.0)
    assert _after_first_blocks(lines, 9) == (10.5, 256 / 10.5)


def test_the_checkpoint_that_predict_is_measured_with_can_be_read(tmp_path):
    from handmade import NETWORK

    from raytrain.bench.generate import write_tiles
    from raytrain.config import load_recipe
    from raytrain.distributed.bench import _checkpoint
    from raytrain.distributed.predict import Predictor

    recipe = load_recipe("smoke", {"model": {"arch": NETWORK, "weights": "none"}})
    dataset = write_tiles(str(tmp_path / "dataset"), 8, 32)
    predictor = Predictor(_checkpoint(recipe, dataset, str(tmp_path / "checkpoint")), False)
    assert list(predictor.model.classes) == dataset.classes
