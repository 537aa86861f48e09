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

"""A video that a browser plays: VP8 in WebM, which OpenCV's wheel can write (it has no H.264)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

SUFFIX = '.webm'
WIDEST = 480  # pixels: a page shows no more, and the time to encode grows with the area
CODEC = 'VP80'


class VideoFile:
    """Writes pictures one after the other; all get the size of the first. Without the codec no file is written."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        self._path = path
        self._rate_hz = rate_hz
        self._size = (0, 0)  # width and height
        self._writer: cv2.VideoWriter | None = None

    def write(self, bgr: np.ndarray) -> None:
        """Add a picture: (height, width, 3) uint8, BGR."""
        if self._writer is None:
            height, width = bgr.shape[:2]
            scale = min(1.0, WIDEST / width)
            self._size = (max(1, round(scale * width)), max(1, round(scale * height)))
            codec = cv2.VideoWriter.fourcc(*CODEC)
            with _quiet():
                self._writer = cv2.VideoWriter(str(self._path), cv2.CAP_FFMPEG, codec, self._rate_hz, self._size)
        if (bgr.shape[1], bgr.shape[0]) != self._size:
            bgr = cv2.resize(bgr, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(np.ascontiguousarray(bgr))

    def close(self) -> None:
        """Finish the file."""
        if self._writer:
            self._writer.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what C code prints: FFmpeg names the codec by another code than OpenCV, which OpenCV tells every time."""
    kept = os.dup(2)
    with open(os.devnull, 'wb') as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
