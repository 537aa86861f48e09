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

    def __init__(self, path: Path):
        """Nothing is written before the second picture."""
        self._path = path
        self._first: tuple[float, np.ndarray] | None = None
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: Frame, refresh: Refresh, at_s: float) -> None:
        """Add a picture; one of another size is fitted."""
        bgr = np.ascontiguousarray(draw_overlay(frame, refresh)[..., ::-1])
        if self._first is None:
            self._first = at_s, bgr
            return
        if self._writer is None:
            rate_hz = float(np.clip(1.0 / max(1e-6, at_s - self._first[0]), SLOWEST_HZ, FASTEST_HZ))
            self._open(rate_hz)
        size = self._first[1].shape[1::-1]
        self._writer.write(bgr if bgr.shape[1::-1] == size else cv2.resize(bgr, size, interpolation=cv2.INTER_AREA))

    def close(self) -> None:
        """Finish the file."""
        if self._first and not self._writer:
            self._open(SLOWEST_HZ)
        if self._writer:
            self._writer.release()

    def _open(self, rate_hz):
        first = self._first[1]
        self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter_fourcc(*'mp4v'), rate_hz, first.shape[1::-1])
        self._writer.write(first)
