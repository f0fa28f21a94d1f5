"""What people see of a tile: red, green and blue of 8 bits, of tiles of any format.

Of one or two channels the first is drawn in grey. Three channels are red, green and blue. Of four
or more the first three are taken for blue, green and red, as satellites number their bands.

Values of 16 bits are stretched: the 2nd percentile of a tile's drawn values becomes black, the 98th
white. That is for the eye alone; no network sees it. Imports neither torch nor ray.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Percentiles that become black and white.
BLACK, WHITE = 2, 98
BLUE_GREEN_RED = (2, 1, 0)
GREY = (0, 0, 0)


def drawn_channels(pixels: Array) -> Array:
    """Returns the three channels that are drawn, (H, W, 3), of a tile (H, W, C)."""
    channels = pixels.shape[2]
    if channels == 3:
        return pixels
    if channels < 3:
        return pixels[:, :, list(GREY)]
    return pixels[:, :, list(BLUE_GREEN_RED)]


def drawn(pixels: Array) -> Array:
    """Returns a tile for the eye, uint8 (H, W, 3).

    Args:
        pixels: uint8 or uint16 (H, W, C).
    """
    chosen = drawn_channels(pixels)
    if chosen.dtype == np.uint8:
        return np.ascontiguousarray(chosen)
    black, white = np.percentile(chosen, (BLACK, WHITE))
    # A tile of one value would divide by nothing.
    stretched = 255 * (chosen - black) / max(white - black, 1)
    picture: Array = np.rint(np.clip(stretched, 0, 255)).astype(np.uint8)
    return picture
