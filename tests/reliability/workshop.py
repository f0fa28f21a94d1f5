"""What the cases work on: a small dataset written without Ray, and a recipe with a network of half a million weights."""

import json
import shutil
from pathlib import Path

from figures import code_hash
from group import run_group, trace
from handmade import encoded, scene, write_dataset

from raytrain.config import Recipe, load_recipe

CLASSES = ["agriculture", "clear", "cloudy", "primary", "water"]
TRAIN, VALID, SIDE = 64, 16, 256


def dataset(path: Path, side: int = SIDE) -> str:
    """Writes 64 training and 16 validation tiles in 10 shards; returns the place. Does nothing where they are."""
    if not (path / "dataset.json").exists():
        tiles = {
            f"t_{i}": (encoded(scene(i, side), "JPEG"), " ".join(_labels(i)))
            for i in range(TRAIN + VALID)
        }
        parts = ["train"] * TRAIN + ["valid"] * VALID
        write_dataset(
            path, tiles, CLASSES, {"random": parts}, rows_per_shard=8, tile_size=side, older=False
        )
    return str(path)


def recipe(
    path: str, sizes: tuple[int, int] = (128, 256), epochs: int = 2, **train: object
) -> Recipe:
    """The lesson's four stages with timm's `test_resnet`; `train` are fields of that part."""
    settings = {"batch_size": 8, "threads": 1, "ema": 0.9, **train}
    smoke = load_recipe(
        "smoke", {"dataset": path, "model": {"arch": "timm:test_resnet"}, "train": settings}
    )
    stages = [
        stage.model_copy(update={"size": sizes[n // 2], "epochs": epochs})
        for n, stage in enumerate(smoke.stages)
    ]
    return smoke.model_copy(update={"stages": tuple(stages)})


def once(folder: Path, name: str, make) -> Path:
    """What several cases need, kept beside their folders: `make` gets a place to fill by the first of them."""
    path = folder.parent / f"shared-{code_hash()}" / name
    if not path.exists():
        partial = path.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(path)
    return path


def undisturbed(folder: Path, settings: Recipe, name: str) -> tuple[list, list[dict]]:
    """The trace of a recipe that nothing disturbs, trained without Ray, and what rank 0 met: a dict per batch, in order."""

    def make(path: Path) -> None:
        run_group(settings, path / "run", settings.num_workers)
        (path / "trace.json").write_text(json.dumps(trace(path / "run")))

    path = once(folder, name, make)
    batches = [
        json.loads(line) for line in (path / "run" / "batches-0.jsonl").read_text().splitlines()
    ]
    return json.loads((path / "trace.json").read_text()), batches


def same_trace(run: Path, whole: list) -> bool:
    """Whether a run left the bits of another's trace."""
    return json.loads(json.dumps(trace(run))) == whole


def _labels(i: int) -> list[str]:
    return [label for n, label in enumerate(CLASSES) if (i >> n) & 1] or CLASSES[:1]
