import json
from dataclasses import replace

import numpy as np
import pytest
from worlds import some

from raytrain.cli.main import run_command
from raytrain.errors import DataError
from raytrain.evaluation import comparison, judgement, metrics, rules
from raytrain.evaluation.conditions import Conditions
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


def test_copies_in_a_group_widen_the_interval():
    first, second = pair()
    row = np.arange(600) // 10
    first, second = (
        replace(p, logits=p.logits[row], target=p.target[row]) for p in (first, second)
    )
    group_of = {name: str(row[i]) for i, name in enumerate(first.names)}
    alone = comparison.compare(first, second).scores["0.2 for every label"].difference
    grouped = comparison.compare(first, second, Conditions(group_of))
    assert grouped.groups == 60
    assert "in 60 groups" in comparison.table(grouped)
    wide = grouped.scores["0.2 for every label"].difference
    assert wide.high - wide.low == pytest.approx(np.sqrt(10) * (alone.high - alone.low), rel=0.2)


def test_folds_of_one_file_alone_make_no_difference():
    """Rules that were fitted on four fifths of a file's tiles would beat those fitted on a half of the other's."""
    first = some()
    folds = replace(first, fold=(np.arange(600) % 5).astype(np.int32))
    for one, two in ((first, folds), (folds, first), (folds, folds)):
        found = comparison.compare(one, two)
        assert {score.difference.value for score in found.scores.values()} == {0.0}


def test_one_tile_or_group_is_too_few():
    first, second = pair()
    with pytest.raises(DataError, match="1 tiles"):
        comparison.compare(first.taken(np.array([0])), second)
    with pytest.raises(DataError, match="belong to 1 groups"):
        comparison.compare(first, second, Conditions(dict.fromkeys(first.names, "a")))


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
    assert "no difference; about" in out and "tiles would settle it" in out
    content = json.loads((tmp_path / "c/comparison.json").read_text())
    assert content["tiles"] == 600 and content["groups"] is None
    verdicts = {name: score["verdict"] for name, score in content["scores"].items()}
    assert verdicts["0.2 for every label"] == "no difference"
    # The rules that fit numbers to each file get none.
    assert list(verdicts.values()).count(None) == len(verdicts) - 1
    assert "each file has its own fit, and its own luck" in out
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
    assert "expected F2, exactly one" in out
    content = json.loads((tmp_path / "e/thresholds.json").read_text())
    assert content["exactly_one"] == {"labels": ["clear", "haze"], "alone": ["haze"]}
    both = ["evaluate", str(tmp_path / "a.parquet"), str(tmp_path / "a.parquet"), "--out"]
    code = run_command([*both, str(tmp_path / "f"), *groups, "--exactly-one", "clear,haze"])
    out, err = capsys.readouterr()
    assert code == 0 and "in 30 groups" in out and "expected F2, exactly one" in out
    code = run_command([*both, str(tmp_path / "f"), "--exactly-one", "clear,hase"])
    out, err = capsys.readouterr()
    assert code == 2 and '--exactly-one names "hase"' in err
    (tmp_path / "scenes.csv").write_text(
        "image_name,scene\n"
        + "\n".join([rows[0] + "x", *(f"{n}," for n in first.names[1:])])
        + "\n"
    )
    code = run_command([*words, *groups])
    out, err = capsys.readouterr()
    assert code == 3 and "599 tiles have no scene" in err
    code = run_command([*words, "--alone", "haze"])
    out, err = capsys.readouterr()
    assert code == 2 and "--alone haze without --exactly-one" in err
