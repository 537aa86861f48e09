"""The pictures of an answer that drifted: what cold-dense saw, and what the arm's state was computed from."""

from pathlib import Path

import cv2
import numpy as np

from vlm_reuse_node.scene.frame import Frame

WIDTH, QUALITY = 360, 80
GRID = 16, 12
BLUE = (255, 110, 0)  # BGR


def save_drift(stem: Path, newest: Frame, cached: Frame, threshold: float) -> None:
    """Write `stem`.newest.jpg and `stem`.cached.jpg, small.

    On the latter, parts of the picture that were reused although they differ are framed in blue: fields of a 16 x 12
    grid whose mean colours differ by the threshold (of 255) or more.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    pictures = [_small(frame) for frame in (newest, cached)]
    fields = [cv2.resize(frame.rgb, GRID, interpolation=cv2.INTER_AREA).astype(np.int16) for frame in (newest, cached)]
    _frame(pictures[1], abs(fields[0] - fields[1]).max(axis=2) >= threshold)
    for picture, name in zip(pictures, ('newest', 'cached')):
        data = cv2.imencode('.jpg', picture, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1]
        stem.with_name(f'{stem.name}.{name}.jpg').write_bytes(data.tobytes())


def _small(frame: Frame) -> np.ndarray:
    height, width = frame.size
    rgb = cv2.resize(frame.rgb, (WIDTH, max(1, round(height * WIDTH / width))), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(rgb[..., ::-1])


def _frame(picture, changed):
    height, width = picture.shape[:2]
    for row, column in np.argwhere(changed):
        left, top = round(column * width / GRID[0]), round(row * height / GRID[1])
        right, bottom = round((column + 1) * width / GRID[0]) - 1, round((row + 1) * height / GRID[1]) - 1
        cv2.rectangle(picture, (left, top), (right, bottom), BLUE, 1)
