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

"""Pans: whether the camera moved, so that one frame is a shifted copy of the other."""

import cv2
import numpy as np

# Shifting one frame must remove at least this share of the difference.
EXPLAINED = 0.5
# Smallest shift that counts as a pan, in pixels of the small frames.
LEAST_SHIFT = 0.5


def is_panned(now: np.ndarray, then: np.ndarray) -> bool:
    """Whether a small grey frame, (height, width) float32, is the other one shifted by up to half its shorter side."""
    height, width = now.shape
    # Copy both: OpenCV applies the window in place when the size suits its Fourier transform.
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(then.copy(), now.copy(), window)
    if not LEAST_SHIFT <= np.hypot(x, y) <= min(height, width) / 2:
        return False
    shifted = cv2.warpAffine(then, np.array([[1, 0, x], [0, 1, y]], np.float32), (width, height))
    inner = tuple(
        slice(max(0, int(np.ceil(shift))), side + min(0, int(np.floor(shift))))
        for shift, side in ((y, height), (x, width))
    )
    remaining, total = (float(cv2.absdiff(now[inner], other[inner]).mean()) for other in (shifted, then))
    return remaining <= (1 - EXPLAINED) * total
