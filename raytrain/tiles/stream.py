"""Tiles decoded anew every time they are wanted, from shards that are held a window at a time: for datasets that fit no disk.

A thread reads shards ahead of the step and hands the encoded tiles of each batch to the workers of a
`torch.utils.data.DataLoader`, which decode them. Which tiles those are says the keyed order alone, so a run goes on
exactly where it was. Memory holds at most the shards of two windows, where one passes into the next.
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
from raytrain.errors import DataError
from raytrain.tiles.cache import decode_checked
from raytrain.tiles.feeds import ahead, ahead_on_gpu, copying_stream
from raytrain.tiles.sampling import Rows

# Shards read at once: one reader would wait for an object store.
READERS = 8
# Batches of encoded tiles that wait for a decoder, and of decoded tiles that wait for the step, of each decoder.
ENCODED_AHEAD, DECODED_AHEAD = 16, 2
COLUMNS = ["image_name", "image", "crc32"]
# (bytes, crc32, where) of each tile of a batch.
Encoded = list[tuple[bytes, int, str]]


def stream_window(dataset: Dataset, gigabytes: float) -> int | None:
    """Shards of one window: as many as so many gigabytes hold of the largest of them; None for all.

    A function of dataset and recipe, not of the machine: the order of tiles must be the same everywhere.
    """
    largest = max(storage.size(path) for path in dataset.shards)
    window = max(1, int(gigabytes * 1e9 / largest))
    return None if window >= len(dataset.shards) else window


class StreamFeed:
    """Gives pictures as `Feed` says, uint8 (B, 3, S, S) in channels-last memory; of one list after the other, not of two at once.

    Args:
        dataset: an opened dataset.
        size: side of the decoded tiles, pixels.
        window: shards held at once; None for all.
        processes: decoders; with 0 the thread that asks decodes.
        device: where the pictures go.

    Raises, from the iterator:
        DataError: a shard or a picture is damaged.
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
        self.shards, self.device = ShardWindow(dataset, window or len(dataset.shards)), device
        self.stream = copying_stream(device)
        self.encoded = _Handed()
        options: dict[str, Any] = {}
        if processes:
            # spawn: a fork of a process that runs Ray's threads may inherit a lock that nobody will release.
            options = {
                "multiprocessing_context": "spawn",
                "persistent_workers": True,
                "prefetch_factor": DECODED_AHEAD,
            }
        self.loader: DataLoader[Any] | None = DataLoader(
            _Decoder(size), sampler=self.encoded, batch_size=None, num_workers=processes, **options
        )

    def __call__(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        """See `Feed`."""
        pictures = self._decoded(wanted)
        return pictures if self.stream is None else ahead_on_gpu(pictures, self.stream)

    def close(self) -> None:
        """Ends the decoders and the readers."""
        self.loader = None
        self.shards.close()

    def _decoded(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        assert self.loader is not None
        self.encoded.batches.close()  # of lists that were not read to their end
        with closing(
            ahead((self.shards.encoded(rows) for rows in wanted), ENCODED_AHEAD)
        ) as encoded:
            self.encoded.batches = encoded
            for pixels in self.loader:
                if isinstance(pixels, DataError):
                    raise pixels
                if self.device.type == "cuda":
                    pixels = pixels.pin_memory().to(self.device, non_blocking=True)
                yield pixels.permute(0, 3, 1, 2)


class ShardWindow:
    """The encoded tiles of the shards used last, at most `window` of them between two batches."""

    def __init__(self, dataset: Dataset, window: int) -> None:
        self.paths, self.window = dataset.shards, window
        self.hashes = [shard["sha256"] for shard in dataset.manifest["shards"]]
        self.first = np.concatenate([[0], np.cumsum(dataset.shard_rows)])
        self.held: OrderedDict[int, pa.Table] = OrderedDict()
        self.readers = ThreadPoolExecutor(min(READERS, window))

    def encoded(self, rows: Rows) -> Encoded:
        """The encoded tiles of some rows, in their order."""
        shards = np.searchsorted(self.first, rows, side="right") - 1
        self._hold([int(shard) for shard in np.unique(shards)])
        return [self._tile(int(shard), int(row)) for shard, row in zip(shards, rows, strict=True)]

    def close(self) -> None:
        """Ends the readers and forgets the shards."""
        self.readers.shutdown(cancel_futures=True)
        self.held.clear()

    def _hold(self, wanted: list[int]) -> None:
        for shard in wanted:
            if shard in self.held:
                self.held.move_to_end(shard)
        missing = [shard for shard in wanted if shard not in self.held]
        # Those that this batch does not want go first; a batch on the border of two windows keeps what it wants of both.
        while len(self.held) > max(self.window - len(missing), len(wanted) - len(missing)):
            self.held.popitem(last=False)
        for shard, table in zip(missing, self.readers.map(self._read, missing), strict=True):
            self.held[shard] = table

    def _read(self, shard: int) -> pa.Table:
        return read_shard(self.paths[shard], COLUMNS, self.hashes[shard]).combine_chunks()

    def _tile(self, shard: int, row: int) -> tuple[bytes, int, str]:
        name, image, check = (
            self.held[shard].column(c)[row - self.first[shard]].as_py() for c in COLUMNS
        )
        return image, check, f"{name} in {self.paths[shard]}"


class _Handed(Sampler[Encoded]):
    """Hands a loader the batches of the moment: persistent workers outlive the lists that they are given."""

    def __init__(self) -> None:
        self.batches: Generator[Encoded] = ahead(iter(()), 1)

    def __iter__(self) -> Iterator[Encoded]:
        return self.batches


class _Decoder(TorchDataset[Any]):
    """What a loader's process does: encoded tiles to uint8 (B, S, S, 3)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, encoded: Encoded) -> torch.Tensor | DataError:
        """The pictures, or the error as a value: a loader would lose its parts on the way."""
        try:
            return torch.from_numpy(
                np.stack([decode_checked(*tile[:2], self.size, tile[2]) for tile in encoded])
            )
        except DataError as error:
            return error
