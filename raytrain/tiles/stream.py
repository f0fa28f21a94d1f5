"""Decodes tiles anew each time they are needed, for datasets that are larger than the disk.

A thread reads shards ahead of the training step. It hands the encoded tiles of each batch to the
workers of a `torch.utils.data.DataLoader`, which decode them. The keyed order of the epoch alone
decides which tiles those are, so a run resumes exactly where it was. Memory holds at most the
shards of two windows, at the border between one window and the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from raytrain import storage
from raytrain.data.dataset import Dataset, read_shard
from raytrain.data.tile_format import TileFormat
from raytrain.errors import DataError
from raytrain.tiles.cache import decode_checked
from raytrain.tiles.feeds import ahead, ahead_on_gpu, copying_stream
from raytrain.tiles.sampling import Rows

# Shards read at once: a single reader would spend most of its time waiting for an object store.
READERS = 8
# Batches of encoded tiles that wait for a decoder.
ENCODED_AHEAD = 16
# Batches of decoded tiles of each decoder that wait for the training step.
DECODED_AHEAD = 2
COLUMNS = ["image_name", "image", "crc32"]
# (encoded picture, its crc32, its name in an error message) of each tile of a batch.
Encoded = list[tuple[bytes, int, str]]


def stream_window(dataset: Dataset, gigabytes: float) -> int | None:
    """Returns how many shards make up a window, or None if all of them do.

    The result depends on dataset and recipe, not on the machine, because the order of tiles must be
    the same everywhere.

    Args:
        dataset: an opened dataset.
        gigabytes: the size of a window; its shards are taken to be as large as the largest one.
    """
    largest = max(storage.size(path) for path in dataset.shards)
    window = max(1, int(gigabytes * 1e9 / largest))
    if window >= len(dataset.shards):
        return None
    return window


class StreamFeed:
    """Yields pictures as a `Feed`, uint8 or uint16 (B, C, S, S) in channels-last memory.

    Only one iteration can be active at a time: a new one ends the one before.

    Args:
        dataset: an opened dataset.
        size: side of the decoded tiles, pixels.
        window: number of shards held at once; None for all.
        processes: number of decoder processes; with 0, the calling thread decodes.
        device: where the pictures go.

    The iterator raises a DataError if a shard or a picture is damaged.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        *,
        window: int | None,
        processes: int,
        device: torch.device,
    ) -> None:
        self.shards = ShardWindow(dataset, window or len(dataset.shards))
        self.device = device
        self.stream = copying_stream(device)
        self.encoded = _CurrentBatches()
        decoder = _Decoder(size, dataset.tile_format)
        self.loader: DataLoader[Any] | None = _loader(self.encoded, decoder, processes)

    def __call__(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        """See `Feed`."""
        pictures = self._decoded(wanted)
        if self.stream is None:
            return pictures
        return ahead_on_gpu(pictures, self.stream)

    def close(self) -> None:
        """Ends the decoders and the readers."""
        # The last reference: the loader ends its processes when it is collected.
        self.loader = None
        self.shards.close()

    def _decoded(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        assert self.loader is not None
        # Ends the thread of an earlier iteration that was left before its end.
        self.encoded.batches.close()
        encoded = (self.shards.encoded(rows) for rows in wanted)
        with closing(ahead(encoded, ENCODED_AHEAD)) as batches:
            self.encoded.batches = batches
            for pixels in self.loader:
                if isinstance(pixels, DataError):
                    raise pixels
                if self.device.type == "cuda":
                    pixels = pixels.pin_memory().to(self.device, non_blocking=True)
                # From (B, S, S, C) to (B, C, S, S).
                yield pixels.permute(0, 3, 1, 2)


class ShardWindow:
    """Holds the encoded tiles of the most recently used shards.

    Args:
        dataset: an opened dataset.
        window: the most shards to hold between two batches.
    """

    def __init__(self, dataset: Dataset, window: int) -> None:
        self.paths = dataset.shards
        self.window = window
        self.hashes = [shard["sha256"] for shard in dataset.manifest["shards"]]
        # Row number of the first tile of each shard, then the number of all tiles.
        self.first = dataset.shard_starts
        # By shard number, the least recently used shard first.
        self.held: OrderedDict[int, pa.Table] = OrderedDict()
        self.readers = ThreadPoolExecutor(min(READERS, window))

    def encoded(self, rows: Rows) -> Encoded:
        """Returns the encoded tiles of some rows, in the order of the rows."""
        shards = np.searchsorted(self.first, rows, side="right") - 1
        self._hold([int(shard) for shard in np.unique(shards)])
        tiles = []
        for shard, row in zip(shards, rows, strict=True):
            tiles.append(self._tile(int(shard), int(row)))
        return tiles

    def close(self) -> None:
        """Ends the readers and releases the shards."""
        self.readers.shutdown(cancel_futures=True)
        self.held.clear()

    def _hold(self, wanted: list[int]) -> None:
        """Reads the wanted shards that are missing, and drops others that have no room."""
        for shard in wanted:
            if shard in self.held:
                self.held.move_to_end(shard)
        missing = [shard for shard in wanted if shard not in self.held]
        # A batch at the border of two windows may want more shards than a window has. It keeps all
        # that it wants.
        room = self.window - len(missing)
        wanted_here = len(wanted) - len(missing)
        while len(self.held) > max(room, wanted_here):
            self.held.popitem(last=False)
        tables = self.readers.map(self._read, missing)
        for shard, table in zip(missing, tables, strict=True):
            self.held[shard] = table

    def _read(self, shard: int) -> pa.Table:
        # One chunk for each column, so that finding a row takes no search.
        return read_shard(self.paths[shard], COLUMNS, self.hashes[shard]).combine_chunks()

    def _tile(self, shard: int, row: int) -> tuple[bytes, int, str]:
        table = self.held[shard]
        position = row - self.first[shard]
        name, image, check = (table.column(key)[position].as_py() for key in COLUMNS)
        return image, check, f"{name} in {self.paths[shard]}"


class _CurrentBatches(Sampler[Encoded]):
    """Gives the loader the batches of the current iteration.

    The processes of the loader live through all iterations, so the loader is made only once.
    """

    def __init__(self) -> None:
        self.batches: Generator[Encoded] = ahead(iter(()), 1)

    def __iter__(self) -> Iterator[Encoded]:
        return self.batches


class _Decoder(TorchDataset[Any]):
    """Decodes batches in a process of the loader."""

    def __init__(self, size: int, tiles: TileFormat) -> None:
        self.size = size
        self.tiles = tiles

    def __getitem__(self, encoded: Encoded) -> torch.Tensor | DataError:
        """Decodes a batch to uint8 or uint16 (B, S, S, C).

        Returns a DataError instead of raising it: the loader would raise a new one from its text
        alone, without its three parts.
        """
        pixels = []
        try:
            for content, check, where in encoded:
                pixels.append(decode_checked(content, check, self.size, where, self.tiles))
        except DataError as error:
            return error
        return torch.from_numpy(np.stack(pixels))


def _loader(batches: _CurrentBatches, decoder: _Decoder, processes: int) -> DataLoader[Any]:
    options: dict[str, Any] = {}
    # torch refuses these options for a loader without processes.
    if processes:
        options = {
            # A forked copy of a process that runs Ray's threads may inherit a lock that nobody
            # will ever release.
            "multiprocessing_context": "spawn",
            "persistent_workers": True,
            "prefetch_factor": DECODED_AHEAD,
        }
    return DataLoader(decoder, sampler=batches, batch_size=None, num_workers=processes, **options)
