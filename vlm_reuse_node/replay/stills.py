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

"""Small pictures for the report: of a question, and of an answer that drifted."""

from pathlib import Path

import cv2
import numpy as np

from vlm_reuse_node.scene.frame import Frame

WIDTH = 360  # pixels
QUALITY = 80  # of the JPEG, per cent
GRID = (16, 12)  # columns, rows
BLUE = (255, 110, 0)  # BGR


def save_drift(stem: Path, newest: Frame, cached: Frame, threshold: float) -> None:
    """Write `stem`.newest.jpg and `stem`.cached.jpg, small.

    In the latter, blue frames mark what was reused although it differs: the fields of a 16 x 12 grid whose mean colours
    differ by the threshold (of 255) or more.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    cached_small = _small(cached)
    _mark(cached_small, abs(_fields(newest) - _fields(cached)).max(axis=2) >= threshold)
    _write(stem.with_name(f'{stem.name}.newest.jpg'), _small(newest))
    _write(stem.with_name(f'{stem.name}.cached.jpg'), cached_small)


def save_small(path: Path, frame: Frame) -> None:
    """Write a picture as a small JPEG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, _small(frame))


def _fields(frame: Frame) -> np.ndarray:
    """(12, 16, 3) int16 mean colours."""
    return cv2.resize(frame.rgb, GRID, interpolation=cv2.INTER_AREA).astype(np.int16)


def _small(frame: Frame) -> np.ndarray:
    """The picture as OpenCV writes it: BGR, WIDTH pixels wide."""
    height, width = frame.size
    rgb = cv2.resize(frame.rgb, (WIDTH, max(1, round(height * WIDTH / width))), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(rgb[..., ::-1])


def _mark(picture: np.ndarray, changed: np.ndarray) -> None:
    """Draw a frame around each changed field. changed: (12, 16) bool."""
    height, width = picture.shape[:2]
    columns, rows = GRID
    for row, column in np.argwhere(changed):
        top_left = (round(column * width / columns), round(row * height / rows))
        bottom_right = (round((column + 1) * width / columns) - 1, round((row + 1) * height / rows) - 1)
        cv2.rectangle(picture, top_left, bottom_right, BLUE, 1)


def _write(path: Path, bgr: np.ndarray) -> None:
    _, data = cv2.imencode('.jpg', bgr, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    path.write_bytes(data.tobytes())
