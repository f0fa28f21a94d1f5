"""Names a stage by everything that makes its result, so that no stage is trained twice.

The key of a stage is a hash of its own settings and of the key of the stage before it. The first
one follows a hash of all that the stages share: dataset, network, optimiser, versions, and what the
machine decides where the recipe leaves it open. Two runs whose stages have the same keys compute
the same weights: to the bit on a CPU, and up to the order of sums on a GPU. No ray.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from raytrain import config, storage
from raytrain.checkpoints import layout
from raytrain.config import NAMED_WEIGHTS, Recipe, Stage
from raytrain.data import images
from raytrain.data.dataset import Dataset
from raytrain.errors import StorageError
from raytrain.models import bodies
from raytrain.models.precision import default_precision
from raytrain.tasks.choice import resolved
from raytrain.tiles import sampling
from raytrain.tiles.cache import check_store, kept_size
from raytrain.tiles.stream import stream_window
from raytrain.training import execution
from raytrain.worker import Worker

# Raised with every change of the code after which the same recipe gives other bits.
CODE_VERSION = 1
# SHA-256 of the sources that were last compared with that number, see `sources_hash`.
SOURCES = "29ffce604b36f770213269d1b8feffe99cc8b482ea4564a0d828d771e8de7b3e"
# The modules that compute a result. Those that only record one are among them: telling them apart
# by hand would go wrong sooner than noting a hash once more.
SOURCE_PATTERNS = (
    "training/*.py",
    "tiles/*.py",
    "models/*.py",
    "tasks/*.py",
    "data/pixels.py",
    "data/bands.py",
    "data/channels.py",
    "data/images.py",
    "config/recipe.py",
)
# This file, which holds the hash, and the one that only calls what trains.
NOT_SOURCES = ("stage_keys.py", "stages.py")
# Hexadecimal digits of a key: 80 bits, so that 10^9 stages collide with a probability of 10^-6.
KEY_DIGITS = 20

# Each field of the configuration is in one of the next three tables; a test holds them complete.
# Fields whose value is in the key as it stands.
IN_KEY: dict[type[BaseModel], set[str]] = {
    Recipe: {"lr", "remap_labels"},
    config.Model: {"arch", "dropout", "batch_norm"},
    config.Data: {"normalize", "repeat"},
    config.Augment: set(config.Augment.model_fields),
    config.Train: {
        "wd",
        "optimizer",
        "schedule",
        "drop_last",
        "seed",
        "loss",
        "label_smoothing",
        "class_weights",
        "mixup",
        "ema",
        "clip_norm",
        "accumulate",
    },
    Stage: {"size", "epochs", "lr", "start_size"},
}
# Fields that are in the key by what they stand for: a hash of files, or the value that is chosen.
RESOLVED: dict[type[BaseModel], set[str]] = {
    Recipe: {
        "dataset",
        "model",
        "data",
        "train",
        "stages",
        "init_from",
        "tiles",
        "num_workers",
        "max_workers",
        "use_gpu",
    },
    config.Model: {"weights"},
    config.Data: {"split", "stored_size", "window_gb", "augment"},
    config.Augment: set(),
    config.Train: {"batch_size", "precision", "threads", "execution"},
    Stage: {"freeze", "batch_size", "augment"},
}
# Fields that change no weight: which stages a run trains, what it records, and where.
WITHOUT_EFFECT: dict[type[BaseModel], set[str]] = {
    Recipe: {"select", "metrics", "storage", "mlflow"},
    config.Model: set(),
    config.Data: set(),
    config.Augment: set(),
    config.Train: {"save_every_s", "stall_s"},
    Stage: {"name"},
}


@dataclass(frozen=True)
class Facts:
    """What a machine decides about training where the recipe leaves it open.

    Attributes:
        device: cpu or cuda.
        world: number of workers.
        precision: bf16, fp32 or fp64.
        threads: of torch in each worker on a CPU; None on a GPU.
        streamed: whether tiles are streamed from the shards.
        window: number of shards that are shuffled together; None for all.
    """

    device: str
    world: int
    precision: str
    threads: int | None
    streamed: bool
    window: int | None

    def to_json(self) -> dict[str, Any]:
        """Returns what search.yaml holds of them."""
        return asdict(self)


def differences(one: Facts, other: Facts) -> str:
    """Returns what differs between what two machines decide, such as `threads 1 is now 2`."""
    before = one.to_json()
    found = []
    for name, value in other.to_json().items():
        if before[name] != value:
            found.append(f"{name} {before[name]} is now {value}")
    return ", ".join(found)


def facts(recipe: Recipe, dataset: Dataset, worker: Worker) -> Facts:
    """Finds out what this machine decides about a recipe.

    Args:
        recipe: with absolute paths.
        dataset: opened.
        worker: this process.

    Raises:
        ConfigError: `data.stored_size` is larger than the tiles.
        StorageError: the tiles cannot be cached, and the recipe asks for that.
    """
    precision: str = recipe.train.precision
    if precision == "auto":
        precision = default_precision(worker.device)
    threads = None
    if worker.device.type == "cpu":
        threads = recipe.train.threads or worker.cpu_share
    streamed = _streams(recipe, dataset)
    window = None
    if streamed:
        window = stream_window(dataset, recipe.data.window_gb)
    return Facts(worker.device.type, worker.world, precision, threads, streamed, window)


def _streams(recipe: Recipe, dataset: Dataset) -> bool:
    if recipe.tiles == "stream":
        return True
    try:
        check_store(dataset, kept_size(recipe, dataset))
        return False
    except StorageError:
        if recipe.tiles != "auto":
            raise
        return True


def with_facts(recipe: Recipe, found: Facts) -> Recipe:
    """Returns the recipe that leaves nothing open which the facts decide.

    Args:
        recipe: complete.
        found: what a machine has decided about it.
    """
    train = recipe.train.model_copy(
        update={"precision": found.precision, "threads": found.threads or recipe.train.threads}
    )
    tiles = recipe.tiles
    if found.streamed:
        tiles = "stream"
    elif found.device == "cpu":
        tiles = "cache"
    placement = {"tiles": tiles, "use_gpu": found.device == "cuda", "num_workers": found.world}
    return recipe.model_copy(update={"train": train, **placement})


class Keys:
    """Names the stages of recipes that train on one dataset.

    Hashes of files are computed once. Whoever changes such a file meanwhile changes what its name
    stands for, and is refused by the process that trains.
    """

    def __init__(self, dataset: Dataset, found: Facts) -> None:
        """Starts.

        Args:
            dataset: opened.
            found: what the machine decides about training.
        """
        self._dataset = dataset
        self._facts = found
        self._hashes: dict[str, str] = {}
        self._rows: dict[str, int] = {}

    def of(self, recipe: Recipe) -> tuple[str, ...]:
        """Returns the keys of the stages that a recipe selects, in their order.

        Args:
            recipe: validated, with absolute paths and the numbers of its normalisation.

        Raises:
            FileNotFoundError: the file of the weights or the checkpoint to start from is gone.
        """
        key = _hash(self._shared(recipe))
        found_keys = []
        for number, stage in recipe.selected_stages():
            key = _hash([key, number, self._own(recipe, stage)])
            found_keys.append(key)
        return tuple(found_keys)

    def _shared(self, recipe: Recipe) -> dict[str, Any]:
        """What all stages of a recipe share."""
        dataset = self._dataset
        task = resolved(recipe, dataset.task)
        return {
            "code": CODE_VERSION,
            "versions": _versions(recipe.model.arch),
            "task": dataset.task,
            "dataset": dataset.hash,
            "split": dataset.split_hash(recipe.data.split),
            "tiles": dataset.tile_format.content(),
            "decoder": images.DECODER_VERSION,
            "stored_size": kept_size(recipe, dataset),
            "model": _fields(recipe.model) | {"weights": self._weights(recipe.model.weights)},
            "init_from": self._checkpoint(recipe.init_from),
            "recipe": _fields(recipe),
            "data": _fields(recipe.data),
            "train": _fields(task.train),
            "facts": self._facts.to_json(),
        }

    def _own(self, recipe: Recipe, stage: Stage) -> dict[str, Any]:
        """What a stage has of its own."""
        batch_size = recipe.batch_size(stage)
        # Rounded up: the last batch may be smaller.
        steps = stage.epochs * -(-self._row_count(recipe) // batch_size)
        device = torch.device(self._facts.device)
        how = execution.chosen(recipe.train.execution, device, steps, self._facts.world)
        return _fields(stage) | {
            "frozen_groups": stage.frozen_groups,
            "batch_size": batch_size,
            "augment": _fields(recipe.augment(stage)),
            "execution": how,
        }

    def _row_count(self, recipe: Recipe) -> int:
        """Number of tiles in an epoch."""
        what = json.dumps([recipe.data.split, recipe.data.repeat])
        if what not in self._rows:
            self._rows[what] = len(sampling.training_rows(recipe, self._dataset))
        return self._rows[what]

    def _weights(self, weights: str) -> str:
        """A name of weights that torchvision pins, or the hash of a file."""
        if weights in NAMED_WEIGHTS:
            return weights
        return self._hash_of(weights)

    def _checkpoint(self, path: str | None) -> str | None:
        """The hash of a checkpoint's manifest, which holds those of all its files."""
        if path is None:
            return None
        return self._hash_of(storage.join(path, layout.MANIFEST))

    def _hash_of(self, path: str) -> str:
        if path not in self._hashes:
            self._hashes[path] = hashlib.sha256(storage.read_bytes(path)).hexdigest()
        return self._hashes[path]


def keys(recipe: Recipe, dataset: Dataset, found: Facts) -> tuple[str, ...]:
    """Returns the keys of the stages of a single recipe; see `Keys`."""
    return Keys(dataset, found).of(recipe)


def _fields(model: BaseModel) -> dict[str, Any]:
    """The fields of a model whose values are in the key as they stand, as JSON has them."""
    return model.model_dump(mode="json", include=IN_KEY[type(model)])


@functools.cache
def _versions(arch: str) -> dict[str, str]:
    """Versions of the packages that build and run the network."""
    names = ["torch", "torchvision"]
    if arch.startswith(bodies.TIMM):
        names.append("timm")
    return {name: metadata.version(name) for name in names}


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def sources_hash() -> str:
    """Returns the SHA-256 of the sources that compute a result, by path and content."""
    root = Path(str(resources.files("raytrain")))
    digest = hashlib.sha256()
    for pattern in SOURCE_PATTERNS:
        for path in sorted(root.glob(pattern)):
            if path.name in NOT_SOURCES:
                continue
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def undecided_fields() -> list[str]:
    """Returns the fields of the configuration that are in none of the tables, or in several."""
    found = []
    for model, known in IN_KEY.items():
        tables: tuple[Mapping[type[BaseModel], set[str]], ...] = (RESOLVED, WITHOUT_EFFECT)
        for name in model.model_fields:
            count = int(name in known) + sum(name in table[model] for table in tables)
            if count != 1:
                found.append(f"{model.__name__}.{name}")
    return found
