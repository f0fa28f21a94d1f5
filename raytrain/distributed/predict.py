"""Batch inference with Ray Data actors: a checkpoint and tiles in, logits as Parquet out.

Pixels take the same way as in validation: the same decoder, stored size, resize and precision, all from the checkpoint.
"""

from __future__ import annotations

import itertools
import json
import logging
import operator
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch

from raytrain import storage
from raytrain.checkpoints import fitting, reading
from raytrain.data import images
from raytrain.data.bands import BandRule, as_picture
from raytrain.data.contents import contents, trouble
from raytrain.data.dataset import open_dataset, read_shard
from raytrain.data.listing import LeftOut
from raytrain.data.sources import Images
from raytrain.distributed import gpus
from raytrain.distributed.cluster import actors, blocks_of, cpus, quiet_dataset, session, to_go
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import predictions
from raytrain.models import initial_weights, networks
from raytrain.models.precision import default_precision, keep_fp32
from raytrain.training import transforms

logger = logging.getLogger(__name__)


BATCH = 64
TILES_PER_BLOCK = 256
SYMMETRIES = 8
CPU = torch.device("cpu")
# Encoded pictures in memory for each thread that decodes.
WINDOW = 4


@dataclass(frozen=True)
class Predicted:
    """Where the predictions are, how many, and the files that were left out."""

    path: str
    tiles: int
    left_out: list[LeftOut]


def predict(
    checkpoint_path: str,
    out: str,
    *,
    dataset_path: str | None = None,
    part: str = "valid",
    sources: Sequence[Images] = (),
    tta: bool = False,
    bands: BandRule | None = None,
) -> Predicted:
    """Writes the logits of a dataset's part (or of folders of pictures) to a Parquet file.

    Args:
        checkpoint_path: a checkpoint directory.
        out: file to write.
        dataset_path: dataset whose split (the one trained on) has `part`.
        part: train, valid, test or all.
        sources: pictures in folders or lists, instead of a dataset; their labels are unknown.
        tta: mean logits over the 8 symmetries of the square.
        bands: how TIFF files in the folders become pictures, as at the ingest of the training tiles.

    Raises:
        ConfigError: the checkpoint is missing or has other classes than the dataset.
        DataError: no tiles, or the same name in two folders.
    """
    checkpoint = reading.load(checkpoint_path)
    meta = {
        "task": checkpoint.meta["task"],
        "checkpoint": checkpoint.path,
        "tta": str(tta).lower(),
    }
    if dataset_path is not None:
        dataset = open_dataset(dataset_path)
        fitting.check_fits(checkpoint, dataset.classes, checkpoint.meta["arch"])
        blocks = _dataset_blocks(dataset_path, checkpoint.meta["split"], part)
        meta |= {"dataset": dataset.path, "split": checkpoint.meta["split"], "part": part}
    else:
        blocks = _picture_blocks(sources)
        meta |= {"images": json.dumps([source.origin for source in sources])}
    _check_resize(checkpoint)
    _network(checkpoint)
    table = _run(blocks, (checkpoint.path, tta, bands))
    left_out = [entry for source in sources for entry in source.left_out]
    bad = table[table["kind"] != ""].sort_values("order")
    left_out += [LeftOut(row.image_name, row.kind, row.detail) for row in bad.itertuples()]
    good = table[table["kind"] == ""].sort_values("order")
    if good.empty:
        raise DataError(
            f"none of the {len(table)} pictures can be used; the first, {left_out[-len(bad)]}",
            "there is nothing to predict",
            "check --images, or give the flags that ingest was given",
        )
    target = np.stack(list(good["target"])) if dataset_path is not None else None
    outcome = predictions.Predictions(
        tuple(good["image_name"]),
        np.stack(list(good["logits"])).astype(np.float32),
        target,
        tuple(checkpoint.meta["classes"]),
        meta,
    )
    predictions.write(storage.absolute(out), outcome)
    return Predicted(storage.absolute(out), len(good), left_out)


def _check_resize(checkpoint: reading.Checkpoint) -> None:
    if checkpoint.meta["resize"]["rule"] != transforms.RESIZE_RULE:
        raise ConfigError(
            f"{checkpoint.path} resizes tiles by another rule: {checkpoint.meta['resize']['rule']}",
            f"this version knows {transforms.RESIZE_RULE}; other pixels give other predictions",
            "predict with the version that trained it (meta.json, versions)",
        )


def _network(checkpoint: reading.Checkpoint) -> torch.nn.Sequential:
    model = networks.build(checkpoint.meta["arch"], len(checkpoint.meta["classes"]), 0.0)
    initial_weights.load_weights(model, checkpoint.judged_weights(), checkpoint.path)
    return model


class Predictor:
    """One inference actor: holds the network of a checkpoint.

    Args:
        path: of the checkpoint.
        tta, bands: as in `predict`.
        device: where the network computes, as `gpus.device` says of the run.
        decoders: threads that decode pictures.
    """

    def __init__(
        self,
        path: str,
        tta: bool,
        bands: BandRule | None = None,
        device: torch.device = CPU,
        decoders: int = 1,
    ) -> None:
        self.tta, self.bands, self.device = tta, bands, device
        keep_fp32()
        self.decoders, self.pool = decoders, ThreadPoolExecutor(decoders)
        checkpoint = reading.load(path)
        self.meta = checkpoint.meta
        self.model = _network(checkpoint)
        networks.to_device(self.model, self.device).eval()
        capable = default_precision(self.device) == "bf16"
        self.bf16 = self.meta["precision"] == "bf16" and capable

    def __call__(self, block: pd.DataFrame) -> pd.DataFrame:
        """Replaces the pictures by `logits` (float32 (K,)), or by `kind` and `detail` of why one cannot be used."""
        pixels, kinds, details = [], [], []
        errors = []
        for found in self._pictures(block):
            if isinstance(found, images.BadImage):
                errors.append(found)
                kinds.append(found.kind)
                details.append(found.detail)
            else:
                pixels.append(found)
                kinds.append("")
                details.append("")
        if cause := trouble(errors, len(block)):
            raise cause
        logits = iter(
            [
                row
                for i in range(0, len(pixels), BATCH)
                for row in self._logits(pixels[i : i + BATCH])
            ]
        )
        width = len(self.meta["classes"])
        values = [next(logits) if not kind else np.zeros(width, np.float32) for kind in kinds]
        known = block[["order", "image_name", "target"]]
        return known.assign(logits=values, kind=kinds, detail=details, pid=os.getpid())

    def _pictures(self, block: pd.DataFrame) -> Iterator[np.ndarray[Any, Any] | images.BadImage]:
        """Of each row uint8 (S, S, 3), or why there is none; decoded by threads, in windows that bound the memory."""
        rows = zip(block["path"], _contents(block), strict=True)
        while window := list(itertools.islice(rows, WINDOW * self.decoders)):
            yield from self.pool.map(self._decoded, *zip(*window, strict=True))

    def _decoded(
        self, path: str, content: bytes | images.BadImage
    ) -> np.ndarray[Any, Any] | images.BadImage:
        """uint8 (S, S, 3), or why there is no picture."""
        if isinstance(content, images.BadImage):
            return content
        try:
            return images.decode(
                as_picture(content, path, self.bands), self.meta["resize"]["stored_size"]
            )
        except images.BadImage as error:
            return error

    def _logits(self, pixels: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(self.device)
        batch = transforms.valid_pixels(stacked, self.meta["size"], self.meta["normalize"])
        views = [transforms.symmetry(batch, i) for i in range(SYMMETRIES if self.tta else 1)]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            outputs = [
                self.model(view.contiguous(memory_format=torch.channels_last)).float()
                for view in views
            ]
        values: np.ndarray[Any, Any] = torch.stack(outputs).mean(0).cpu().numpy()
        return values


def _contents(block: pd.DataFrame) -> Iterable[bytes | images.BadImage]:
    """Encoded bytes of a block: rows of shards, or files of their own."""
    if block["row"].iloc[0] < 0:
        return contents(block["path"].to_list())
    # One shard; or several, one after the other, where Ray has put small blocks together.
    paths = zip(block["path"], block["row"], strict=True)
    shards = itertools.groupby(paths, key=operator.itemgetter(0))
    return [
        content
        for shard, rows in shards
        for content in _rows_of(shard, [int(row) for _, row in rows])
    ]


def _rows_of(shard: str, rows: list[int]) -> list[bytes]:
    column = read_shard(shard, ["image"]).column("image")
    return [column[row].as_py() for row in rows]


def _run(blocks: list[pd.DataFrame], predictor: tuple[str, bool, BandRule | None]) -> pd.DataFrame:
    total, done, tables, began = sum(map(len, blocks)), 0, [], time.monotonic()
    with session():
        data = _mapped(blocks, predictor, gpus.usable(None))
        for table in blocks_of(data):
            tables.append(table)
            done += len(table)
            logger.info(
                f"predict: {done} of {total} tiles (process {table['pid'].iloc[0]}), {to_go(done, total, began)}"
            )
    return pd.concat(tables, ignore_index=True)


def processes(machines: list[gpus.Machine], blocks: int) -> int:
    """How many processes predict: one for each GPU of the machines, or for each CPU where there is none; at most one a block."""
    return max(1, min(gpus.count(machines) or cpus(), blocks))


def _mapped(
    blocks: list[pd.DataFrame],
    predictor: tuple[str, bool, BandRule | None],
    machines: list[gpus.Machine],
) -> ray.data.Dataset:
    """The blocks on their way through a pool of predictors: one for each GPU with its share of CPUs, else one for each CPU."""
    data = quiet_dataset(blocks)
    if not machines:
        return data.map_batches(
            Predictor,
            fn_constructor_args=predictor,
            batch_size=None,
            batch_format="pandas",
            compute=actors(len(blocks)),
        )
    share = gpus.cpus_of_each(machines)
    return data.map_batches(
        Predictor,
        fn_constructor_args=(*predictor, gpus.device(True), max(1, int(share))),
        batch_format="pandas",
        # Ray takes no GPU without a number of rows, and fills small blocks up to it from the next.
        batch_size=max(map(len, blocks)),
        compute=ray.data.ActorPoolStrategy(
            size=processes(machines, len(blocks)), max_tasks_in_flight_per_actor=2
        ),
        num_gpus=1,
        num_cpus=share,
    )


def _dataset_blocks(dataset_path: str, split: str, part: str) -> list[pd.DataFrame]:
    """One table per shard with the rows of the part: order (row in the dataset), path of the shard, row in it."""
    dataset = open_dataset(dataset_path)
    rows = np.arange(dataset.rows) if part == "all" else dataset.part_rows(split, part)
    if not len(rows):
        raise DataError(
            f'the split {split} has no part "{part}"',
            "there is nothing to predict",
            "--part train, valid or all",
        )
    starts = np.concatenate([[0], np.cumsum(dataset.shard_rows)])
    blocks = []
    for shard, path in enumerate(dataset.shards):
        mine = rows[(rows >= starts[shard]) & (rows < starts[shard + 1])]
        table = pd.DataFrame({"order": mine, "path": path, "row": mine - starts[shard]})
        table["image_name"] = dataset.table["image_name"].iloc[mine].to_list()
        table["target"] = list(dataset.targets[mine])
        blocks.append(table)
    return [block for block in blocks if len(block)]


def _picture_blocks(sources: Sequence[Images]) -> list[pd.DataFrame]:
    paths: dict[str, str] = {}
    for source in sources:
        for name, path in zip(source.table["image_name"], source.table["path"], strict=True):
            if name in paths:
                raise DataError(
                    f"{paths[name]} and {path} have the same name",
                    "predictions are looked up by name",
                    "rename one, or predict the folders into two files",
                )
            paths[name] = path
    table = pd.DataFrame(
        {"order": range(len(paths)), "path": paths.values(), "row": -1, "image_name": paths.keys()}
    )
    table["target"] = [np.zeros(0, np.uint8)] * len(table)
    return [table.iloc[i : i + TILES_PER_BLOCK] for i in range(0, len(table), TILES_PER_BLOCK)]
