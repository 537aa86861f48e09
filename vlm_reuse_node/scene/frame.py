"""The one picture type: a live camera and a recorded bag both give a `Frame`."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera picture.

    rgb: (height, width, 3) uint8, channels in the order red, green, blue.
    stamp_ns: the time in the source header, nanoseconds.
    frame_id: the source header's coordinate frame.
    camera: the name of the camera that took it.
    received_ns: the asking clock's time when it arrived; 0: unknown. A picture is no younger than that, whatever its
        camera's clock says.
    """

    rgb: np.ndarray
    stamp_ns: int = 0
    frame_id: str = ''
    camera: str = 'camera'
    received_ns: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    def age_s(self, now_ns: int) -> float:
        """Seconds from the picture to `now_ns`; 0 for one that arrived later."""
        taken_ns = min(self.stamp_ns, self.received_ns) if self.received_ns else self.stamp_ns
        return max(0, now_ns - taken_ns) / 1e9
