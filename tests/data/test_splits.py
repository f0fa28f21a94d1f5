"""Divisions of tiles: shares that are kept, groups that stay together, folds that cover, splits that touch no shard."""

import io
import shutil
from typing import get_args

import numpy as np
import pytest
from handmade import write_dataset
from PIL import Image

from raytrain.cli.main import run_command
from raytrain.cli.split_flags import SplitBy
from raytrain.data import splits
from raytrain.data.dataset import all_names, names_of, open_dataset
from raytrain.errors import DataError


def rare_and_common(rows=1000, seed=0):
    """Labels of very different frequency; some rows have none."""
    frequencies = np.array([0.9, 0.5, 0.2, 0.02, 0.01])
    return (
        np.random.default_rng(seed).random((rows, 5))
        < frequencies * (np.arange(rows) % 50 > 0)[:, None]
    ).astype(np.uint8)


def test_stratified_parts_give_every_label_its_share():
    targets = rare_and_common()
    parts = splits.stratified_parts(targets, 0.2, seed=1)
    wanted, found = 0.2 * targets.sum(0), targets[parts == "valid"].sum(0)
    assert abs((parts == "valid").sum() - 200) <= 2
    assert np.abs(found - wanted).max() < 1.5
    random = splits.random_parts(1000, 0.2, 1)
    assert np.abs(targets[random == "valid"].sum(0) - wanted).sum() > np.abs(found - wanted).sum()


def test_stratified_folds_follow_the_published_algorithm_on_a_case_done_by_hand():
    # Rarest first: label 1 (rows 0, 1) gives one row to each fold; then label 0's rows fill both alike.
    targets = np.array([[1, 1], [1, 1], [1, 0], [1, 0], [0, 0], [0, 0]])
    folds = splits.stratified(targets, [1, 1], seed=5)
    assert {folds[0], folds[1]} == {folds[2], folds[3]} == {folds[4], folds[5]} == {0, 1}


def test_a_division_repeats_for_its_seed_and_differs_for_another():
    targets = rare_and_common()
    assert (
        splits.stratified_parts(targets, seed=1) == splits.stratified_parts(targets, seed=1)
    ).all()
    assert (
        splits.stratified_parts(targets, seed=1) != splits.stratified_parts(targets, seed=2)
    ).any()


def test_random_folds_cover_every_row_once_in_equal_folds():
    folds = splits.random_folds(103, 5, seed=3)
    assert sorted(np.bincount(folds)) == [20, 20, 21, 21, 21]
    assert (folds != np.arange(103) % 5).any()


def test_no_group_is_on_both_sides_and_the_share_is_close():
    groups = [f"scene-{i}" for i in np.random.default_rng(0).integers(0, 40, 1000)]
    parts = splits.group_parts(groups, 0.2, seed=1)
    assert not {g for g, p in zip(groups, parts, strict=True) if p == "valid"} & {
        g for g, p in zip(groups, parts, strict=True) if p == "train"
    }
    assert 170 <= (parts == "valid").sum() <= 230
    folds = splits.group_folds(groups, 5, seed=1)
    assert all(
        len({f for g, f in zip(groups, folds, strict=True) if g == group}) == 1
        for group in set(groups)
    )
    assert np.ptp(np.bincount(folds, minlength=5)) <= max(groups.count(g) for g in set(groups))


def test_two_groups_make_two_sides_and_one_group_cannot():
    assert (
        set(splits.group_parts(["a", "a", "b"], 0.01))
        == set(splits.group_parts(["a", "a", "b"], 0.99))
        == {"train", "valid"}
    )
    with pytest.raises(DataError, match="belong to 1 groups"):
        splits.group_parts(["a", "a"])
    with pytest.raises(DataError, match="at least 5"):
        splits.group_folds(["a", "b"], 5)


def test_values_say_the_part():
    parts = splits.parts_by_value(["a", "b", "c", "a"], ["b"], ["c"])
    assert parts.tolist() == ["train", "valid", "test", "train"]


@pytest.fixture
def copy(dataset, tmp_path):
    import shutil

    return shutil.copytree(dataset.path, tmp_path / "dataset")


def shards(path):
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (path / "shards").iterdir()}


def test_five_folds_are_five_splits_and_no_shard_is_rewritten(copy, capsys, tmp_path):
    before, dataset_hash = shards(copy), open_dataset(str(copy)).hash
    command = ["data", "split", str(copy), "--name", "cv", "--by", "stratified", "--folds", "5"]
    assert run_command(command) == 0
    found = open_dataset(str(copy))
    assert shards(copy) == before and found.hash == dataset_hash
    validated = [
        name for k in range(1, 6) for name in names_of(found, found.part_rows(f"cv-{k}", "valid"))
    ]
    assert sorted(validated) == sorted(all_names(found))
    assert all(
        len(found.part_rows(f"cv-{k}", "train")) + len(found.part_rows(f"cv-{k}", "valid"))
        == found.rows
        for k in range(1, 6)
    )
    assert set(found.split("cv-3").query("fold == 2")["part"]) == {"valid"}
    assert (
        run_command(["data", "check", str(copy), "--out", str(tmp_path)]) == 0
        and "split cv-5: train" in capsys.readouterr().out
    )
    assert run_command(command) == 0 and "is there already" in capsys.readouterr().out


def test_a_split_is_never_overwritten_and_both_parts_need_tiles(copy, tmp_path, capsys):
    manifest = (copy / "dataset.json").read_bytes()
    assert run_command(["data", "split", str(copy), "--name", "random", "--seed", "7"]) == 3
    assert 'has another split "random"' in capsys.readouterr().err
    names = sorted(all_names(open_dataset(str(copy))))
    table = tmp_path / "parts.csv"
    table.write_text("image_name,part\n" + "".join(f"{name}.jpg,a\n" for name in names))
    column = [
        "data",
        "split",
        str(copy),
        "--name",
        "own",
        "--by",
        "column",
        "--table",
        str(table),
        "--column",
        "part",
    ]
    assert run_command([*column, "--valid-values", "b"]) == 3
    assert 'no tile has the value "b"' in capsys.readouterr().err
    assert run_command([*column, "--valid-values", "a"]) == 3
    assert "both parts need tiles" in capsys.readouterr().err
    table.write_text(
        "image_name,part\n"
        + "".join(f"{name},{'b' if i < 9 else 'a'}\n" for i, name in enumerate(names))
    )
    assert (copy / "dataset.json").read_bytes() == manifest
    assert run_command([*column, "--valid-values", "b"]) == 0
    found = open_dataset(str(copy))
    assert sorted(names_of(found, found.part_rows("own", "valid"))) == names[:9]
    table.write_text("image_name,part\n" + "".join(f"{name},a\n" for name in names[1:]))
    assert run_command([*column, "--valid-values", "a"]) == 3
    assert f"have no row in {table}, such as {names[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--by", "group"], "needs --table"),
        (["--table", "t.csv", "--column", "c"], "takes no --table"),
        (["--by", "column", "--table", "t.csv", "--column", "c"], "needs --valid-values"),
        (["--table", "t.csv"], "takes no --table"),
        (["--by", "group", "--column", "c"], "needs --table"),
        (["--test-values", "a"], "takes no --test-values"),
        (["--folds", "1"], "2 or more"),
        (["--valid", "1"], "not between 0 and 1"),
        (["--by", "sratified"], "stratified"),
    ],
)
def test_a_wrong_division_is_refused(copy, capsys, flags, words):
    assert run_command(["data", "split", str(copy), "--name", "x", *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (copy / "splits" / "x.parquet").exists()


def test_the_ways_of_splitting_are_the_rules():
    assert set(get_args(SplitBy)) == set(splits.BY)


def test_a_name_that_is_no_file_name_is_refused(copy, capsys):
    assert run_command(["data", "split", str(copy), "--name", "../x"]) == 2
    assert "not made of letters" in capsys.readouterr().err


def test_stratification_is_as_good_as_the_reference_implementation():
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    rng = np.random.default_rng(0)
    targets = (rng.random((2000, 12)) < np.geomspace(0.6, 0.01, 12)).astype(np.uint8)

    def deviation(fold):
        counts = np.stack([targets[fold == k].sum(0) for k in range(5)])
        return np.abs(counts - targets.sum(0) / 5).max()

    theirs = np.empty(len(targets), int)
    folds = MultilabelStratifiedKFold(5, shuffle=True, random_state=0).split(targets, targets)
    for k, (_, rows) in enumerate(folds):
        theirs[rows] = k
    by_chance = deviation(splits.random_folds(len(targets), 5))
    ours = deviation(splits.stratified(targets, [1.0] * 5))
    assert ours <= deviation(theirs) + 1 < by_chance


def test_a_random_split_of_a_dataset_has_the_lessons_rows_whatever_the_shards(tmp_path):
    assert splits.natural_order(["t_10", "t_2", "a", "t_1"]) == [2, 3, 1, 0]
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    shuffled = np.random.default_rng(0).permutation(40)
    write_dataset(tmp_path / "data", {f"t_{i}": (buffer.getvalue(), "a") for i in shuffled}, ["a"])
    assert run_command(["data", "split", str(tmp_path / "data"), "--name", "lesson"]) == 0
    split = open_dataset(str(tmp_path / "data")).split("lesson")
    wanted = {f"t_{i}" for i in np.flatnonzero(splits.random_parts(40) == "valid")}
    assert set(split.loc[split["part"] == "valid", "image_name"]) == wanted


def test_labels_of_validation_alone_are_named():
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    assert splits.only_in_valid(["train", "valid", "test"], targets, ["a", "b", "c"]) == ["b"]


def test_a_dataset_is_divided_by_a_list_of_names(dataset, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(dataset.path, copy)
    names = sorted(all_names(dataset))
    (tmp_path / "names.txt").write_text(
        "\n".join([*(f"{name}.jpg" for name in names[:7]), "left_out"])
    )
    command = [
        "data",
        "split",
        str(copy),
        "--name",
        "own",
        "--by",
        "list",
        "--valid-list",
        str(tmp_path / "names.txt"),
    ]
    assert run_command(command) == 0
    assert "split own: train 153, valid 7" in capsys.readouterr().out
    split = open_dataset(str(copy)).split("own")
    assert sorted(split.loc[split["part"] == "valid", "image_name"]) == names[:7]
    assert run_command([*command[:-1], str(tmp_path / "no.txt")]) == 3
    assert run_command(["data", "split", str(copy), "--name", "x", "--by", "folder"]) == 3
    assert 'no tile has the folder "valid"' in capsys.readouterr().err
