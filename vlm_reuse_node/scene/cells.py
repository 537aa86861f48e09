"""Grids of cells as masks of pixels, and their neighbours. A grid covers the whole frame evenly."""

import cv2
import numpy as np


def spread(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """(rows, columns) bool as a mask of so many pixels: (height, width) uint8, 255 where a cell is set."""
    return cv2.resize(cells.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_NEAREST)


def grown(cells: np.ndarray, halo: int) -> np.ndarray:
    """The cells, (rows, columns) bool, and those up to `halo` cells beside them."""
    return cv2.dilate(cells.astype(np.uint8), np.ones((2 * halo + 1,) * 2, np.uint8)).astype(bool)
