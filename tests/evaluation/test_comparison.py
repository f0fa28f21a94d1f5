import json
from dataclasses import replace

import numpy as np
import pytest
from worlds import some

from raytrain.cli.main import run_command
from raytrain.errors import DataError
from raytrain.evaluation import comparison, judgement, metrics, rules
from raytrain.evaluation.judging import Judging
from raytrain.evaluation.predictions import write


def pair(noise=0.8):
    first = some()
    shake = np.random.default_rng(7).normal(size=first.logits.shape) * noise
    return first, replace(first, logits=(first.logits + shake).astype(np.float32))


def test_a_noisier_model_is_worse_by_the_difference_of_its_scores():
    first, second = pair()
    found = comparison.compare(first, second)
    default = found.scores["0.2 for every label"]
    difference = metrics.f2(second.logits, second.target) - metrics.f2(first.logits, first.target)
    assert default.difference.value == pytest.approx(difference, abs=1e-12)
    assert default.verdict == "worse" and default.share_better < 0.025
    assert list(found.scores) == list(rules.RULES.values())
    judged = judgement.judge(second).scores["per_class"].value
    assert found.scores["one per label"].second == pytest.approx(judged, abs=1e-12)


def test_the_order_of_rows_and_tiles_of_one_file_do_not_matter():
    first, second = pair()
    mixed = second.taken(np.random.default_rng(1).permutation(500))
    found = comparison.compare(first, mixed)
    same = comparison.compare(first.taken(np.arange(500)), second.taken(np.arange(500)))
    assert found.scores == same.scores
    assert (found.tiles, found.left_out, same.left_out) == (500, 100, 0)
    assert "100 tiles are not in both files" in comparison.table(found)


def test_tiles_without_labels_are_left_out():
    first, second = pair()
    known = np.arange(600) >= 50
    found = comparison.compare(first, replace(second, known=known))
    assert (found.tiles, found.left_out) == (550, 50)


def test_groups_widen_the_interval():
    first, second = pair()
    group_of = {name: str(int(name[1:]) // 60) for name in first.names}
    alone = comparison.compare(first, second).scores["0.2 for every label"]
    grouped = comparison.compare(first, second, Judging(group_of))
    assert grouped.groups == 10
    assert "in 10 groups" in comparison.table(grouped)
    assert grouped.scores["0.2 for every label"].difference != alone.difference


def test_files_that_do_not_belong_together_are_refused():
    first, second = pair()
    for other, sentence in (
        (replace(second, classes=("a", *second.classes[1:])), "different classes"),
        (replace(second, meta={"task": "single-label"}), "different task"),
        (replace(second, names=tuple(f"x{n}" for n in second.names)), "no labelled tile in common"),
        (replace(second, target=1 - second.target), "600 tiles have different labels"),
        (replace(second, names=(second.names[1], *second.names[1:])), "comes twice"),
    ):
        with pytest.raises(DataError, match=sentence):
            comparison.compare(first, other)


def test_the_command_compares_two_files(tmp_path, capsys):
    first, second = pair(0.05)
    for name, predictions in (("a", first), ("b", second)):
        write(str(tmp_path / f"{name}.parquet"), predictions)
    paths = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    code = run_command(["evaluate", *paths, "--out", str(tmp_path / "c")])
    out, err = capsys.readouterr()
    assert code == 0
    assert "no difference; about" in out and "tiles would settle one of this size" in out
    content = json.loads((tmp_path / "c/comparison.json").read_text())
    assert content["tiles"] == 600 and content["groups"] is None
    assert content["scores"]["expected F2"]["verdict"] == "no difference"
    code = run_command(["evaluate", *paths, paths[0], "--out", str(tmp_path / "d")])
    out, err = capsys.readouterr()
    assert code == 2 and "3 predictions files" in err
    code = run_command(["evaluate", paths[0], "--by", "group", "--out", str(tmp_path / "d")])
    out, err = capsys.readouterr()
    assert code == 2 and "--by group, --table and --column are given together" in err


def test_the_command_takes_groups_from_a_table_and_a_group_of_labels(tmp_path, capsys):
    first, _ = pair()
    write(str(tmp_path / "a.parquet"), first)
    rows = [f"{name},{int(name[1:]) // 20}" for name in first.names]
    (tmp_path / "scenes.csv").write_text("image_name,scene\n" + "\n".join(rows) + "\n")
    words = ["evaluate", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "e")]
    groups = ["--by", "group", "--table", str(tmp_path / "scenes.csv"), "--column", "scene"]
    code = run_command([*words, *groups, "--exactly-one", "clear,haze", "--alone", "haze"])
    out, err = capsys.readouterr()
    assert code == 0
    assert "expected F2, one of a group" in out
    content = json.loads((tmp_path / "e/thresholds.json").read_text())
    assert content["exactly_one"] == {"labels": ["clear", "haze"], "alone": ["haze"]}
    code = run_command([*words, "--alone", "haze"])
    out, err = capsys.readouterr()
    assert code == 2 and "--alone haze without --exactly-one" in err
