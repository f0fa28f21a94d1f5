"""Where the pictures of a batch come from: the GPU's own memory or this node's cache. (From the shards: `stream`.)

A feed is called with the row numbers of one batch after the other and gives their pictures in the same order; it may run
ahead of the step that uses them. Pictures are uint8 (B, 3, S, S) on the device that trains; their memory is
channels-last, as they lie in the store.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from raytrain.tiles.sampling import Rows

# Batches that wait on the GPU, or on their way there, while one trains.
DEPTH = 2
UPLOAD_ROWS = 512
T = TypeVar("T")


class Feed(Protocol):
    """Gives the pictures of batches."""

    def __call__(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        """Pictures uint8 (B, 3, S, S) of each list of row numbers in turn."""

    def close(self) -> None:
        """Ends what works in the background."""


@dataclass(frozen=True)
class Source:
    """Pictures and targets of a dataset: `targets` is uint8 (N, K) on the device that trains."""

    feed: Feed
    targets: torch.Tensor

    def batches(
        self, wanted: Iterable[Rows], dtype: torch.dtype
    ) -> Generator[dict[str, torch.Tensor]]:
        """For each list of rows: image uint8 (B, 3, H, W), target `dtype` (B, K), index int64 (B,)."""
        asked: list[Rows] = []

        def noted() -> Iterator[Rows]:
            for rows in wanted:
                asked.append(rows)
                yield rows

        for image in self.feed(noted()):
            index = moved(torch.from_numpy(asked.pop(0)), self.targets.device)
            yield {"image": image, "target": self.targets[index].to(dtype), "index": index}


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device. To a GPU through pinned memory: from any other the host would wait for the copy."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class CacheFeed:
    """Gathers from decoded tiles in host memory, uint8 (N, S, S, 3), such as the map of a store."""

    def __init__(self, pixels: np.ndarray[Any, Any], device: torch.device) -> None:
        self.pixels, self.device, self.stream = _as_tensor(pixels), device, copying_stream(device)

    def __call__(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        """See `Feed`. For a GPU a thread gathers into pinned memory and copies while the step before computes."""
        pictures = (self._gathered(rows) for rows in wanted)
        # On a CPU a second thread would only take time from the first.
        return pictures if self.stream is None else ahead_on_gpu(pictures, self.stream)

    def close(self) -> None:
        """Nothing works in the background between batches."""

    def _gathered(self, rows: Rows) -> torch.Tensor:
        shape = (len(rows), *self.pixels.shape[1:])
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        torch.index_select(self.pixels, 0, torch.from_numpy(rows), out=batch)
        # The pinned block is used again only after the copy: torch's host allocator keeps account of that.
        return batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)


class DeviceFeed:
    """Gathers from decoded tiles that were copied to the GPU once."""

    def __init__(self, pixels: np.ndarray[Any, Any], device: torch.device) -> None:
        self.device = device
        self.pixels = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(pixels), UPLOAD_ROWS):
            part = pixels[start : start + UPLOAD_ROWS]
            self.pixels[start : start + len(part)] = _as_tensor(part).to(device)

    def __call__(self, wanted: Iterable[Rows]) -> Iterator[torch.Tensor]:
        """See `Feed`."""
        for rows in wanted:
            yield self.pixels[moved(torch.from_numpy(rows), self.device)].permute(0, 3, 1, 2)

    def close(self) -> None:
        """Nothing works in the background."""


def _as_tensor(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        # The map of a store is read-only and torch knows no such tensors; nothing here writes into it.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(pixels)


def copying_stream(device: torch.device) -> torch.cuda.Stream | None:
    """For `ahead_on_gpu`, one for the life of a feed: memory that was freed on a stream is used again by that one alone."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def ahead_on_gpu(
    pictures: Iterator[torch.Tensor], stream: torch.cuda.Stream
) -> Iterator[torch.Tensor]:
    """The same pictures on this thread's stream, made up to `DEPTH` ahead by a thread on a stream of its own."""
    main = torch.cuda.current_stream(stream.device)

    def copied() -> Iterator[tuple[torch.Tensor, torch.cuda.Event]]:
        with torch.cuda.stream(stream):
            for picture in pictures:
                yield picture, stream.record_event()

    for picture, arrived in ahead(copied(), DEPTH):
        main.wait_event(arrived)
        # Its memory belongs to the copying stream; without this it could be filled anew while the step still reads.
        picture.record_stream(main)
        yield picture


@dataclass(frozen=True)
class _End:
    """After the last item; with the error that ended them."""

    error: BaseException | None = None


def ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """The items in order, made by a thread up to `depth` ahead; what it raises is raised here.

    Closing the iterator ends the thread.
    """
    made: queue.Queue[T | _End] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: T | _End) -> None:
        while not stopped.is_set():
            try:
                return made.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(_End())
        except BaseException as error:
            put(_End(error))
        finally:
            # Here and not where the last reference goes: what the items set for their thread, such as its stream and its
            # device, would be reset in another.
            _close(items)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while not isinstance(entry := made.get(), _End):
            yield entry
        if entry.error is not None:
            raise entry.error
    finally:
        stopped.set()
        thread.join()


def _close(items: Iterator[Any]) -> None:
    """Ends a generator; other iterators have nothing to end."""
    if isinstance(items, Generator):
        items.close()
