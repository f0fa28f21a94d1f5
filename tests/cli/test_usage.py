"""Mistakes in a command line: suggestions name only what exists, and a rate is set in its stage."""

import re

import pytest

from raytrain.cli.main import app, run_command
from raytrain.config import Recipe

RATE = "a peak learning rate belongs to a stage"


def answer(capsys, *words):
    """The message of a command line that is refused with exit code 2."""
    assert run_command(list(words)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and "next: " in message
    return message


def flags_of(command):
    """The flags that the help of a command shows."""
    with_help = app[command].assemble_argument_collection()
    return {name for argument in with_help if not argument.children for name in argument.names}


@pytest.mark.parametrize("command", ["train", "lr-find", "tune", "bench"])
@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--lr", "0.01"], "0.01"),
        (["--lr=0.01"], "0.01"),
        (["--train.lr", "0.01"], "0.01"),
        (["--train.lr=1e-5,0.002"], "1e-5,0.002"),
        (["--model.lr", "0.01"], "0.01"),
    ],
)
def test_a_rate_for_the_whole_run_is_answered_with_how_a_stage_gets_it(
    capsys, command, words, value
):
    message = answer(capsys, command, *words)
    assert RATE in message and f"--set stages.1.lr={value}" in message
    assert "recipe file" in message and "Did you mean" not in message


def test_the_answer_works_as_typed(capsys):
    message = answer(capsys, "train", "--config", "smoke", "--lr", "0.25")
    flag = re.search(r"next: (--set \S+)", message)[1].split()
    assert run_command(["train", "--config", "smoke", *flag, "--print-config"]) == 0
    assert "lr: 0.25" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["epochs", "size", "freeze", "start-size"])
def test_other_fields_of_stages_are_answered_in_the_same_way(capsys, field):
    message = answer(capsys, "train", f"--{field}", "3")
    assert f"--set stages.1.{field.replace('-', '_')}=3" in message


@pytest.mark.parametrize(("number", "wanted"), [("0", "1"), ("1", "1"), ("2", "2")])
def test_a_path_of_a_stage_as_a_flag_is_answered_with_set(capsys, number, wanted):
    message = answer(capsys, "train", f"--stages.{number}.lr", "0.5")
    assert f"next: --set stages.{wanted}.lr=0.5" in message


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["train", "--dat", "x"], "--dataset"),
        (["train", "--train.bach-size", "3"], "--train.batch-size"),
        (["train", "--traim", "3"], "--train.ema"),
        (["train", "--mode", "3"], None),
        (["predict", "--checkpoint", "a", "--out", "b", "--lr", "3"], None),
        (["evaluate", "p", "--out", "e", "--outt", "x"], "--out"),
    ],
)
def test_only_flags_that_exist_are_suggested(capsys, words, suggestion):
    found = re.search(r"Did you mean (\S+)\?", answer(capsys, *words))
    assert (found[1] if found else None) == suggestion
    assert suggestion is None or suggestion in flags_of(words[0])


def test_a_misspelt_command_is_answered_with_one_that_exists(capsys):
    assert 'Did you mean "train"?' in answer(capsys, "trian")


def test_a_group_of_flags_is_no_flag(capsys):
    assert "train.batch_size" in answer(capsys, "train", "--train", "3")
    assert "--data.split" in answer(capsys, "train", "--data", "{split: x}")


def test_the_next_command_is_the_help_of_the_command_that_was_typed(capsys):
    assert "next: raytrain data show --help" in answer(capsys, "data", "show", "d", "--sise", "3")
    assert "unexpected argument extra" in answer(capsys, "train", "extra")


def test_a_rate_in_a_file_or_a_variable_is_answered_in_the_same_way(capsys, tmp_path, monkeypatch):
    file = tmp_path / "r.yaml"
    for text in ("lr: 0.01", "train: {lr: 0.01}"):
        file.write_text(text)
        message = answer(capsys, "train", "--config", str(file))
        assert RATE in message and "(line 1)" in message and "stages.1.lr=0.01" in message
    monkeypatch.setenv("RAYTRAIN_TRAIN__LR", "0.01")
    message = answer(capsys, "train")
    assert RATE in message and "unset RAYTRAIN_TRAIN__LR" in message


def test_stages_are_reached_by_their_number_from_1():
    recipe = Recipe(select="2-3")
    assert recipe.stage(1) == recipe.stages[0] and recipe.stage(4) == recipe.stages[3]
    for number in (0, -1, 5):
        with pytest.raises(IndexError):
            recipe.stage(number)
    chosen = recipe.selected_stages()
    assert chosen == [(2, recipe.stages[1]), (3, recipe.stages[2])]
    assert [number for number, _ in Recipe().selected_stages()] == [1, 2, 3, 4]
