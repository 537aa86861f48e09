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

"""The overlay of every replayed picture, as a video."""

from pathlib import Path

import cv2
import numpy as np

from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.overlay import draw_overlay
from vlm_reuse_node.scene.refresh import Refresh

SLOWEST_HZ, FASTEST_HZ = 1.0, 60.0


class Video:
    """Writes an mp4 whose rate is that of the first two pictures."""

    def __init__(self, path: Path) -> None:
        """Nothing is written before the second picture."""
        self._path = path
        self._first: tuple[float, np.ndarray] | None = None
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: Frame, refresh: Refresh, at_s: float) -> None:
        """Add a picture; one of another size than the first is resized."""
        bgr = np.ascontiguousarray(draw_overlay(frame, refresh)[..., ::-1])
        if self._first is None:
            self._first = (at_s, bgr)
            return
        first_s, first = self._first
        if self._writer is None:
            self._writer = self._open(first, float(np.clip(1.0 / max(1e-6, at_s - first_s), SLOWEST_HZ, FASTEST_HZ)))
        self._writer.write(_resized(bgr, first.shape[1], first.shape[0]))

    def close(self) -> None:
        """Finish the file."""
        if self._first and not self._writer:
            self._writer = self._open(self._first[1], SLOWEST_HZ)
        if self._writer:
            self._writer.release()

    def _open(self, first: np.ndarray, rate_hz: float) -> cv2.VideoWriter:
        height, width = first.shape[:2]
        writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*'mp4v'), rate_hz, (width, height))
        writer.write(first)
        return writer


def _resized(bgr: np.ndarray, width: int, height: int) -> np.ndarray:
    if bgr.shape[:2] == (height, width):
        return bgr
    return cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)
