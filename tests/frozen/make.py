"""Makes the files of today's formats that every later version must open: dataset, run, checkpoints, predictions.

    python tests/frozen/make.py NAME --archive tests/frozen/formats.tar.xz

adds a folder NAME, such as checkpoint-2, to the archive. With PYTHONPATH on an older checkout it makes what that one wrote.
The network is timm's test_resnet with random weights, rounded so that they compress; paths are relative.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch

TILES = 20
ARCH = "timm:test_resnet"
# All training tiles are one batch: the run is asked whether to stop only at the end of an epoch.
BATCH = 16
INGEST = """
import sys
try:
    from raytrain.cli.main import main
except ModuleNotFoundError:
    from raytrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


def main(words: list[str]) -> None:
    """Makes the files and adds them to the archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="folder in the archive")
    parser.add_argument("--archive", type=Path, required=True)
    options = parser.parse_args(words)
    archive = options.archive.absolute()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        if archive.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(root, filter="data")
        folder = root / options.name
        folder.mkdir()
        os.chdir(folder)
        _write_tiles(folder)
        _train(folder)
        _forget_paths(folder)
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for path in sorted(root.iterdir()):
                tar.add(path, path.name)
    print(f"{archive}: {archive.stat().st_size / 1e6:.2f} MB")


def _write_tiles(folder: Path) -> None:
    """Paints small tiles and ingests them into `dataset`."""
    from PIL import Image

    from raytrain.data import synthetic

    pictures, labels = synthetic.write(folder / "tiles", TILES, 5)
    for path in Path(pictures).iterdir():
        Image.open(path).resize((32, 32)).save(path, quality=75)
    words = ["ingest", "--images", str(pictures), "--labels", str(labels), "--out", "dataset"]
    subprocess.run([sys.executable, "-c", INGEST, *words], check=True, cwd=folder)
    for path in sorted((folder / "tiles").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "tiles").rmdir()


def _train(folder: Path) -> None:
    """Trains the first of two epochs of a frozen stage into `runs/frozen`."""
    from raytrain import runs
    from raytrain.config import load_recipe
    from raytrain.data.dataset import open_dataset
    from raytrain.training.loop import fit

    try:
        from raytrain.training.services import Hooks
        from raytrain.worker import Worker
    except ModuleNotFoundError:
        from raytrain.training.hooks import Hooks

        from raytrain.training.step import Worker

    dataset = open_dataset(str(folder / "dataset"))
    values = {
        "dataset": str(folder / "dataset"),
        "storage": str(folder / "runs"),
        "model": {"arch": ARCH, "weights": _rounded_body(folder)},
        "train": {"batch_size": BATCH, "precision": "fp32", "threads": 1},
        "stages": [{"size": 32, "epochs": 2, "freeze": True, "lr": 0.01}],
        "num_workers": 1,
    }
    recipe = load_recipe("smoke", values)
    run = runs.create(recipe, "frozen", dataset)
    path = getattr(run, "path", None) or run.place
    fit(recipe, dataset, path, Worker(), Hooks(stop=lambda: "SIGTERM"))
    (folder / "body.pt").unlink()


def _rounded_body(folder: Path) -> str:
    """A file of random weights of the body with few significant bits."""
    import timm

    torch.manual_seed(11)
    network = timm.create_model(ARCH.removeprefix("timm:"), num_classes=0, global_pool="")
    state = {}
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            # Four significant bits.
            mantissa, exponent = torch.frexp(value)
            value = torch.ldexp((mantissa * 16).round() / 16, exponent)
        state[name] = value
    torch.save(state, folder / "body.pt")
    return str(folder / "body.pt")


def _forget_paths(folder: Path) -> None:
    """Makes the absolute paths in all files relative to the folder."""
    prefix = f"{folder}/"
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".yaml", ".json", ".jsonl"):
            path.write_text(path.read_text().replace(prefix, ""))
        if path.name == "predictions.parquet":
            table = pq.read_table(path)
            meta = {}
            for key, value in table.schema.metadata.items():
                meta[key] = value.decode().replace(prefix, "")
            pq.write_table(table.replace_schema_metadata(meta), path)
    for path in folder.rglob("env.json"):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | {"command": "tests/frozen/make.py", "host": "host"}))
    for manifest in folder.rglob("MANIFEST.json"):
        hashes = {}
        for name in json.loads(manifest.read_text()):
            content = (manifest.parent / name).read_bytes()
            hashes[name] = hashlib.sha256(content).hexdigest()
        manifest.write_text(json.dumps(hashes))


if __name__ == "__main__":
    main(sys.argv[1:])
