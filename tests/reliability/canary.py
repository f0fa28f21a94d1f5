"""R24: keys in the environment and in URIs: in no file of a run, a dataset, a report, nor of Ray; in nothing printed."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pyarrow.fs as pafs
import writers
import yaml
from figures import Case, Checks, Outcome, numbers
from group import run_alone
from handmade import NETWORK
from sentences import captured
from session import PATIENCE_S, Session, kill
from workshop import dataset, recipe

from raytrain import runs, storage
from raytrain.cli.main import run_command
from raytrain.data.dataset import open_dataset
from raytrain.output import Output
from raytrain.report.conclude import conclude

KEY, SECRET, OTHERS = "AKIACANARY", "c4n4ry-of-a-uri", "c4n4ry-of-the-environment"
ENVIRONMENT = {
    "KAGGLE_USERNAME": OTHERS,
    "KAGGLE_KEY": OTHERS,
    "AWS_SECRET_ACCESS_KEY": OTHERS,
    "RAY_AUTH_TOKEN": OTHERS,
}
# Not the driver that records: these are the commands as they are.
CLI = [sys.executable, "-u", "-c", "from raytrain.cli.main import main; main()"]
STORE = f"s3://{KEY}:{SECRET}@bucket"


class _Store(pafs.SubTreeFileSystem):
    """An object store has no folders to make first."""

    def open_output_stream(self, path: str, **options):
        Path(self.base_path, path).parent.mkdir(parents=True, exist_ok=True)
        return super().open_output_stream(path, **options)


class _Bucket:
    """A folder instead of a bucket: all of the program's paths to an object store but the network."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.opened = folder, list[str]()

    def __call__(self, uri: str) -> tuple[pafs.FileSystem, str]:
        self.opened.append(uri)
        return _Store(str(self.folder), pafs.LocalFileSystem()), "bucket"


def _trained(bucket: Path) -> list[str]:
    """A run, from its directory to its report. Returns the lines that it said."""
    lines: list[str] = []
    dataset(bucket / "bucket" / "data", 64)
    settings = recipe(f"{STORE}/data", (32, 64), epochs=1)
    settings = settings.model_copy(update={"storage": f"{STORE}/runs", "select": "1"})
    data = open_dataset(f"{STORE}/data")
    run = runs.create(settings, "a", data)
    with captured() as streams, patch("sys.stdout", Output(streams[0])):
        print(f"run {run.name} in {run.path}")
        run_alone(settings, run.path, report=print)
        conclude(run.path)
    lines.append(streams[0].getvalue())
    assert (
        runs.find("a", f"{STORE}/runs").recipe == settings
    )  # --resume finds its dataset with the keys
    runs.write_failure(run, RuntimeError(f"{STORE}/data is gone"), 1)
    return lines


def _commands(folder: Path) -> list[str]:
    """What commands print of such places, errors included."""
    found = []
    for arguments in (
        ["runs", "list", "--storage", f"{STORE}/runs"],
        ["runs", "show", "a", "--storage", f"{STORE}/runs"],
        ["runs", "report", "a", "--storage", f"{STORE}/runs"],
        ["runs", "show", "b", "--storage", f"{STORE}/runs"],
        ["data", "check", f"{STORE}/data", "--fast", "--out", str(folder)],
        ["data", "check", f"{STORE}/nothing"],
        ["train", "--dataset", f"{STORE}/nothing"],
        ["train", "--dataset", f"{STORE}/data", "--storage", f"{STORE}/runs", "--name", "a"],
        ["train", "--dataset", f"{STORE}/data", "--train.batch-size", "4000"],
        ["predict", "--checkpoint", f"{STORE}/runs/b", "--images", "x", "--out", f"{STORE}/p"],
        ["evaluate", f"{STORE}/runs/a/predictions.parquet", "--out", f"{STORE}/evaluation"],
        ["evaluate", f"{STORE}/nothing.parquet", "--out", f"{STORE}/evaluation"],
        ["train", "--config", f"{STORE}/nothing.yaml"],
        ["train", "--config", "smoke", "--dataset", f"{STORE}/data", "--print-config"],
    ):
        with captured() as streams:
            run_command(arguments)
        found.append(streams[0].getvalue() + streams[1].getvalue())
    return found


def scanned(folder: Path) -> Outcome:
    """A run on a store whose URI holds keys, with other keys in the environment."""
    checks, bucket = Checks(), _Bucket(folder / "store")
    (folder / "store" / "bucket").mkdir(parents=True)
    storage._store.cache_clear()
    with patch.object(storage, "_store", bucket), patch.dict("os.environ", ENVIRONMENT):
        lines = [*_trained(folder / "store"), *_commands(folder)]
    checks.add(
        any(SECRET in uri for uri in bucket.opened),
        "the keys never came to the store: nothing was tried",
    )
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    for name in (
        "config.yaml",
        "env.json",
        "meta.json",
        "predictions.parquet",
        "report.html",
        "model_card.md",
        "failure.json",
    ):
        checks.add(name in names, f"{name} was not written")
    return _judged(checks, keys_in(folder), _keys_printed(lines))


def ingested(folder: Path) -> Outcome:
    """Ingest of pictures in such a store, a damaged one among them."""
    checks, bucket = Checks(), _Bucket(folder / "store")
    (folder / "store" / "bucket").mkdir(parents=True)
    writers.painted(folder / "store" / "bucket")
    (folder / "store" / "bucket" / "tiles" / "t_1.jpg").write_bytes(b"damaged")
    with (
        patch.object(storage, "_store", bucket),
        patch.dict("os.environ", ENVIRONMENT),
        captured() as streams,
    ):
        writers.ingest_from(f"{STORE}/tiles", f"{STORE}/labels.csv", f"{STORE}/out")
    checks.add(
        (folder / "store" / "bucket" / "out" / "quarantine.jsonl").exists(),
        "nothing was quarantined",
    )
    return _judged(checks, keys_in(folder), _keys_printed(stream.getvalue() for stream in streams))


@dataclass(frozen=True)
class Search:
    """Places that were searched, and those of them that hold a key."""

    searched: int
    found: list[str]


def keys_in(*folders: Path) -> Search:
    """Looks for the keys in all files below some folders."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return Search(len(files), [str(path) for path in files if _holds_key(path.read_bytes())])


def _keys_printed(texts: Iterable[str]) -> Search:
    said = list(texts)
    return Search(len(said), [text for text in said if _holds_key(text.encode())])


def _holds_key(content: bytes) -> bool:
    # Ray writes pickles as hexadecimal digits into its JSON.
    return any(
        form in content
        for canary in (KEY, SECRET, OTHERS)
        for form in (canary.encode(), canary.encode().hex().encode())
    )


def _judged(checks: Checks, *searches: Search) -> Outcome:
    found = [where for search in searches for where in search.found]
    for where in found:
        checks.add(False, f"a key in {where}")
    return checks.outcome(keys=[len(found)], searched=[sum(search.searched for search in searches)])


def told(outcomes: list[Outcome]) -> str:
    """Keys found, and in how many places they were looked for."""
    return f"{sum(numbers(outcomes, 'keys')):.0f} in {sum(numbers(outcomes, 'searched')):.0f} files and texts"


@contextmanager
def bucket() -> Iterator[str]:
    """The URI of a place in a bucket of a local server, keys and query included; `storage.join` goes on from it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = (
        f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    )
    path = f"s3://{KEY}:{SECRET}@bucket/place{query}"
    storage.make_dir(path)
    try:
        yield path
    finally:
        server.stop()


def under_ray(folder: Path) -> Outcome:
    """Every command that starts Ray or takes --storage, in a bucket: its objects, all of Ray's files, and what is printed."""
    checks, searches = Checks(), []
    with bucket() as path:
        for number, arguments in enumerate(_all_commands(folder, path)):
            own = folder / f"{number}-{arguments[0]}"
            own.mkdir()
            with Session(own, *arguments, program=CLI, env=ENVIRONMENT) as session:
                code = session.end()
                checks.add(
                    code == 0,
                    f"{' '.join(arguments[:2])}: exit code {code}, {session.text()[-1500:]}",
                )
                searches.append(keys_in(own, session.tmp))
        searches.append(_keys_in_objects(path))
    return _judged(checks, *searches)


def _all_commands(folder: Path, path: str) -> Iterator[list[str]]:
    """The commands, each of which may use what those before it have left."""
    runs_at, data = storage.join(path, "runs"), storage.join(path, "data")
    storage.upload_directory(Path(dataset(folder / "data", 64)), data)
    writers.painted(folder)
    storage.upload_directory(folder / "tiles", storage.join(path, "tiles"))
    storage.write_bytes(storage.join(path, "labels.csv"), (folder / "labels.csv").read_bytes())
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump({"stages.1.lr": {"loguniform": [0.001, 0.1]}}))
    where = ["--storage", runs_at]
    small = [
        "--config",
        "smoke",
        "--model.arch",
        NETWORK,
        "--dataset",
        data,
        "--num-workers",
        "1",
        "--train.batch-size",
        "8",
        *where,
    ]
    predicted = storage.join(path, "p.parquet")
    yield [
        "ingest",
        "--images",
        storage.join(path, "tiles"),
        "--labels",
        storage.join(path, "labels.csv"),
        "--out",
        storage.join(path, "ingested"),
    ]
    yield ["train", "--name", "a", *small]
    yield ["train", "--name", "b", "--restarts", "1", *small]
    yield ["train", "--resume", "b", *where]
    yield ["lr-find", "--name", "rates", *small]
    yield ["tune", "--name", "search", "--space", str(space), "--num-samples", "2", *small]
    yield [
        "tune",
        "--name",
        "cuts",
        "--thresholds",
        storage.join(runs_at, "a", "predictions.parquet"),
        "--num-samples",
        "2",
        *where,
    ]
    yield ["predict", "--checkpoint", "a", *where, "--dataset", data, "--out", predicted]
    yield ["evaluate", predicted, "--out", storage.join(path, "evaluation")]
    yield ["runs", "report", "a", *where]


def cut(folder: Path) -> Outcome:
    """A search that is killed in the middle, with all that it started: nothing of it could tidy up."""
    checks, searches = Checks(), []
    with bucket() as path:
        search = next(
            command
            for command in _all_commands(folder, path)
            if command[:3] == ["tune", "--name", "search"]
        )
        with Session(folder, *search, program=CLI, env=ENVIRONMENT) as session:
            end = time.monotonic() + PATIENCE_S
            while (
                "  stage 1 of " not in session.text()
                and session.process.poll() is None
                and time.monotonic() < end
            ):
                time.sleep(0.05)
            checks.add(
                session.process.poll() is None,
                f"it ended before it was killed: {session.text()[-1500:]}",
            )
            kill(*(process.pid for process in session.processes()))
            searches.append(keys_in(folder, session.tmp))
        searches.append(_keys_in_objects(path))
    return _judged(checks, *searches)


def _keys_in_objects(path: str) -> Search:
    objects = [file.path for file in storage.files(path, recursive=True)]
    return Search(
        len(objects),
        [name for name in objects if _holds_key(storage.read_bytes(storage.join(path, name)))],
    )


CASES = [
    Case("keys in a run", scanned, True),
    Case("keys in an ingest", ingested, True),
    Case("keys under Ray, command by command", under_ray),
    Case("keys of a search that is killed", cut),
]
