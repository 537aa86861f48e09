# Copyright 2026 vlm_reuse_node maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The overlay picture: refreshed cells have orange outlines, stale cells are hatched, all else is as the camera saw it.

NumPy and OpenCV only. The live node and the replay draw the same picture.
"""

from functools import lru_cache

import cv2
import numpy as np

from vlm_reuse_node.scene.cells import spread
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh

BAR_HEIGHT = 24
ORANGE, BLUE, GREY, BLACK = (255, 140, 0), (0, 110, 255), (120, 120, 120), (0, 0, 0)

_THICK = 3  # pixels of the outline around refreshed cells
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


def draw_overlay(frame: Frame, refresh: Refresh) -> np.ndarray:
    """Draw a refresh over the frame it was made for.

    Returns (height + BAR_HEIGHT, width, 3) uint8, RGB: the picture above a bar. The bar shows the shares of reused,
    refreshed and stale cells, the level and the time. The frame itself is not changed.
    """
    height, width = frame.size
    canvas = np.empty((height + BAR_HEIGHT, width, 3), np.uint8)
    picture, bar = canvas[:height], canvas[height:]
    picture[:] = frame.rgb
    _hatch(picture, refresh.stale & ~refresh.refreshed)
    _outline(picture, refresh.refreshed)
    _draw_bar(bar, refresh)
    return canvas


def percent(count: int, total: int) -> str:
    """A share of the cells as text. It says 0 % or 100 % only when that is exact."""
    if 0 < count < total:
        share = 100.0 * count / total
        return '< 1 %' if share < 1 else '> 99 %' if share > 99 else f'{share:.0f} %'
    return '100 %' if count and count == total else '0 %'


def _outline(picture: np.ndarray, cells: np.ndarray) -> None:
    """Draw a thick orange line around refreshed cells, a black one inside of it, and thin ones between the cells.

    The colours in the cells stay as they are. The black line tells the orange one from a picture that is orange itself.
    """
    if cells.any():
        height, width = picture.shape[:2]
        mask = spread(cells, height, width)
        inside = _shrunk(mask, _THICK)
        deep_inside = _shrunk(inside, 1)
        lines = cv2.bitwise_and(deep_inside, _lattice(height, width, *cells.shape))
        cv2.copyTo(_plain(height, width, BLACK), inside - deep_inside, picture)
        cv2.copyTo(_plain(height, width, ORANGE), mask - inside + lines, picture)


def _shrunk(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask without its outermost pixels, those at the edge of the picture included."""
    kernel = np.ones((2 * pixels + 1,) * 2, np.uint8)
    return cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def _hatch(picture: np.ndarray, cells: np.ndarray) -> None:
    if cells.any():
        mask = cv2.bitwise_and(spread(cells, *picture.shape[:2]), _stripes(*picture.shape[:2]))
        cv2.copyTo(_plain(*picture.shape[:2], BLUE), mask, picture)


@lru_cache(maxsize=4)
def _lattice(height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """The first row and column of pixels of every cell: (height, width) uint8, 255 there."""
    lattice = np.zeros((height, width), np.uint8)
    down, across = (np.ceil(np.arange(cells) * size / cells) for size, cells in ((height, rows), (width, columns)))
    lattice[np.minimum(down.astype(int), height - 1)] = 255
    lattice[:, np.minimum(across.astype(int), width - 1)] = 255
    return lattice


@lru_cache(maxsize=4)
def _stripes(height: int, width: int) -> np.ndarray:
    """Diagonal lines: (height, width) uint8, 255 on 3 of every 10 pixels."""
    down, across = np.ogrid[:height, :width]
    return ((down + across) % 10 < 3) * np.uint8(255)


@lru_cache(maxsize=12)  # three colours of each size
def _plain(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def _draw_bar(bar: np.ndarray, refresh: Refresh) -> None:
    """Draw the shares as a coloured line, and below it as text."""
    total, paid = refresh.visual_tokens_total, refresh.visual_tokens_refreshed
    stale = int((refresh.stale & ~refresh.refreshed).sum())  # a newer picture may differ where this one was computed
    width = bar.shape[1]
    bar[:] = (24, 24, 24)
    ends = [round(width * count / total) for count in (paid, paid + stale)] if total else [0, 0]
    bar[:4], bar[:4, : ends[0]], bar[:4, ends[0] : ends[1]] = GREY, ORANGE, BLUE
    text = _fitting_text(width, refresh, [percent(count, total) for count in (total - paid - stale, paid, stale)])
    cv2.putText(bar, text, (6, 18), _FONT, _SCALE, (235, 235, 235), 1, cv2.LINE_AA)


def _fitting_text(width: int, refresh: Refresh, shares: list[str]) -> str:
    """The longest text that fits the picture's width."""
    reused, refreshed, stale = shares
    level = refresh.level
    wordings = (
        f'reused {reused}   refreshed {refreshed}   stale {stale}   |   {level}   {refresh.spent_ms:.1f} ms',
        f'reused {reused}  stale {stale}  {level} {refresh.spent_ms:.0f} ms',
        f'{reused} {level} {refresh.spent_ms:.0f} ms',
    )
    fitting = (text for text in wordings if cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0] <= width - 12)
    return next(fitting, wordings[-1])
