"""What a tile of a dataset is: its channels, the type of their values, and their bands.

Nearly all datasets are RGB of 8 bits, and dataset.json says nothing about it. Of other tiles it
says `channels`, `dtype` and `bands`; so does meta.json of a checkpoint that was trained on them.
Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The largest value of each type that tiles may have.
LARGEST = {"uint8": 255, "uint16": 65535}
BYTES = {"uint8": 1, "uint16": 2}
RGB_CHANNELS = 3


@dataclass(frozen=True)
class TileFormat:
    """Channels of a tile, and how its values are stored.

    Attributes:
        channels: of a decoded tile.
        dtype: uint8 or uint16.
        bands: of a file, counted from 1, that become the channels, in their order; None for red,
            green and blue of a picture.
    """

    channels: int = RGB_CHANNELS
    dtype: str = "uint8"
    bands: tuple[int, ...] | None = None

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> TileFormat:
        """Reads the format from dataset.json, or from meta.json of a checkpoint.

        Raises:
            ValueError: a value that no format has.
        """
        channels = manifest.get("channels", RGB_CHANNELS)
        dtype = manifest.get("dtype", "uint8")
        bands = manifest.get("bands")
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels = {channels!r} is not a number of channels")
        if dtype not in LARGEST:
            raise ValueError(f"dtype = {dtype!r} is none of {', '.join(LARGEST)}")
        if bands is None:
            return cls(channels, dtype)
        if not isinstance(bands, list) or len(bands) != channels:
            raise ValueError(f"bands = {bands!r} are not {channels} bands")
        if not all(isinstance(band, int) and band >= 1 for band in bands):
            raise ValueError(f"bands = {bands!r} are not counted from 1")
        return cls(channels, dtype, tuple(bands))

    @property
    def is_plain(self) -> bool:
        """Whether tiles are pictures of 8-bit red, green and blue."""
        return self == TileFormat()

    @property
    def file_bands(self) -> tuple[int, ...]:
        """Numbers of the bands of a file that become the channels, counted from 1."""
        if self.bands is not None:
            return self.bands
        return tuple(range(1, self.channels + 1))

    @property
    def scale(self) -> int:
        """The value that becomes 1.0 for the network."""
        return LARGEST[self.dtype]

    @property
    def bytes_per_value(self) -> int:
        """Bytes of one value of one pixel."""
        return BYTES[self.dtype]

    def content(self) -> dict[str, Any]:
        """Returns the keys of dataset.json and meta.json: none for RGB of 8 bits."""
        if self.is_plain:
            return {}
        content: dict[str, Any] = {"channels": self.channels, "dtype": self.dtype}
        if self.bands is not None:
            content["bands"] = list(self.bands)
        return content

    def __str__(self) -> str:
        if self.is_plain:
            return "8-bit RGB"
        bits = 8 * self.bytes_per_value
        if self.channels == 1:
            return f"band {self.file_bands[0]} of {bits} bits"
        listed = ",".join(str(band) for band in self.file_bands)
        return f"bands {listed} of {bits} bits"
