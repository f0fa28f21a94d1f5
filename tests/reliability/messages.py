"""R25: what people type wrongly, and what the world refuses: its exit code, what is wrong, why or what next."""

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import kaggle_server
import numpy as np
import test_cli
import writers
from figures import Case, Checks, Figure, Outcome
from sentences import flaw, said
from workshop import dataset

from raytrain.data import remote
from raytrain.data.dataset import Dataset, open_dataset
from raytrain.evaluation import predictions

# test_cli starts Ray for these.
NEED_RAY = ("GPUs that are not there", "synchronised BatchNorm without GPUs")
SMOKE = ["train", "--config", "smoke"]
PROC = "/proc/raytrain"
Made = tuple[Path, Dataset]


@cache
def _shared(folder: Path) -> Made:
    """A folder of pictures with labels.csv and other files, and a dataset."""
    folder.mkdir(exist_ok=True)
    writers.painted(folder)
    path = open_dataset(dataset(folder / "data", 64))
    (folder / "latin.csv").write_bytes("image_name,tags\nt_0,fôret\n".encode("latin-1"))
    (folder / "utf16.csv").write_text("image_name,tags\nt_0,clear\n", encoding="utf-16")
    (folder / "short.csv").write_text("image_name,tags\nt_0,clear\nt_1\n")
    (folder / "quote.csv").write_text('image_name,tags\nt_0,"clear\n')
    (folder / "page.7z").write_text("<!doctype html><title>Sign in</title>")
    (folder / "tab.yaml").write_text("train:\n\tbatch_size: 3\n")
    (folder / "list.yaml").write_text("- 1\n- 2\n")
    (folder / "space.yaml").write_text("train.wd: {sample: [1, 2]}\n")
    (folder / "path.yaml").write_text("train.wdd: {uniform: [0.1, 0.2]}\n")
    for name, classes in (("a", ("x", "y")), ("b", ("x", "z"))):
        some = predictions.Predictions(
            ("t_0", "t_1"), np.zeros((2, 2), np.float32), None, classes, {}
        )
        predictions.write(str(folder / f"{name}.parquet"), some)
    (folder / "cut.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-9])
    return folder, path


def _ingest(folder: Path, out: Path, labels: str, *more: str) -> list[str]:
    return [
        "ingest",
        "--images",
        str(folder / "tiles"),
        "--labels",
        str(folder / labels),
        "--out",
        str(out / "out"),
        *more,
    ]


def _with_manifest(data: Dataset, folder: Path, change: Callable[[str], str]) -> str:
    (folder / "dataset.json").write_text(change((Path(data.path) / "dataset.json").read_text()))
    return str(folder)


# (exit code, command line from (shared folder, dataset, empty folder)).
MORE: dict[str, tuple[int, Callable[[Path, Dataset, Path], list[str]]]] = {
    "a tab in YAML": (2, lambda f, d, e: ["train", "--config", str(f / "tab.yaml")]),
    "a list in YAML": (2, lambda f, d, e: ["train", "--config", str(f / "list.yaml")]),
    "a stage too many": (2, lambda f, d, e: [*SMOKE, "--stages", "9"]),
    "stages backwards": (2, lambda f, d, e: [*SMOKE, "--stages", "3-1"]),
    "stages in words": (2, lambda f, d, e: [*SMOKE, "--stages", "all"]),
    "no workers": (2, lambda f, d, e: [*SMOKE, "--num-workers", "-1"]),
    "a normalisation that is not known": (
        2,
        lambda f, d, e: [*SMOKE, "--data.normalize", "imagnet"],
    ),
    "a precision that is not known": (2, lambda f, d, e: [*SMOKE, "--train.precision", "fp8"]),
    "a decay of one and a half": (2, lambda f, d, e: [*SMOKE, "--train.ema", "1.5"]),
    "a rate that is no number": (2, lambda f, d, e: [*SMOKE, "--train.wd", "nan"]),
    "a word for a number": (2, lambda f, d, e: [*SMOKE, "--train.seed", "many"]),
    "a flag without its value": (2, lambda f, d, e: [*SMOKE, "--dataset"]),
    "resume of no run": (2, lambda f, d, e: ["train", "--resume", "nobody", "--storage", str(e)]),
    "a dataset in a file": (3, lambda f, d, e: [*SMOKE, "--dataset", str(f / "labels.csv")]),
    "a dataset.json that was cut": (
        3,
        lambda f, d, e: [*SMOKE, "--dataset", _with_manifest(d, e, lambda text: text[:99])],
    ),
    "a dataset.json that is a list": (
        3,
        lambda f, d, e: [*SMOKE, "--dataset", _with_manifest(d, e, lambda text: "[]")],
    ),
    "a dataset.json without its shards": (
        3,
        lambda f, d, e: [
            *SMOKE,
            "--dataset",
            _with_manifest(d, e, lambda text: text.replace("shards", "shrads")),
        ],
    ),
    "an unknown scheme": (7, lambda f, d, e: [*SMOKE, "--dataset", "ftp://host/data"]),
    "predictions of nothing": (
        2,
        lambda f, d, e: ["predict", "--checkpoint", "x", "--out", str(e / "p")],
    ),
    "predictions of two things": (
        2,
        lambda f, d, e: [
            "predict",
            "--checkpoint",
            "x",
            "--out",
            "p",
            "--images",
            "a",
            "--dataset",
            "b",
        ],
    ),
    "bands in words": (
        2,
        lambda f, d, e: [
            "predict",
            "--checkpoint",
            "x",
            "--out",
            "p",
            "--images",
            "a",
            "--bands",
            "red",
        ],
    ),
    "predictions that were cut": (
        3,
        lambda f, d, e: ["evaluate", str(f / "cut.parquet"), "--out", str(e / "o")],
    ),
    "predictions without targets": (
        3,
        lambda f, d, e: ["evaluate", str(f / "a.parquet"), "--out", str(e / "o")],
    ),
    "predictions of other classes": (
        3,
        lambda f, d, e: [
            "submission",
            str(f / "a.parquet"),
            str(f / "b.parquet"),
            "--out",
            str(e / "s.csv"),
        ],
    ),
    "predictions twice": (
        3,
        lambda f, d, e: [
            "submission",
            str(f / "a.parquet"),
            str(f / "a.parquet"),
            "--out",
            str(e / "s.csv"),
        ],
    ),
    "a submission that cannot be written": (
        7,
        lambda f, d, e: ["submission", str(f / "a.parquet"), "--out", f"{PROC}/s.csv"],
    ),
    "a search of no trials": (
        2,
        lambda f, d, e: ["tune", "--space", str(f / "space.yaml"), "--num-samples", "0"],
    ),
    "an unknown sampler": (
        2,
        lambda f, d, e: [
            "tune",
            "--config",
            "smoke",
            "--dataset",
            d.path,
            "--storage",
            str(e),
            "--space",
            str(f / "space.yaml"),
        ],
    ),
    "a search of an unknown field": (
        2,
        lambda f, d, e: [
            "tune",
            "--config",
            "smoke",
            "--dataset",
            d.path,
            "--storage",
            str(e),
            "--space",
            str(f / "path.yaml"),
        ],
    ),
    "a list for a space": (
        2,
        lambda f, d, e: [
            "tune",
            "--config",
            "smoke",
            "--dataset",
            d.path,
            "--storage",
            str(e),
            "--space",
            str(f / "list.yaml"),
        ],
    ),
    "thresholds of no predictions": (
        3,
        lambda f, d, e: ["tune", "--thresholds", str(e / "no"), "--storage", str(e)],
    ),
    "tiles of no dataset": (3, lambda f, d, e: ["data", "show", str(e)]),
    "tiles of an unknown label": (
        3,
        lambda f, d, e: ["data", "show", d.path, "--label", "watr", "--out", str(e / "o.png")],
    ),
    "a check of no dataset": (3, lambda f, d, e: ["data", "check", str(e / "no")]),
    "a rule about an unknown label": (
        3,
        lambda f, d, e: ["data", "check", d.path, "--alone", "cloudi", "--out", str(e / "o.html")],
    ),
    "a split whose name is taken": (
        3,
        lambda f, d, e: [
            "data",
            "split",
            d.path,
            "--name",
            "random",
            "--by",
            "random",
            "--valid",
            "0.5",
        ],
    ),
    "a split by groups without a table": (
        2,
        lambda f, d, e: ["data", "split", d.path, "--name", "g", "--by", "group"],
    ),
    "a run that is not there": (2, lambda f, d, e: ["runs", "show", "nobody", "--storage", str(e)]),
    "a report of no run": (2, lambda f, d, e: ["runs", "report", "nobody", "--storage", str(e)]),
    "labels in Latin-1": (3, lambda f, d, e: _ingest(f, e, "latin.csv")),
    "labels in UTF-16": (3, lambda f, d, e: _ingest(f, e, "utf16.csv")),
    "a row with a field too few": (3, lambda f, d, e: _ingest(f, e, "short.csv")),
    "a quote that stays open": (3, lambda f, d, e: _ingest(f, e, "quote.csv")),
    "labels that are a folder": (3, lambda f, d, e: _ingest(f, e, "tiles")),
    "nothing to validate": (2, lambda f, d, e: _ingest(f, e, "labels.csv", "--valid", "0")),
    "classes that lack a label": (
        3,
        lambda f, d, e: _ingest(f, e, "labels.csv", "--classes", "clear,primry"),
    ),
    "a group without a table": (2, lambda f, d, e: _ingest(f, e, "labels.csv", "--split", "group")),
    "a dataset that cannot be written": (
        7,
        lambda f, d, e: [
            "ingest",
            "--images",
            str(f / "tiles"),
            "--labels",
            str(f / "labels.csv"),
            "--out",
            PROC,
        ],
    ),
    "an archive that is not there": (
        2,
        lambda f, d, e: ["download", "planet", "--from", str(e / "no.7z"), "--out", str(e / "o")],
    ),
    "a web page for an archive": (
        3,
        lambda f, d, e: ["download", "planet", "--from", str(f / "page.7z"), "--out", str(e / "o")],
    ),
    "a folder that cannot be filled": (
        7,
        lambda f, d, e: ["download", "planet", "--from", str(f / "page.7z"), "--out", PROC],
    ),
    "rates for an unknown stage": (
        2,
        lambda f, d, e: ["lr-find", "--config", "smoke", "--stages", "9"],
    ),
    "an unknown part of the bench": (2, lambda f, d, e: ["bench", "--only", "decod"]),
    "a command of two that are not": (2, lambda f, d, e: ["run", "show"]),
}

# (exit code, variable, its value): each with a command that would start Ray.
VARIABLES = [
    (2, "RAY_ADDRESS", "http://127.0.0.1:8265"),
    (2, "RAY_ADDRESS", "127.0.0.1:notaport"),
    (2, "RAY_ADDRESS", ""),
    (5, "RAY_ADDRESS", "127.0.0.1:1"),
    (5, "RAY_ADDRESS", "nowhere.invalid:6379"),
    (2, "RAY_TMPDIR", "/" + "x" * 90),
    (2, "RAY_TMPDIR", "/dev/null"),
    (2, "RAY_AUTH_MODE", "tokn"),
    (2, "GLOO_SOCKET_IFNAME", "eth99"),
    (2, "RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"),
]

# Kaggle's answer to the first question: exit code.
ANSWERS = {401: 4, 403: 4, 404: 4, 429: 75}


def typed(names: list[str], folder: Path) -> Outcome:
    """Command lines, each once."""
    checks, (shared, data) = Checks(), _shared(folder.parent / "messages")
    for name in names:
        empty = folder / "".join(letter for letter in name if letter.isalnum())
        empty.mkdir()
        if name in MORE:
            code, make = MORE[name]
            arguments, word = make(shared, data, empty), ""
        else:
            make, code, word = test_cli.MISTAKES[name]
            arguments = make(empty, (shared / "tiles", shared / "labels.csv"), data)
        done = said(arguments)
        _judge(checks, name, code, word, done.code, done.error)
    return checks.outcome()


def surrounded(folder: Path) -> Outcome:
    """Variables of the environment, in which nothing may start."""
    checks, (_, data) = Checks(), _shared(folder.parent / "messages")
    for code, name, value in VARIABLES:
        with patch.dict(os.environ, {name: value}):
            done = said([*SMOKE, "--dataset", data.path])
        _judge(
            checks,
            f"{name}={value}",
            code,
            value if value != "{}" else "Ray job",
            done.code,
            done.error,
        )
    return checks.outcome()


def answered(folder: Path) -> Outcome:
    """A Kaggle on this machine that refuses."""
    checks = Checks()
    mine = {
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "KAGGLE_USERNAME": "someone",
        "KAGGLE_KEY": "key",
    }
    with patch.dict(os.environ, mine), patch.object(remote, "BACKOFF_S", 0.01):
        for status, code in ANSWERS.items():
            server = kaggle_server.KaggleServer({})
            kaggle_server.redirect(server.port)
            fault = kaggle_server.Fault(status=status, for_ever=True, headers={"Retry-After": "0"})
            server.faults["list"] = [fault]
            done = said(["download", "planet", "--out", str(folder / str(status))])
            server.close()
            _judge(checks, f"Kaggle answers {status}", code, "", done.code, done.error)
    return checks.outcome()


def _judge(checks: Checks, name: str, wanted: int, word: str, code: int, error: str) -> None:
    wrong = [
        f"exit code {code} instead of {wanted}" if code != wanted else "",
        f"no {word!r}" if word not in error else "",
        flaw(error),
    ]
    checks.add(not any(wrong), f"{name}: {', '.join(filter(None, wrong))}: {error}")


KNOWN = [name for name in [*MORE, *test_cli.MISTAKES] if name not in NEED_RAY]
# What test_cli tries in every run of the tests, --quick leaves out.
FIGURES = [
    Figure(
        "R25",
        "errors with their exit code, what, why or next, 3 lines, no traceback",
        "100%",
        [
            Case("mistakes of this table", partial(typed, list(MORE)), True),
            Case("variables of the environment", surrounded, True),
            Case("mistakes of the other table", partial(typed, KNOWN[len(MORE) :])),
            Case("refusals of Kaggle", answered, True),
        ],
    ),
]
