"""Provides the pictures of batches, from the memory of the GPU or from the tile cache of this node.

The feed that reads the shards instead is in `stream`.

A feed is called with an iterable of row numbers, one array per batch, and yields the pictures of
each batch in the same order. It may run ahead of the training step that uses them. Pictures are
uint8 or uint16 (B, C, S, S) on the device that trains. Their memory format is channels-last, which
is how the tiles are stored.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from raytrain.tiles.sampling import Rows

# Batches that wait on the GPU, or are being copied to it, while one trains.
DEPTH = 2
# Tiles copied to the GPU at once: 100 MB at 256 px.
UPLOAD_ROWS = 512
# How often a thread that waits for room in its queue looks whether it should stop.
STOP_CHECK_S = 0.1
T = TypeVar("T")


class Feed(Protocol):
    """Yields the pictures of batches."""

    def __call__(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        """Yields the pictures of each array of row numbers in turn, uint8 or uint16
        (B, C, S, S).
        """

    def close(self) -> None:
        """Ends all background work."""


@dataclass(frozen=True)
class Source:
    """The pictures and targets of a dataset.

    Attributes:
        feed: yields the pictures.
        targets: uint8 (N, K) on the device that trains: 1 where a tile has the label.
    """

    feed: Feed
    targets: torch.Tensor

    def batches(
        self, wanted: Iterable[Rows], dtype: torch.dtype
    ) -> Generator[dict[str, torch.Tensor]]:
        """Yields a batch for each array of row numbers.

        Args:
            wanted: int64 arrays of row numbers, (B,) each.
            dtype: type of the targets.

        Yields:
            A dictionary of `image` uint8 or uint16 (B, C, S, S), `target` (B, K) of type `dtype`,
            and `index` int64 (B,), all on the device that trains.
        """
        # Filled by the feed, perhaps in a thread of its own that is some batches ahead.
        asked: deque[Rows] = deque()

        def noted() -> Iterator[Rows]:
            for rows in wanted:
                asked.append(rows)
                yield rows

        for image in self.feed(noted()):
            rows = asked.popleft()
            index = moved(torch.from_numpy(rows), self.targets.device)
            yield {"image": image, "target": self.targets[index].to(dtype), "index": index}


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a CPU tensor on a device, without waiting for a copy to a GPU."""
    if device.type == "cpu":
        return tensor
    # Only copies from pinned memory are asynchronous.
    return tensor.pin_memory().to(device, non_blocking=True)


class CacheFeed:
    """Gathers batches from decoded tiles in host memory.

    Args:
        pixels: uint8 or uint16 (N, S, S, C), such as the memory map of a store.
        device: where the pictures go.
    """

    def __init__(self, pixels: np.ndarray[Any, Any], device: torch.device) -> None:
        self.pixels = _gatherable(_as_tensor(pixels))
        self.device = device
        self.stream = copying_stream(device)

    def __call__(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        """See `Feed`.

        For a GPU, a thread gathers into pinned memory and copies while the previous step computes.
        """
        pictures = (self._gathered(rows) for rows in wanted)
        if self.stream is None:
            # On a CPU a second thread would only take time from the first.
            return pictures
        return ahead_on_gpu(pictures, self.stream)

    def close(self) -> None:
        """Does nothing: no background work outlives an epoch."""

    def _gathered(self, rows: Rows) -> torch.Tensor:
        """The pictures of one batch, uint8 or uint16 (B, C, S, S)."""
        shape = (len(rows), *self.pixels.shape[1:])
        batch = torch.empty(shape, dtype=self.pixels.dtype, pin_memory=self.device.type == "cuda")
        torch.index_select(self.pixels, 0, torch.from_numpy(rows), out=batch)
        # torch's allocator of pinned memory reuses this block only after the copy has finished.
        return _as_pictures(batch.to(self.device, non_blocking=True))


class DeviceFeed:
    """Gathers batches from decoded tiles that were copied to the GPU once.

    Args:
        pixels: uint8 or uint16 (N, S, S, C) in host memory.
        device: the GPU that holds the copy.
    """

    def __init__(self, pixels: np.ndarray[Any, Any], device: torch.device) -> None:
        self.device = device
        source = _gatherable(_as_tensor(pixels))
        self.pixels = torch.empty(source.shape, dtype=source.dtype, device=device)
        # In parts: each one is first copied into a temporary tensor on the GPU.
        for start in range(0, len(source), UPLOAD_ROWS):
            part = source[start : start + UPLOAD_ROWS]
            self.pixels[start : start + len(part)] = part.to(device)

    def __call__(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        """See `Feed`."""
        for rows in wanted:
            index = moved(torch.from_numpy(rows), self.device)
            yield _as_pictures(self.pixels[index])

    def close(self) -> None:
        """Does nothing: there is no background work."""


def _as_tensor(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        # The map of a store is read-only, but torch has no read-only tensors. Nothing here writes
        # into it.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def _gatherable(pixels: torch.Tensor) -> torch.Tensor:
    """The same memory in a type that torch can gather from; `_as_pictures` undoes it.

    Which operations torch has on uint16 differs between its versions and between devices. Gathering
    only moves bytes, so that the sign of int16 does not matter.
    """
    if pixels.dtype == torch.uint16:
        return pixels.view(torch.int16)
    return pixels


def _as_pictures(gathered: torch.Tensor) -> torch.Tensor:
    """uint8, or int16 of `_gatherable`, (B, S, S, C) to uint8 or uint16 (B, C, S, S)."""
    if gathered.dtype == torch.int16:
        gathered = gathered.view(torch.uint16)
    return gathered.permute(0, 3, 1, 2)


def copying_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Returns a CUDA stream for `ahead_on_gpu`, or None for a device that is not a GPU.

    A feed keeps one stream for its whole life: memory that was allocated on a stream is reused by
    that stream alone.
    """
    if device.type == "cuda":
        return torch.cuda.Stream(device)
    return None


def ahead_on_gpu(
    pictures: Iterator[torch.Tensor], stream: torch.cuda.Stream
) -> Iterator[torch.Tensor]:
    """Makes pictures up to `DEPTH` batches ahead, in a thread and on a stream of its own.

    Args:
        pictures: makes each batch on the current stream of the thread that asks for it.
        stream: the stream that the thread works on.

    Yields:
        The same pictures, ready for use on the current stream of the calling thread.
    """
    main = torch.cuda.current_stream(stream.device)

    def copied() -> Iterator[tuple[torch.Tensor, torch.cuda.Event]]:
        with torch.cuda.stream(stream):
            for picture in pictures:
                yield picture, stream.record_event()

    for picture, arrived in ahead(copied(), DEPTH):
        main.wait_event(arrived)
        # The memory of the picture belongs to the copying stream. Without this call, that stream
        # could overwrite it while the training step still reads it.
        picture.record_stream(main)
        yield picture


@dataclass(frozen=True)
class _End:
    """Follows the last item in the queue. Holds the error if one ended the items."""

    error: BaseException | None = None


def ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """Yields items in order while a thread makes up to `depth` of them ahead.

    An error in the thread is raised here. Closing the generator ends the thread.
    """
    made: queue.Queue[T | _End] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_produce, args=(items, made, stopped), daemon=True)
    thread.start()
    try:
        entry = made.get()
        while not isinstance(entry, _End):
            yield entry
            entry = made.get()
        if entry.error is not None:
            raise entry.error
    finally:
        stopped.set()
        thread.join()


def _produce(items: Iterator[T], made: queue.Queue[T | _End], stopped: threading.Event) -> None:
    """Puts the items into the queue until they end or the event is set."""
    try:
        for item in items:
            _put(item, made, stopped)
            if stopped.is_set():
                return
        _put(_End(), made, stopped)
    except BaseException as error:
        _put(_End(error), made, stopped)
    finally:
        # Closed in this thread, not where the last reference is dropped: a generator may have set
        # a stream or a device for its thread, and would reset them in another one.
        if isinstance(items, Generator):
            items.close()


def _put(entry: T | _End, made: queue.Queue[T | _End], stopped: threading.Event) -> None:
    """Waits for room in the queue. Gives up if the event is set, since nobody reads any more."""
    while not stopped.is_set():
        try:
            made.put(entry, timeout=STOP_CHECK_S)
        except queue.Full:
            continue
        return
