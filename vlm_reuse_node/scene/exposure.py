"""Changes of exposure: by which factor the whole frame got brighter, and what differs beside that."""

import cv2
import numpy as np

from vlm_reuse_node.scene.scaled_frame import BLOCKS, ScaledFrame

# Grey levels of the cells that exposure is told from: neither near black nor near white.
DARKEST, BRIGHTEST = 16, 240
# There must be at least this share of them.
LEAST_SHARE = 0.1


def exposure_gain(now: ScaledFrame, then: ScaledFrame, most: float) -> float:
    """Factor by which the whole frame got brighter; 1 where that is less than a grey level, or beyond 1 + most.

    The median of the cells' ratios, so that what changed in less than half of them has no say.
    """
    cells = tuple(side // BLOCKS for side in now.grey.shape[::-1])
    new, old = (cv2.resize(each.grey, cells, interpolation=cv2.INTER_AREA) for each in (now, then))
    usable = (np.minimum(new, old) >= DARKEST) & (np.maximum(new, old) < BRIGHTEST)
    if usable.mean() < LEAST_SHARE:
        return 1.0
    gain = float(np.median(new[usable] / old[usable]))
    return gain if 1 / 255 < max(gain, 1 / gain) - 1 <= most else 1.0


def difference(now: np.ndarray, then: np.ndarray, gain: float) -> np.ndarray:
    """Absolute difference of two uint8 pictures, with the exposure of `now` over `then` taken out.

    The darker one is brightened, as the camera would have done it: what is white in the brighter one gets white too.
    """
    if gain > 1:
        then = cv2.convertScaleAbs(then, alpha=gain)
    elif gain < 1:
        now = cv2.convertScaleAbs(now, alpha=1 / gain)
    return cv2.absdiff(now, then)
