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

# The parts of a frame, across and down, that vote. One part with something that moves on its own has one vote.
PARTS = 6, 4
# A part is for a pan when the shift removes at least this share of its difference. Its edges and its noise remain.
EXPLAINED = 0.35
# Mean difference, in grey levels, from which on a part has a vote, before or after the shift.
LEAST_DIFFERENCE = 1.0
# Share of the parts that must have a vote, and share of the votes that makes a pan.
LEAST_VOTES, MAJORITY = 0.25, 0.5
# Smallest shift that counts as a pan, in pixels of the small frames.
LEAST_SHIFT = 0.3
# Blur of both frames, in pixels: a shift by a part of a pixel blurs one of them.
BLUR = 1.0


def is_panned(now: np.ndarray, then: np.ndarray) -> bool:
    """Whether a small grey frame, (height, width) float32, is the other one shifted by up to half its shorter side."""
    height, width = now.shape
    # Copy both: OpenCV applies the window in place when the size suits its Fourier transform.
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(then.copy(), now.copy(), window)
    if not LEAST_SHIFT <= np.hypot(x, y) <= min(height, width) / 2:
        return False
    now, then = (cv2.GaussianBlur(frame, (0, 0), BLUR) for frame in (now, then))
    shifted = cv2.warpAffine(then, np.array([[1, 0, x], [0, 1, y]], np.float32), (width, height))
    inner = tuple(
        slice(max(0, int(np.ceil(shift))), side + min(0, int(np.floor(shift))))
        for shift, side in ((y, height), (x, width))
    )
    remaining, total = (
        cv2.resize(cv2.absdiff(now[inner], other[inner]), PARTS, interpolation=cv2.INTER_AREA)
        for other in (shifted, then)
    )
    votes = np.maximum(remaining, total) >= LEAST_DIFFERENCE
    explained = remaining <= (1 - EXPLAINED) * total
    return bool(votes.mean() >= LEAST_VOTES and explained[votes].mean() >= MAJORITY)
