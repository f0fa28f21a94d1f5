"""R12: files of strangers with code in them. The code would leave a file behind; nothing may, and each is refused in a sentence."""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from figures import Case, Checks, Figure, Outcome
from group import run_alone
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray
from sentences import flaw, said
from test_archives import HOSTILE, SMALL
from workshop import CLASSES, dataset, recipe

from raytrain.checkpoints import layout, writing
from raytrain.data.archives import extract
from raytrain.data.download import destination_of
from raytrain.data.sources import images_in
from raytrain.errors import RaytrainError
from raytrain.evaluation import predictions

NAMES = ["t_0", "t_1"]


class Payload:
    """Unpickled, it runs a command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def rehashed(path: Path, **files: bytes) -> None:
    """Replaces files of a checkpoint (`meta_json=...`) and makes its manifest agree, as an attacker would."""
    for name, content in files.items():
        (
            path
            / name.replace("_json", ".json")
            .replace("_pt", ".pt")
            .replace("_safetensors", ".safetensors")
        ).write_bytes(content)
    names = [file.name for file in path.iterdir() if file.name != layout.MANIFEST]
    manifest = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / layout.MANIFEST).write_text(json.dumps(manifest))


def _yaml(canary: Path) -> str:
    return f"train: !!python/object/apply:os.system [\"touch '{canary}'\"]\n"


def _pickled_column(canary: Path, count: int = len(NAMES)) -> pa.Array:
    """The column type that Ray unpickles where its values are read."""
    return ArrowPythonObjectArray.from_objects([Payload(canary)] * count)


def _command(*arguments: str) -> str:
    """Runs a command that has to refuse. Returns its sentence."""
    done = said(list(arguments))
    return (
        done.error if 1 < done.code < 8 else f"exit code {done.code}: Traceback {done.text[-300:]}"
    )


def _raised(do: Callable[[], object]) -> str:
    try:
        do()
    except RaytrainError as error:
        return str(error)
    except Exception as error:
        return f"Traceback {type(error).__name__}: {error}"
    return "Traceback: it was taken"


def _train_state(folder: Path, canary: Path) -> str:
    settings = recipe(dataset(folder / "data", 64), (32, 64), epochs=2).model_copy(
        update={"select": "1"}
    )
    run_alone(settings, folder / "run")
    buffer = io.BytesIO()
    torch.save({"optimizer": Payload(canary)}, buffer)
    rehashed(folder / "run" / "checkpoints" / "last", train_state_pt=buffer.getvalue())
    longer = settings.model_copy(update={"select": "1-2"})
    return _raised(lambda: run_alone(longer, folder / "run"))


def _weights_in_checkpoint(folder: Path, canary: Path) -> str:
    model = torch.nn.Linear(2, 2)
    writing.save(
        str(folder / "c"), model, {"stage": 1, "epoch": 1, "classes": CLASSES, "arch": "resnet18"}
    )
    rehashed(folder / "c", model_safetensors=pickle.dumps(Payload(canary)))
    return _command(
        "predict",
        "--checkpoint",
        str(folder / "c"),
        "--images",
        str(folder),
        "--out",
        str(folder / "p"),
    )


def _outside(folder: Path, canary: Path) -> str:
    """A manifest that names a file elsewhere."""
    writing.save(
        str(folder / "c"),
        torch.nn.Linear(2, 2),
        {"stage": 1, "epoch": 1, "classes": CLASSES, "arch": "resnet18"},
    )
    manifest = json.loads((folder / "c" / layout.MANIFEST).read_text())
    (folder / "c" / layout.MANIFEST).write_text(
        json.dumps(manifest | {"../../../../etc/passwd": "0"})
    )
    return _command(
        "predict",
        "--checkpoint",
        str(folder / "c"),
        "--images",
        str(folder),
        "--out",
        str(folder / "p"),
    )


def _weights_file(folder: Path, canary: Path) -> str:
    torch.save({"0.weight": Payload(canary)}, folder / "evil.pth")
    path = dataset(folder / "data", 64)
    return _command(
        "train",
        "--config",
        "smoke",
        "--dataset",
        path,
        "--dry-run",
        "--storage",
        str(folder / "runs"),
        "--model.weights",
        str(folder / "evil.pth"),
    )


def _shard(column: str, folder: Path, canary: Path) -> str:
    """A whole dataset with right hashes, one of whose columns holds objects."""
    path = Path(dataset(folder / "data", 64))
    shard = path / "shards" / "part-00000.parquet"
    table = pq.read_table(shard)
    objects = _pickled_column(canary, table.num_rows)
    known = column in table.column_names
    table = (
        table.set_column(table.column_names.index(column), column, objects)
        if known
        else table.append_column(column, objects)
    )
    pq.write_table(table, shard)
    manifest = json.loads((path / "dataset.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    # As an older dataset, of which each start reads the shards.
    del manifest["labels_sha256"]
    (path / "dataset.json").write_text(json.dumps(manifest))
    if not known:  # what nobody reads harms nobody
        run_alone(
            recipe(str(path), (32, 64), epochs=1).model_copy(update={"select": "1"}),
            folder / "run",
        )
        return "trained\n  why:  foreign columns are never read"
    return _raised(lambda: run_alone(recipe(str(path), (32, 64), epochs=1), folder / "run"))


def _predictions(folder: Path, canary: Path) -> str:
    known = {"schema_version": 1, "classes": ["a"], "meta": {}}
    table = pa.table({"image_name": NAMES, "logits": _pickled_column(canary)})
    pq.write_table(
        table.replace_schema_metadata({predictions.KEY: json.dumps(known).encode()}),
        folder / "p.parquet",
    )
    return _command("evaluate", str(folder / "p.parquet"), "--out", str(folder / "e"))


def _pictures(folder: Path) -> None:
    (folder / "tiles").mkdir()
    for name in NAMES:
        (folder / "tiles" / f"{name}.jpg").write_bytes(b"not looked at")


def _labels(folder: Path, canary: Path) -> str:
    _pictures(folder)
    pq.write_table(
        pa.table({"image_name": NAMES, "tags": _pickled_column(canary)}), folder / "labels.parquet"
    )
    return _command(
        "ingest",
        "--images",
        str(folder / "tiles"),
        "--labels",
        str(folder / "labels.parquet"),
        "--out",
        str(folder / "out"),
    )


def _foreign_label_column(folder: Path, canary: Path) -> str:
    _pictures(folder)
    table = pa.table({"image_name": NAMES, "tags": ["a", "b"], "more": _pickled_column(canary)})
    pq.write_table(table, folder / "labels.parquet")
    images_in(str(folder / "tiles")).label_from_file(str(folder / "labels.parquet"))
    return "read\n  why:  foreign columns are never read"


def _recipe_file(folder: Path, canary: Path) -> str:
    (folder / "r.yaml").write_text(_yaml(canary))
    return _command("train", "--config", str(folder / "r.yaml"), "--print-config")


def _space(folder: Path, canary: Path) -> str:
    (folder / "s.yaml").write_text(_yaml(canary))
    return _command(
        "tune",
        "--config",
        "smoke",
        "--space",
        str(folder / "s.yaml"),
        "--storage",
        str(folder / "runs"),
    )


def _run_config(folder: Path, canary: Path) -> str:
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "config.yaml").write_text(_yaml(canary))
    return _command("train", "--resume", "a", "--storage", str(folder / "runs"))


def _picture(folder: Path, canary: Path) -> str:
    """A pickle under the name of a picture; no reader of pictures, and none of .npy or .pkl files, unpickles."""
    from raytrain.data import images

    try:
        images.inspect(pickle.dumps(Payload(canary)), "t_0.jpg")
    except images.BadImage as error:
        return f"{error.kind}: {error.detail}\n  why:  quarantined"
    return "Traceback: it was taken"


def _archived(name: str, folder: Path, canary: Path) -> str:
    """An archive whose members lead elsewhere, or are more than they say; `canary` is beside the folder it is unpacked to."""
    (folder / "source").mkdir()
    (folder / "deep" / "er").mkdir(parents=True)
    path = HOSTILE[name][0](folder / "source")
    before = {p for p in folder.rglob("*") if p.is_file()}
    found = _raised(lambda: extract(path, folder / "deep" / "er" / "out", destination_of, SMALL))
    outside = [
        p
        for p in folder.rglob("*")
        if p.is_file() and p not in before and folder / "deep" / "er" / "out" not in p.parents
    ]
    return f"Traceback: wrote {outside}" if outside else found


ATTACKS: dict[str, Callable[[Path, Path], str]] = {
    "state of the optimiser": _train_state,
    "weights of a checkpoint": _weights_in_checkpoint,
    "manifest of a checkpoint": _outside,
    "file of weights": _weights_file,
    "pictures of a shard": partial(_shard, "image"),
    "targets of a shard": partial(_shard, "target"),
    "foreign column of a shard": partial(_shard, "more"),
    "logits of predictions": _predictions,
    "labels in Parquet": _labels,
    "foreign column of labels": _foreign_label_column,
    "recipe": _recipe_file,
    "space of a search": _space,
    "config.yaml of a run": _run_config,
    "picture": _picture,
    **{f"archive, {name}": partial(_archived, name) for name in HOSTILE},
}
# Of archives the fast ones: three of them take seconds to make.
SLOW = ("tar.gz", "7z bomb", "zip bomb", "gzip bomb")


def attacked(name: str, folder: Path) -> Outcome:
    """One attack."""
    checks, canary = Checks(), folder / "canary"
    told = ATTACKS[name](folder, canary)
    checks.add(not canary.exists(), f"{name}: its code ran")
    checks.add(not flaw(told), f"{name}: {flaw(told)}")
    return checks.outcome()


def control(folder: Path) -> Outcome:
    """The code does run where files are read without care: else nothing would be shown."""
    checks = Checks()
    readers: dict[str, Callable[[Path], object]] = {
        "pickle": lambda canary: pickle.loads(pickle.dumps(Payload(canary))),  # noqa: S301
        "torch": lambda canary: _loaded_without_care(canary),
        "yaml": lambda canary: yaml.unsafe_load(_yaml(canary)),
        "column": lambda canary: _column_read_without_care(canary),
    }
    for name, read in readers.items():
        read(folder / name)
        checks.add((folder / name).exists(), f"{name}: the payload does nothing")
    return checks.outcome()


def _loaded_without_care(canary: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Payload(canary), buffer)
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


def _column_read_without_care(canary: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": _pickled_column(canary)}), sink)
    pq.read_table(io.BytesIO(sink.getvalue())).column("x").to_pylist()


FIGURES = [
    Figure(
        "R12",
        "files with code or hostile members that run or write anything",
        "0",
        [
            Case("payloads work elsewhere", control, True),
            *(
                Case(
                    f"attack by {name}",
                    partial(attacked, name),
                    not any(word in name for word in SLOW),
                )
                for name in ATTACKS
            ),
        ],
        lambda outcomes: f"{sum(o.passed < o.of for o in outcomes)} of {len(outcomes) - 1}",
    ),
]
