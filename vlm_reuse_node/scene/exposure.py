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

"""Changes of exposure: the factor by which a whole frame got brighter, and the differences that remain without it."""

import cv2
import numpy as np

from vlm_reuse_node.scene.scaled_frame import BLOCKS, ScaledFrame

# Grey levels of the cells that the exposure is measured on: neither near black nor near white.
DARKEST, BRIGHTEST = 16, 240
# Without this share of such cells, the exposure is not measured.
LEAST_SHARE = 0.1
# The exposure changed when, without it, at least this share of these cells differ by at most so many grey levels. Where
# fewer follow it, things of another brightness came or went, and a factor would hide them.
FOLLOWING_SHARE, FOLLOWING = 0.75, 2


def exposure_gain(now: ScaledFrame, then: ScaledFrame, most: float) -> float:
    """Factor by which the whole frame got brighter. 1 when it is less than a grey level, or beyond 1 + most.

    It is the median of the cells' ratios. It is 1 too when a quarter of the cells or more do not follow it.
    """
    cells = tuple(side // BLOCKS for side in now.grey.shape[::-1])
    new, old = (cv2.resize(frame.grey, cells, interpolation=cv2.INTER_AREA) for frame in (now, then))
    usable = (np.minimum(new, old) >= DARKEST) & (np.maximum(new, old) < BRIGHTEST)
    if usable.mean() < LEAST_SHARE:
        return 1.0
    gain = float(np.median(new[usable] / old[usable]))
    if not 1 / 255 < max(gain, 1 / gain) - 1 <= most:
        return 1.0
    new_colours, old_colours = (cv2.resize(frame.blocks, cells, interpolation=cv2.INTER_AREA) for frame in (now, then))
    follows = difference(new_colours, old_colours, gain).mean(axis=2) <= FOLLOWING
    return gain if follows[usable].mean() >= FOLLOWING_SHARE else 1.0


def difference(now: np.ndarray, then: np.ndarray, gain: float) -> np.ndarray:
    """Absolute difference of two uint8 frames after compensating the exposure of `now` over `then`.

    The darker frame is brightened and saturates at white, as it would in the camera.
    """
    if gain > 1:
        then = cv2.convertScaleAbs(then, alpha=gain)
    elif gain < 1:
        now = cv2.convertScaleAbs(now, alpha=1 / gain)
    return cv2.absdiff(now, then)
