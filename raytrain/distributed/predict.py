"""Batch inference with Ray Data actors: a checkpoint and tiles in, logits as a Parquet file out.

Tiles are prepared as in validation. Decoder, stored size, resize rule and precision are the same,
and the checkpoint names them.
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
from raytrain.data import images, pixels
from raytrain.data.bands import BandRule, KeptBands, as_picture
from raytrain.data.contents import contents, trouble
from raytrain.data.dataset import Dataset, names_of, open_dataset, read_shard
from raytrain.data.listing import LeftOut
from raytrain.data.sources import Images
from raytrain.distributed import gpus
from raytrain.distributed.nodes import Places, check_machines, spread
from raytrain.distributed.session import actors, blocks_of, cpus, quiet_dataset, session, to_go
from raytrain.errors import ConfigError, DataError
from raytrain.evaluation import predictions
from raytrain.training import trained_model
from raytrain.training.trained_model import BATCH, CPU
from raytrain.worker import compute_device

logger = logging.getLogger(__name__)


# Pictures in a block, where they are files of their own. Of a dataset, a shard is a block.
TILES_PER_BLOCK = 256
# Encoded pictures in memory for each thread that decodes.
WINDOW = 4

# A decoded tile, uint8 or uint16 (S, S, C).
Tile = np.ndarray[Any, Any]
# Checkpoint path, test-time augmentation and rule for TIFF files: the first arguments of Predictor.
PredictorArguments = tuple[str, bool, BandRule | None]


@dataclass(frozen=True)
class Predicted:
    """The result of `predict`.

    Attributes:
        path: of the Parquet file.
        tiles: number of predictions in it.
        left_out: files that could not be used.
        known: number of tiles whose target is known.
    """

    path: str
    tiles: int
    left_out: list[LeftOut]
    known: int = 0


def predict(
    checkpoint_path: str,
    out: str,
    *,
    dataset_path: str | None = None,
    part: str = "valid",
    sources: Sequence[Images] = (),
    tta: bool = False,
    bands: BandRule | KeptBands | None = None,
) -> Predicted:
    """Writes the logits of a part of a dataset, or of pictures in folders, to a Parquet file.

    Args:
        checkpoint_path: a checkpoint directory.
        out: file to write.
        dataset_path: a dataset that has the split which the checkpoint was trained on.
        part: part of that split: train, valid, test, or all for the whole dataset.
        sources: pictures in folders or lists, if no dataset is given. Their labels are unknown.
        tta: test-time augmentation: the mean of the logits over the 8 symmetries of the square.
        bands: what becomes of the bands of TIFF files, as at the ingest of the training tiles.
            A checkpoint that was trained on kept bands names them itself.

    Returns:
        Where the predictions are, how many, and which files were left out.

    Raises:
        ConfigError: the checkpoint is missing, or has other classes or tiles than the dataset, or
            other bands than `bands`.
        DataError: there are no usable tiles, or two folders hold a file of the same name.
    """
    checkpoint = reading.load(checkpoint_path)
    rule = _rule(checkpoint, bands)
    blocks, origin = _blocks_and_origin(checkpoint, dataset_path, part, sources)
    # Here only to refuse, before any process starts, what none of them could load.
    trained_model.check_resize(checkpoint)
    trained_model.network_of(checkpoint)
    tiles = "--images" if dataset_path is None else "--dataset"
    places = _places(checkpoint, tiles, blocks)
    meta = {
        "task": checkpoint.meta["task"],
        "checkpoint": checkpoint.path,
        "tta": str(tta).lower(),
    }
    known = None
    # Pictures outside of a dataset have no labels.
    if dataset_path is not None:
        known = np.concatenate([block["known"].to_numpy(bool) for block in blocks])
    path = storage.absolute(out)
    with predictions.writing(path, checkpoint.meta["classes"], meta | origin, known) as writer:
        tables = _run(blocks, (checkpoint.path, tta, rule), places)
        refused = _write_all(tables, writer)
    left_out: list[LeftOut] = []
    for source in sources:
        left_out += source.left_out
    return Predicted(path, writer.tiles, left_out + refused, writer.known)


def _write_all(tables: Iterable[pd.DataFrame], writer: predictions.Writer) -> list[LeftOut]:
    """Writes the results of all usable tiles. Returns the files that were refused.

    Raises:
        DataError: no tile is usable.
    """
    refused: list[LeftOut] = []
    for table in in_order(tables):
        refused += _written(table, writer)
    if not writer.tiles:
        raise DataError(
            f"none of the {len(refused)} pictures can be used; the first, {refused[0]}",
            "there is nothing to predict",
            "check --images, or give the flags that ingest was given",
        )
    return refused


def in_order(tables: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Yields tables in the order of their rows, as soon as all before them are there.

    Blocks come back in any order, and the file must not depend on it. Only what came too early is
    held in memory.

    Args:
        tables: results of `Predictor`. Their column `order` counts the rows from 0 over all tables.
    """
    early: dict[int, pd.DataFrame] = {}
    reached = 0
    for table in tables:
        for piece in _consecutive(table):
            early[int(piece["order"].iloc[0])] = piece
        while reached in early:
            ready = early.pop(reached)
            reached += len(ready)
            yield ready
    assert not early  # Ray returns each block once


def _consecutive(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Divides a table where its rows do not follow each other, as Ray may join blocks."""
    order = table["order"].to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(order) != 1) + 1), len(table)]
    return [table.iloc[start:end] for start, end in itertools.pairwise(cuts)]


def _written(table: pd.DataFrame, writer: predictions.Writer) -> list[LeftOut]:
    """Writes the results of usable tiles. Returns the files that were refused.

    Args:
        table: results of `Predictor`.
        writer: of the file.
    """
    refused = []
    for row in table[table["kind"] != ""].itertuples():
        refused.append(LeftOut(row.image_name, row.kind, row.detail))
    usable = table[table["kind"] == ""]
    if len(usable):
        writer.add(
            usable["image_name"].to_list(),
            np.stack(list(usable["logits"])).astype(np.float32),
            np.stack(list(usable["target"])),
            usable["known"].to_numpy(bool),
        )
    return refused


def _blocks_and_origin(
    checkpoint: reading.Checkpoint,
    dataset_path: str | None,
    part: str,
    sources: Sequence[Images],
) -> tuple[list[pd.DataFrame], dict[str, str]]:
    """The blocks to predict, and what the file of predictions records about their origin."""
    if dataset_path is None:
        origin = {"images": json.dumps([source.origin for source in sources])}
        return _picture_blocks(sources), origin
    dataset = open_dataset(dataset_path)
    fitting.check_fits(
        checkpoint,
        dataset.classes,
        checkpoint.meta["arch"],
        tiles=dataset.tile_format,
        task=dataset.task,
    )
    split = checkpoint.meta["split"]
    origin = {"dataset": dataset.path, "split": split, "part": part}
    return _dataset_blocks(dataset, split, part), origin


def _rule(checkpoint: reading.Checkpoint, bands: BandRule | KeptBands | None) -> BandRule | None:
    """How TIFF files become 8-bit RGB; None where the checkpoint keeps bands, and names them.

    Raises:
        ConfigError: the flags ask for other tiles than the checkpoint was trained on.
    """
    tiles = checkpoint.tile_format
    if tiles.is_plain:
        if not isinstance(bands, KeptBands):
            return bands
        raise ConfigError(
            f"--bands {bands} without --scale keeps bands as they are, but the checkpoint "
            f"{checkpoint.path} was trained on {tiles}",
            "its first layer would read other values than it was trained on",
            f"--bands {bands} --scale LOW,HIGH, as at the ingest of its tiles "
            "(without a --scale that was 0,255)",
        )
    if bands is None or (isinstance(bands, KeptBands) and bands.bands == tiles.file_bands):
        return None
    given = f"--bands {bands}"
    if isinstance(bands, BandRule):
        given = f"--bands {KeptBands(bands.bands)} --scale {bands.low:g},{bands.high:g}"
    raise ConfigError(
        f"{given}, but the checkpoint {checkpoint.path} was trained on {tiles}",
        "its first layer would read other values than it was trained on",
        "leave the flags out: the checkpoint itself says which bands it reads",
    )


class Predictor:
    """An inference actor. It holds the network of a checkpoint and predicts blocks of tiles.

    Args:
        path: of the checkpoint.
        tta: whether to average over the symmetries, as in `predict`.
        bands: how TIFF files become pictures.
        device: where the network computes. The run decides it, see `gpus.device`.
        decoders: number of threads that decode pictures.
    """

    def __init__(
        self,
        path: str,
        tta: bool,
        bands: BandRule | None = None,
        device: torch.device = CPU,
        decoders: int = 1,
    ) -> None:
        self.bands = bands
        self.decoders = decoders
        self.pool = ThreadPoolExecutor(decoders)
        self.model = trained_model.load(path, device, tta=tta)

    def __call__(self, block: pd.DataFrame) -> pd.DataFrame:
        """Predicts the tiles of a block.

        Args:
            block: order, image_name, target, known (whether the target is), and where each
                picture is: `path` of a file with `row` -1, or `path` and `sha256` of a shard with
                the `row` in it.

        Returns:
            order, image_name, target and known as they were; `logits`, float32 (K,), zeros for a
            picture that cannot be used; `kind` and `detail`, why it cannot be used, else empty;
            `pid`.
        """
        pictures = list(self._pictures(block))
        bad = [picture for picture in pictures if isinstance(picture, images.BadImage)]
        cause = trouble(bad, len(block))
        if cause is not None:
            # All files failed for the same outer reason, such as a disk: the run has to end.
            raise cause
        tiles = [picture for picture in pictures if not isinstance(picture, images.BadImage)]
        logits = self._logits_of_all(tiles)
        no_logits = np.zeros(len(self.model.classes), np.float32)
        values: list[np.ndarray[Any, Any]] = []
        kinds: list[str] = []
        details: list[str] = []
        for picture in pictures:
            if isinstance(picture, images.BadImage):
                values.append(no_logits)
                kinds.append(picture.kind)
                details.append(picture.detail)
            else:
                values.append(next(logits))
                kinds.append("")
                details.append("")
        kept = block[["order", "image_name", "target", "known"]]
        return kept.assign(logits=values, kind=kinds, detail=details, pid=os.getpid())

    def _pictures(self, block: pd.DataFrame) -> Iterator[Tile | images.BadImage]:
        """For each row in turn the decoded tile, or why there is none."""
        rows = zip(block["path"], _contents(block), strict=True)
        while True:
            # `pool.map` would take in all encoded pictures at once. A window bounds the memory.
            window = list(itertools.islice(rows, WINDOW * self.decoders))
            if not window:
                return
            yield from self.pool.map(self._decoded, window)

    def _decoded(self, file: tuple[str, bytes | images.BadImage]) -> Tile | images.BadImage:
        """Decodes one picture, given its path and its encoded bytes or why there are none."""
        path, content = file
        if isinstance(content, images.BadImage):
            return content
        try:
            picture = as_picture(content, path, self.bands)
            return pixels.decode(picture, self.model.tiles, self.model.stored_size)
        except images.BadImage as error:
            return error

    def _logits_of_all(self, tiles: list[Tile]) -> Iterator[np.ndarray[Any, Any]]:
        """The logits, float32 (K,), of each tile in turn, computed in batches."""
        for start in range(0, len(tiles), BATCH):
            yield from self.model.logits_of_tiles(np.stack(tiles[start : start + BATCH]))


def _contents(block: pd.DataFrame) -> Iterable[bytes | images.BadImage]:
    """The encoded bytes of the pictures of a block: rows of shards, or files of their own."""
    if block["row"].iloc[0] < 0:
        return contents(block["path"].to_list())
    found: list[bytes | images.BadImage] = []
    # Usually the rows of one shard. Ray may join small blocks: then those of several, in turn.
    rows = zip(block["path"], block["sha256"], block["row"], strict=True)
    for (shard, sha256), rows_of_shard in itertools.groupby(rows, key=operator.itemgetter(0, 1)):
        column = read_shard(shard, ["image"], sha256).column("image")
        found += [column[int(row)].as_py() for _, _, row in rows_of_shard]
    return found


def _places(checkpoint: reading.Checkpoint, flag: str, blocks: list[pd.DataFrame]) -> Places:
    """The files that every machine has to reach.

    Args:
        checkpoint: that predicts.
        flag: that names the tiles.
        blocks: as `Predictor` takes them.
    """
    paths = [path for block in blocks for path in block["path"].unique()]
    manifest = storage.join(checkpoint.path, "MANIFEST.json")
    return Places(read={"--checkpoint": [manifest], flag: spread(paths)})


def _run(
    blocks: list[pd.DataFrame], arguments: PredictorArguments, places: Places
) -> Iterator[pd.DataFrame]:
    """Predicts all blocks in a Ray session and logs the progress. Yields the results as they come.

    Args:
        blocks: as `Predictor` takes them.
        arguments: the first arguments of `Predictor`.
        places: that every machine has to reach.
    """
    total = sum(len(block) for block in blocks)
    done = 0
    began = time.monotonic()
    with session():
        answers = check_machines(places, gpus=True)
        data = _mapped(blocks, arguments, gpus.usable(None, answers))
        for table in blocks_of(data):
            done += len(table)
            # `raytrain bench` reads the number of tiles from this line.
            logger.info(
                f"predict: {done} of {total} tiles (process {table['pid'].iloc[0]}), "
                f"{to_go(done, total, began)}"
            )
            yield table


def processes(machines: list[gpus.Machine], blocks: int) -> int:
    """Number of processes that predict.

    Args:
        machines: those whose GPUs are used; without any, each CPU gets a process.
        blocks: number of blocks. More processes than blocks would have nothing to do.
    """
    processors = gpus.count(machines) or cpus()
    return max(1, min(processors, blocks))


def _mapped(
    blocks: list[pd.DataFrame], arguments: PredictorArguments, machines: list[gpus.Machine]
) -> ray.data.Dataset:
    """Maps the blocks through a pool of `Predictor` actors; Ray computes when results are read.

    Args:
        blocks: as `Predictor` takes them.
        arguments: the first arguments of `Predictor`.
        machines: those whose GPUs are used. Each actor gets one GPU and its share of the CPUs.
            Without machines, each CPU gets an actor.
    """
    data = quiet_dataset(blocks)
    if not machines:
        return data.map_batches(
            Predictor,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pandas",
            compute=actors(len(blocks)),
        )
    share = gpus.cpus_of_each(machines)
    decoders = max(1, int(share))
    return data.map_batches(
        Predictor,
        fn_constructor_args=(*arguments, compute_device(True), decoders),
        batch_format="pandas",
        # With `num_gpus` Ray demands a number of rows. It fills up small blocks with the rows of
        # the next ones.
        batch_size=max(len(block) for block in blocks),
        compute=ray.data.ActorPoolStrategy(
            size=processes(machines, len(blocks)), max_tasks_in_flight_per_actor=2
        ),
        num_gpus=1,
        num_cpus=share,
    )


def _dataset_blocks(dataset: Dataset, split: str, part: str) -> list[pd.DataFrame]:
    """One block for each shard that has rows of the part.

    Args:
        dataset: opened.
        split: name of a split.
        part: train, valid, test or all.

    Returns:
        Tables as `Predictor` takes them; `order` counts the rows of the part from 0.

    Raises:
        DataError: the part is empty.
    """
    rows = np.arange(dataset.rows) if part == "all" else dataset.part_rows(split, part)
    if not len(rows):
        raise DataError(
            f'the split {split} has no part "{part}"',
            "there is nothing to predict",
            "--part train, valid or all",
        )
    # Row numbers count through all shards: that of each shard's first row, and of the end.
    starts = dataset.shard_starts
    blocks = []
    done = 0
    for shard, path in enumerate(dataset.shards):
        mine = rows[(rows >= starts[shard]) & (rows < starts[shard + 1])]
        if not len(mine):
            continue
        order = np.arange(done, done + len(mine))
        done += len(mine)
        block = pd.DataFrame({"order": order, "path": path, "row": mine - starts[shard]})
        block["sha256"] = dataset.manifest["shards"][shard]["sha256"]
        block["image_name"] = names_of(dataset, mine)
        block["target"] = list(dataset.targets[mine])
        block["known"] = dataset.known[mine]
        blocks.append(block)
    return blocks


def _picture_blocks(sources: Sequence[Images]) -> list[pd.DataFrame]:
    """Blocks of up to `TILES_PER_BLOCK` pictures, with empty targets.

    Raises:
        DataError: two pictures have the same name.
    """
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
    table["sha256"] = ""
    table["target"] = [np.zeros(0, np.uint8)] * len(table)
    table["known"] = False
    starts = range(0, len(table), TILES_PER_BLOCK)
    return [table.iloc[start : start + TILES_PER_BLOCK] for start in starts]
