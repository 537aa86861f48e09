"""Pans: whether the camera moved, so that one frame is the other one shifted."""

import cv2
import numpy as np

# The shifted picture must explain at least this share of the difference.
EXPLAINED = 0.5
# The least shift, pixels of the small pictures.
LEAST_SHIFT = 0.5


def is_panned(now: np.ndarray, then: np.ndarray) -> bool:
    """Whether one small grey picture, (height, width) float32, is the other moved by up to half of its shorter side."""
    height, width = now.shape
    # Copies, because OpenCV applies the window in place where the size suits its Fourier transform.
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(then.copy(), now.copy(), window)
    if not LEAST_SHIFT <= np.hypot(x, y) <= min(height, width) / 2:
        return False
    moved = cv2.warpAffine(then, np.array([[1, 0, x], [0, 1, y]], np.float32), (width, height))
    inner = tuple(
        slice(max(0, int(np.ceil(shift))), side + min(0, int(np.floor(shift))))
        for shift, side in ((y, height), (x, width))
    )
    left, before = (float(cv2.absdiff(now[inner], other[inner]).mean()) for other in (moved, then))
    return left <= (1 - EXPLAINED) * before
