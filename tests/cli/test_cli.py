"""Every mistake of a user: a sentence with a next step, the exit code of the house, nothing half-written."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from handmade import NETWORK

from raytrain.checkpoints import writing
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.evaluation import predictions
from raytrain.models import networks

SMOKE = ["train", "--config", "smoke"]


def ingest(images, labels, out, *more):
    return ["ingest", "--images", str(images), "--labels", str(labels), "--out", str(out), *more]


def csv_file(folder, content):
    path = folder / "labels.csv"
    path.write_text(content)
    return path


def empty_file(folder):
    path = folder / "empty.yaml"
    path.write_text("")
    return str(path)


def yaml_file(folder, content):
    path = folder / "recipe.yaml"
    path.write_text(content)
    return str(path)


def without_manifest(folder, dataset):
    shutil.copytree(dataset.path, folder / "cut")
    (folder / "cut" / "dataset.json").unlink()
    return str(folder / "cut")


def with_other_classes(folder, dataset):
    meta = {
        "stage": 1,
        "epoch": 1,
        "classes": dataset.classes[::-1],
        "arch": NETWORK,
        "f2": 0.5,
        "task": "multi-label",
    }
    writing.save(str(folder / "other"), networks.build(NETWORK, len(dataset.classes), 0.5), meta)
    return str(folder / "other")


# name: (arguments from (tmp_path, tiles, dataset), exit code, words of the message)
MISTAKES = {
    "missing label file": (
        lambda t, s, d: ingest(s[0], t / "no.csv", t / "out"),
        3,
        "no.csv does not exist",
    ),
    "wrong column names": (
        lambda t, s, d: ingest(s[0], csv_file(t, "name,label\na,b\n"), t / "out"),
        3,
        'one column "image_name"',
    ),
    "missing image folder": (
        lambda t, s, d: ingest(t / "nowhere", s[1], t / "out"),
        3,
        "nowhere does not exist",
    ),
    "an HTML page as label file": (
        lambda t, s, d: ingest(s[0], csv_file(t, "<!doctype html><p>"), t / "out"),
        3,
        "is an HTML page",
    ),
    "a semicolon table as label file": (
        lambda t, s, d: ingest(s[0], csv_file(t, "image_name;tags\na;b\n"), t / "out"),
        3,
        "separated by ';'",
    ),
    "an output that is something else": (
        lambda t, s, d: ingest(s[0], s[1], s[0]),
        3,
        "is not a dataset",
    ),
    "a share out of range": (
        lambda t, s, d: ingest(s[0], s[1], t / "out", "--valid", "1.5"),
        2,
        "between 0 and 1",
    ),
    "an unknown recipe": (lambda t, s, d: ["train", "--config", "smok"], 2, 'Did you mean "smoke"'),
    "a misspelt flag": (
        lambda t, s, d: [*SMOKE, "--train.bach-size", "3"],
        2,
        "Did you mean --train.batch-size",
    ),
    "a misspelt command": (lambda t, s, d: ["trian"], 2, 'Did you mean "train"'),
    "a misspelt YAML key": (
        lambda t, s, d: ["train", "--config", yaml_file(t, "train: {bach_size: 3}")],
        2,
        'Did you mean "batch_size"',
    ),
    "a batch of 0": (
        lambda t, s, d: [*SMOKE, "--train.batch-size", "0"],
        2,
        "greater than or equal to 2",
    ),
    "a learning rate that is no number": (
        lambda t, s, d: [
            "train",
            "--config",
            yaml_file(t, "stages: [{size: 64, epochs: 1, lr: fast}]"),
        ],
        2,
        "stages.1.lr",
    ),
    "no dataset": (lambda t, s, d: SMOKE, 2, "no dataset is given"),
    "a dataset without manifest": (
        lambda t, s, d: [*SMOKE, "--dataset", without_manifest(t, d), "--storage", str(t / "runs")],
        3,
        "no dataset.json",
    ),
    "an unknown split": (
        lambda t, s, d: [*SMOKE, "--dataset", d.path, "--data.split", "rando"],
        3,
        'Did you mean "random"',
    ),
    "a missing checkpoint": (
        lambda t, s, d: [
            "predict",
            "--checkpoint",
            str(t / "no" / "last"),
            "--dataset",
            d.path,
            "--out",
            str(t / "p"),
        ],
        2,
        "there is no checkpoint",
    ),
    "a missing run": (
        lambda t, s, d: [
            "predict",
            "--checkpoint",
            "RUN",
            "--storage",
            str(t),
            "--dataset",
            d.path,
            "--out",
            str(t / "p"),
        ],
        2,
        'there is no run "RUN"',
    ),
    "a missing checkpoint to start from": (
        lambda t, s, d: [
            *SMOKE,
            "--dataset",
            d.path,
            "--storage",
            str(t / "runs"),
            "--init-from",
            "nothing",
        ],
        2,
        'no run "nothing"',
    ),
    "a checkpoint with other classes": (
        lambda t, s, d: [
            *SMOKE,
            "--dataset",
            d.path,
            "--storage",
            str(t / "runs"),
            "--init-from",
            with_other_classes(t, d),
        ],
        2,
        "the same classes in another order",
    ),
    "a prediction with other classes": (
        lambda t, s, d: [
            "predict",
            "--checkpoint",
            with_other_classes(t, d),
            "--dataset",
            d.path,
            "--out",
            str(t / "p"),
        ],
        2,
        "the same classes in another order",
    ),
    "a missing predictions file": (
        lambda t, s, d: ["evaluate", str(t / "p.parquet"), "--out", str(t / "out")],
        3,
        "p.parquet",
    ),
    "a predictions file that is none": (
        lambda t, s, d: ["evaluate", str(csv_file(t, "a,b")), "--out", str(t / "out")],
        3,
        "labels.csv",
    ),
    "a read-only storage path": (
        lambda t, s, d: [*SMOKE, "--dataset", d.path, "--storage", "/proc/raytrain"],
        7,
        "cannot make",
    ),
    "more workers than CPUs": (
        lambda t, s, d: [
            *SMOKE,
            "--dataset",
            d.path,
            "--storage",
            str(t / "runs"),
            "--num-workers",
            "500",
        ],
        5,
        "500 workers are asked for",
    ),
    "synchronised BatchNorm without GPUs": (
        lambda t, s, d: [
            *SMOKE,
            "--dataset",
            d.path,
            "--storage",
            str(t / "runs"),
            "--model.batch-norm",
            "sync",
        ],
        2,
        "needs GPUs",
    ),
    "passes smaller than BatchNorm needs": (
        lambda t, s, d: [*SMOKE, "--dataset", d.path, "--train.accumulate", "5"],
        2,
        "--train.batch-size 10",
    ),
    "a resumed dry run": (
        lambda t, s, d: ["train", "--resume", "first", "--dry-run"],
        2,
        "--dry-run cannot be used with it",
    ),
    "a negative seed": (
        lambda t, s, d: [
            "ingest",
            "--images",
            str(s[0]),
            "--labels",
            str(s[1]),
            "--out",
            str(t / "d"),
            "--seed",
            "-1",
        ],
        2,
        "less than 0",
    ),
    "a part that no split has": (
        lambda t, s, d: [
            "predict",
            "--checkpoint",
            "c",
            "--dataset",
            d.path,
            "--out",
            str(t / "p"),
            "--part",
            "tset",
        ],
        2,
        "tset",
    ),
    "missing weights": (
        lambda t, s, d: [
            *SMOKE,
            "--dataset",
            d.path,
            "--storage",
            str(t / "runs"),
            "--model.weights",
            "no.pth",
        ],
        2,
        "neither",
    ),
    "an unknown network": (
        lambda t, s, d: [
            *SMOKE,
            "--dataset",
            d.path,
            "--storage",
            str(t / "runs"),
            "--model.arch",
            "resnet51",
        ],
        2,
        'Did you mean "resnet',
    ),
    "a batch larger than the data": (
        lambda t, s, d: [*SMOKE, "--dataset", d.path, "--train.batch-size", "4096"],
        2,
        "training tiles",
    ),
    "a search of nothing": (
        lambda t, s, d: [
            *("tune", "--config", "smoke", "--dataset", d.path, "--space", empty_file(t)),
        ],
        2,
        "nothing is searched",
    ),
    "a search and its thresholds": (
        lambda t, s, d: ["tune", "--thresholds", "p.parquet", "--reruns", "1"],
        2,
        "--thresholds and --reruns cannot be used together",
    ),
    "a search to go on with another recipe": (
        lambda t, s, d: ["tune", "--resume", "s", "--config", "smoke"],
        2,
        "config cannot change",
    ),
    "a search that is not there": (
        lambda t, s, d: ["tune", "--resume", "s", "--storage", str(t)],
        2,
        'there is no search "s"',
    ),
    "a space that is not there": (
        lambda t, s, d: ["tune", "--config", "smoke", "--space", str(t / "no.yaml")],
        2,
        "does not exist",
    ),
    "a picture for --images": (
        lambda t, s, d: ingest(next(s[0].iterdir()), s[1], t / "out"),
        2,
        "is a picture",
    ),
    "a table for --images": (lambda t, s, d: ingest(s[1], s[1], t / "out"), 2, "is a file"),
    "a picture to predict": (
        lambda t, s, d: [
            "predict",
            "--checkpoint",
            with_other_classes(t, d),
            "--images",
            str(next(s[0].iterdir())),
            "--out",
            str(t / "p"),
        ],
        2,
        "is a picture",
    ),
    "predictions under the name of a table": (
        lambda t, s, d: [
            "predict",
            "--checkpoint",
            "x",
            "--dataset",
            d.path,
            "--out",
            str(t / "p.csv"),
        ],
        2,
        "names a table, and predictions are a Parquet file of logits",
    ),
    "flags of folders for a dataset": (
        lambda t, s, d: [
            "predict",
            "--checkpoint",
            "x",
            "--dataset",
            d.path,
            "--out",
            str(t / "p"),
            "--subfolders",
        ],
        2,
        "cannot be used with --dataset",
    ),
    "a list of pictures that is not there": (
        lambda t, s, d: ingest(t / "no.txt", s[1], t / "out"),
        3,
        "no.txt does not exist",
    ),
    "a folder as label file": (
        lambda t, s, d: ingest(s[0], s[0], t / "out"),
        3,
        "is a folder, not a label file",
    ),
    "an argument that is not UTF-8": (
        lambda t, s, d: ingest(f"{s[0]}/f\udcf4ret", s[1], t / "out"),
        2,
        "<0xF4>",
    ),
    "two ways of labels": (
        lambda t, s, d: ingest(
            s[0], s[1], t / "out", "--tags-column", "x", "--label-columns", "a,b"
        ),
        2,
        "--label-columns",
    ),
    "columns of folders": (
        lambda t, s, d: ingest(s[0], "folders", t / "out", "--label-columns", "a,b"),
        2,
        "no columns",
    ),
    "rows of folders": (
        lambda t, s, d: ingest(s[0], "folders", t / "out", "--join-rows"),
        2,
        "no columns",
    ),
    "labels for missing tiles without a sample": (
        lambda t, s, d: [
            "submission",
            good_predictions(t),
            "--out",
            str(t / "s.csv"),
            "--missing",
            "x",
        ],
        2,
        "--sample",
    ),
    "no labels for missing tiles": (
        lambda t, s, d: [
            "submission",
            good_predictions(t),
            "--out",
            str(t / "s.csv"),
            "--sample",
            "x",
            "--missing",
            " ",
        ],
        2,
        "names no label",
    ),
    "a sample that is not there": (
        lambda t, s, d: [
            "submission",
            good_predictions(t),
            "--out",
            str(t / "s.csv"),
            "--sample",
            str(t / "no.csv"),
        ],
        3,
        "no.csv",
    ),
    "thresholds that are not there": (
        lambda t, s, d: [
            "submission",
            good_predictions(t),
            "--out",
            str(t / "s.csv"),
            "--thresholds",
            str(t / "no.json"),
        ],
        3,
        "no.json",
    ),
}


def good_predictions(folder):
    path = str(folder / "good.parquet")
    predictions.write(
        path,
        predictions.Predictions(
            ("a", "b"), np.zeros((2, 3), np.float32), None, ("x", "y", "z"), {}
        ),
    )
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_sentence_with_its_exit_code_and_leaves_nothing(
    mistake, tmp_path, tiles, dataset, capfd
):
    make, code, words = MISTAKES[mistake]
    arguments = make(tmp_path, tiles, dataset)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run_command(arguments) == code
    message = capfd.readouterr().err
    assert words in message and "Traceback" not in message
    assert "next: " in message and f"exit code {code}" in message.splitlines()[-1]
    assert len(message.splitlines()) <= 5
    new = {p.name for p in tmp_path.iterdir()} - set(before)
    # The storage path was probed; no run stands in it, and its name stays free.
    assert new <= {"runs"} and not list((tmp_path / "runs").glob("*"))


def test_nothing_that_is_printed_holds_the_keys_of_a_uri(capfd):
    assert run_command(["train", "--dataset", "s3://KEY:SECRET@bucket/data", "--print-config"]) == 0
    captured = capfd.readouterr()
    assert (
        "dataset: s3://***@bucket/data" in captured.out
        and "SECRET" not in captured.out + captured.err
    )


def raytrain(*arguments, **env):
    code = "from raytrain.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | env,
        timeout=120,
    )


def test_help_answers_without_torch_and_shows_only_what_works():
    began = time.monotonic()
    code = "import sys; from raytrain.cli.main import run_command; run_command(['--help']); print('torch' in sys.modules or 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    print(f"--help took {time.monotonic() - began:.2f} s")
    assert done.stdout.strip().endswith("False")
    for command in (
        "quickstart",
        "download",
        "ingest",
        "data",
        "train",
        "tune",
        "predict",
        "evaluate",
        "submission",
        "runs",
        "lr-find",
        "bench",
        "doctor",
    ):
        assert command in done.stdout
    for later in ("serve", "export", "finetune"):
        assert later not in done.stdout


def test_the_printed_configuration_is_a_recipe_that_runs(tmp_path, capsys):
    assert (
        run_command([*SMOKE, "--train.batch-size", "16", "--stages", "3-4", "--print-config"]) == 0
    )
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    recipe = load_recipe(str(tmp_path / "printed.yaml"))
    assert recipe.train.batch_size == 16 and recipe.selected == (3, 4)


def test_environment_and_flags_reach_the_command(capsys, monkeypatch):
    monkeypatch.setenv("RAYTRAIN_TRAIN__BATCH_SIZE", "20")
    monkeypatch.setenv("RAYTRAIN_TRAIN__WD", "0.125")
    assert run_command([*SMOKE, "--train.batch-size", "24", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "batch_size: 24" in printed and "wd: 0.125" in printed


def test_a_dry_run_prints_the_plan_and_writes_no_run(dataset, tmp_path, capsys):
    arguments = [
        *SMOKE,
        "--dataset",
        dataset.path,
        "--storage",
        str(tmp_path / "runs"),
        "--num-workers",
        "2",
        "--train.batch-size",
        "31",
        "--dry-run",
    ]
    assert run_command(arguments) == 0
    printed = capsys.readouterr().out
    for words in (
        "128 training and 32 validation tiles",
        "global batch 31, per worker 15 or 16",
        "1 epochs x 5 steps of 31, 2 of 3 layer groups frozen",
        "checkpoints: ",
        "tile cache: 2 MB at 64 px",
        "read two batches: 62 tiles",
        "stage 1 stage-1-32",
        "stage 4 stage-2-64",
    ):
        assert words in printed
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_mistake_in_a_process_has_the_exit_code_of_the_house(tmp_path):
    done = raytrain("train", "--config", "smok")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error_of_ours():
    code = "from raytrain.cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", "--config", "smoke", "--print-config"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    message = process.stderr.read()
    assert process.wait() == 141 and message == ""
