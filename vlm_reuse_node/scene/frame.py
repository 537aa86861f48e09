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

"""The record of one camera picture. A live camera and a recorded bag both give a `Frame`."""

from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.errors import ImageError

# The frame_id of generated tabletops: the only pictures that the embedded model knows.
TABLETOP_FRAME = 'generated_tabletop'


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera picture.

    rgb: (height, width, 3) uint8, channels in the order red, green, blue. It is handed over: nobody writes to it any
        more. So it becomes read-only, and a view of an array that others can still write to is copied.
    stamp_ns: the time in the source header, nanoseconds.
    frame_id: the source header's coordinate frame.
    camera: the name of the camera that took it.
    received_ns: the time of arrival on the node's clock, the one that questions are stamped with; 0: unknown. It limits
        the age from below, because the camera's clock may be ahead.
    """

    rgb: np.ndarray
    stamp_ns: int = 0
    frame_id: str = ''
    camera: str = 'camera'
    received_ns: int = 0

    def __post_init__(self) -> None:
        """Make the picture read-only."""
        if isinstance(self.rgb.base, np.ndarray) and self.rgb.base.flags.writeable:
            object.__setattr__(self, 'rgb', self.rgb.copy())
        self.rgb.setflags(write=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def taken_ns(self) -> int:
        """When it was taken, nanoseconds: its stamp, or its arrival if that is earlier."""
        return min(self.stamp_ns, self.received_ns) if self.received_ns else self.stamp_ns

    def age_s(self, now_ns: int) -> float:
        """Age of the picture at `now_ns`, seconds. 0 when the picture was taken later."""
        return max(0.0, self.since_s(now_ns))

    def since_s(self, now_ns: int) -> float:
        """Seconds from the picture to `now_ns`; negative when the picture was taken later."""
        return (now_ns - self.taken_ns) / 1e9


def frame_of_pixels(pixels: np.ndarray, stamp_ns: int, camera: str) -> Frame:
    """Make a frame of a picture that somebody else may still write to: it is copied.

    pixels: (height, width, 3) uint8, channels in the order red, green, blue; an array, or what NumPy makes one of.
    Raises ImageError with cause 'encoding' for anything else.
    """
    rgb = np.array(pixels)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(
            'encoding',
            f'The picture is an array of shape {rgb.shape} and type {rgb.dtype}; expected (height, width, 3) of uint8, '
            'channels in the order red, green, blue.',
        )
    return Frame(rgb, stamp_ns, camera=camera)
