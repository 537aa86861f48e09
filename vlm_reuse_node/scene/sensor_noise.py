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

"""The noise of a camera's sensor, learnt from the camera's own pictures: how it depends on the brightness."""

import cv2
import numpy as np

from vlm_reuse_node.scene.cell_differences import most_of_blocks
from vlm_reuse_node.scene.scaled_frame import BLOCKS, ScaledFrame

# Rows of pixels that are measured, and the most parts of a row. Each part is as wide as a block.
ROWS, MOST_PARTS = 12, 64
# Resizing by interpolation blurs noise more in some places than in others. Only parts that keep this share of what the
# sharpest part keeps are measured, because cells that are as sharp show as much noise.
SHARP_SHARE = 0.9
# A part shows noise alone when its difference is random from pixel to pixel. Von Neumann's ratio, the mean square of
# the steps over the variance, is 2 for independent pixels, 1 where the camera's own processing makes neighbours half
# alike, and less in most of what moves.
LEAST_RATIO = 1.0
# Levels of brightness, and the fewest parts of a level that tell its noise.
LEVELS, LEAST_PARTS = 8, 8
# Motion only adds to a difference. The noise of a level is that of a part that is noisier than this share of its parts.
QUIET_SHARE = 0.25
# Largest ratio of the noise at neighbouring levels: that of a sensor without gamma, whose variance is proportional to
# the brightness. A level that few things have may never be still. At most that much is learnt from it beyond the noise
# of the level that most parts have, or beyond a half, the noise of rounding.
STEEPEST, ROUNDING = 1.5, 0.5
# What was learnt loses this share of its weight in a second: the sensor's gain follows the light within seconds.
FORGOTTEN_IN_A_SECOND = 0.5


class SensorNoise:
    """How much two frames of one camera differ where nothing changed, by brightness."""

    def __init__(self, camera: tuple[int, int], frame: ScaledFrame) -> None:
        """Start without noise. camera: height and width of the camera's pictures; frame: one of them, scaled."""
        height, width = frame.pixels.shape[:2]
        bands = np.array_split(_kept_noise(camera[0], height), ROWS)
        self._rows = np.cumsum([0, *map(len, bands[:-1])]) + [band.argmax() for band in bands]
        self._parts = frame.columns * BLOCKS
        part = width // self._parts
        kept = _kept_noise(camera[1], width)[: self._parts * part].reshape(self._parts, part).mean(axis=1)
        sharp = np.flatnonzero(kept >= SHARP_SHARE * kept.max())
        self._measured = sharp[:: -(-len(sharp) // MOST_PARTS)]
        self._variances = np.full(LEVELS, np.nan)  # of the difference of two frames, squared grey levels; NaN: unknown
        self._deviations = np.zeros(256, np.float32)  # the same as standard deviations, for every brightness

    def learn(self, now: ScaledFrame, then: ScaledFrame, passed_s: float) -> None:
        """Learn from two frames in a row, `passed_s` seconds apart. Two copies of one picture teach nothing."""
        levels, variances = self._measure(now.pixels, then.pixels)
        if not variances.any():
            return
        order, counts = np.lexsort((variances, levels)), np.bincount(levels, minlength=LEVELS)
        enough = counts >= LEAST_PARTS
        quiet = variances[order][(np.cumsum(counts) - counts + (QUIET_SHARE * counts).astype(int))[enough]]
        known, kept = self._variances[enough], (1 - FORGOTTEN_IN_A_SECOND) ** passed_s
        self._variances[enough] = np.where(np.isnan(known), quiet, kept * known + (1 - kept) * quiet)
        learnt = np.flatnonzero(~np.isnan(self._variances))
        if len(learnt):
            deviations, main = np.sqrt(self._variances), learnt[np.argmax(counts[learnt])]
            most = max(ROUNDING, deviations[main]) * STEEPEST ** np.abs(learnt - main)
            middles = (learnt + 0.5) * 256 / LEVELS
            self._deviations = np.interp(np.arange(256), middles, np.minimum(deviations[learnt], most)).astype(
                np.float32
            )

    def of_cells(self, frame: ScaledFrame) -> np.ndarray:
        """Standard deviation of the difference, grey levels, at the noisiest brightness of each cell.

        Returns (rows, columns) float32.
        """
        blocks = cv2.LUT(frame.grey.astype(np.uint8), self._deviations)
        return most_of_blocks(blocks)

    def _measure(self, now: np.ndarray, then: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Level of brightness and variance of the difference of the measured parts that are still, as flat arrays."""
        width = now.shape[1] // self._parts
        new, old = (
            frame[self._rows, : self._parts * width]
            .reshape(len(self._rows), self._parts, width, 3)[:, self._measured]
            .astype(np.float32)
            for frame in (now, then)
        )
        difference = new - old
        variances = difference.var(axis=(2, 3))
        is_random = np.square(np.diff(difference, axis=2)).mean(axis=(2, 3)) >= LEAST_RATIO * variances
        is_whole = (new.min(axis=(2, 3)) > 0) & (new.max(axis=(2, 3)) < 255)  # else noise is cut off at black or white
        shows_noise = is_random & is_whole
        return (new.mean(axis=(2, 3))[shows_noise] * (LEVELS / 256)).astype(int), variances[shows_noise]


def _kept_noise(camera: int, scaled: int) -> np.ndarray:
    """Share of the noise's variance that each pixel of a row keeps when it is interpolated from the camera's pixels."""
    between = ((np.arange(scaled) + 0.5) * camera / scaled - 0.5) % 1
    return (1 - between) ** 2 + between**2
