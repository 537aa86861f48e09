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

"""Grey levels for cameras that count: heat, or light of more than 8 bits, in a small part of what 16 bits can hold.

Scaled as a whole, a person in the picture of a thermal camera would differ from the wall by a grey level or two. So
black and white are learnt from the first picture and held: a range of each picture's own would make everything that
stands still flicker.
"""

import cv2
import numpy as np

FULL = 65535
# Counts that are spread over more than this are scaled as a whole.
WIDEST = FULL // 4
NARROWEST = 128  # counts; less is noise
# The range is learnt anew after so many pictures in a row that it does not suit.
PATIENCE = 30
MOST_OUTSIDE, LEAST_USED = 0.05, 0.125
SAMPLED = 64  # rows and columns


class Contrast:
    """Which counts of one camera are black and white. Give it the camera's pictures in turn.

    learnt: how often they were learnt.
    """

    def __init__(self) -> None:
        """Start without a picture; then counts are scaled as a whole."""
        self.learnt = 0
        self._black, self._white = 0.0, float(FULL)
        self._unsuited = 0

    @property
    def note(self) -> str:
        """What a reader of the pictures has to know; '' where counts are scaled as a whole."""
        if self._is_full:
            return ''
        anew = f', learnt {self.learnt} times' if self.learnt > 1 else ', learnt from the first picture'
        return f'counts of 16 bits; {self._black:.0f} is black and {self._white:.0f} is white{anew}'

    def grey(self, counts: np.ndarray) -> np.ndarray:
        """Convert counts to grey. counts: (height, width) uint16. Returns uint8 of the same shape."""
        self._learn(counts)
        if self._is_full:
            return cv2.convertScaleAbs(np.ascontiguousarray(counts), alpha=255 / FULL)
        scaled = (counts.astype(np.float32) - self._black) * (255 / (self._white - self._black))
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)

    @property
    def _is_full(self) -> bool:
        return self._white - self._black == FULL

    def _learn(self, counts: np.ndarray) -> None:
        steps = [max(1, side // SAMPLED) for side in counts.shape]
        sample = counts[:: steps[0], :: steps[1]]
        low, high = np.percentile(sample, [1, 99])
        if self.learnt and self._suits(sample, high - low):
            self._unsuited = 0
            return
        self._unsuited += 1
        if self.learnt and self._unsuited < PATIENCE:
            return
        self.learnt, self._unsuited = self.learnt + 1, 0
        span = max(NARROWEST, high - low)
        if span > WIDEST:
            self._black, self._white = 0.0, float(FULL)
        else:  # room on both sides for what comes into the picture
            self._black, self._white = max(0.0, low - span / 2), min(float(FULL), high + span / 2)

    def _suits(self, sample: np.ndarray, span: float) -> bool:
        """Whether few counts are beyond black and white, and the others use enough of the greys between them."""
        width = self._white - self._black
        outside = ((sample < self._black) | (sample > self._white)).mean()
        return outside <= MOST_OUTSIDE and (span >= LEAST_USED * width or width <= 2 * NARROWEST)
