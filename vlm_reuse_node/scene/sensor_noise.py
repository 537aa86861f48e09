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

# Rows of pixels that are measured, evenly spaced over the picture. Each is measured in parts as wide as a block.
MEASURED_ROWS, MOST_PARTS = 12, 64
# Levels of brightness, and the fewest parts of one level that tell its noise.
LEVELS, LEAST_PARTS = 8, 8
# Motion only adds to the difference of two frames. At each level of brightness, this share of the parts is quieter than
# what is taken for noise, so the noise is right as long as this share of the parts shows something still or flat.
QUIET_SHARE = 0.25
STILL = 4
STEEPEST = 1.5
# What was learnt loses this share of its weight in a second: the sensor's gain follows the light within seconds.
FORGOTTEN_IN_A_SECOND = 0.5


class SensorNoise:
    """How much two frames of one camera differ where nothing changed, by brightness."""

    def __init__(self) -> None:
        """Start without noise."""
        self._variances = np.full(LEVELS, np.nan)  # of the difference of two frames, squared grey levels; NaN: unknown
        self._deviations = np.zeros(256, np.float32)  # the same as standard deviations, for every brightness

    def learn(self, now: ScaledFrame, then: ScaledFrame, passed_s: float) -> None:
        """Learn from two frames in a row, `passed_s` seconds apart. Two copies of one picture teach nothing."""
        levels, variances = _measured(now.pixels, then.pixels, BLOCKS * now.columns)
        if not variances.any():
            return
        order = np.lexsort((variances, levels))
        counts = np.bincount(levels, minlength=LEVELS)
        enough = counts >= LEAST_PARTS
        quiet = variances[order][(np.cumsum(counts) - counts + (QUIET_SHARE * counts).astype(int))[enough]]
        known = self._variances[enough]
        kept = (1 - FORGOTTEN_IN_A_SECOND) ** passed_s
        self._variances[enough] = np.where(np.isnan(known), quiet, kept * known + (1 - kept) * quiet)
        learnt = np.flatnonzero(~np.isnan(self._variances))
        if len(learnt):
            middles = (np.arange(LEVELS) + 0.5) * 256 / LEVELS
            main = learnt[np.argmax(counts[learnt])]
            deviations = np.sqrt(self._variances[learnt])
            most = max(0.5, np.sqrt(self._variances[main])) * STEEPEST ** np.abs(learnt - main)
            self._deviations = np.interp(np.arange(256), middles[learnt], np.minimum(deviations, most)).astype(np.float32)

    def of_cells(self, frame: ScaledFrame) -> np.ndarray:
        """Standard deviation of the difference, grey levels, at the noisiest brightness of each cell.

        Returns (rows, columns) float32.
        """
        blocks = cv2.LUT(frame.grey.astype(np.uint8), self._deviations)
        return most_of_blocks(blocks, frame.columns)


def _measured(now: np.ndarray, then: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Level of brightness and variance of the difference of the measured parts that are still, as flat arrays."""
    rows = np.linspace(0, len(now), MEASURED_ROWS, endpoint=False, dtype=int) + len(now) // (2 * MEASURED_ROWS)
    width, step = now.shape[1] // parts, -(-parts // MOST_PARTS)
    new, old = (
        frame[rows, : parts * width].reshape(len(rows), parts, 3 * width)[:, ::step].astype(np.float32)
        for frame in (now, then)
    )
    difference = new - old
    levels = (new.mean(axis=2) * (LEVELS / 256)).astype(int)
    means, variances = difference.mean(axis=2), difference.var(axis=2)
    whole = (new.min(axis=2) > 0) & (new.max(axis=2) < 255)
    still = whole & (np.square(means) <= STILL * variances / difference.shape[2])
    return levels[still], variances[still]
