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

"""Pictures whose brightness and colours are in planes of their own, as many cameras and decoders give them."""

from typing import NamedTuple

import numpy as np

from vlm_reuse_node.errors import ImageError


class PlanarLayout(NamedTuple):
    """How the colours follow the plane of brightness.

    rows, columns: pixels that share a colour. is_interleaved: whether U and V alternate in one plane. has_v_first: V
    comes before U.
    """

    rows: int
    columns: int
    is_interleaved: bool
    has_v_first: bool = False

    @property
    def bytes_a_pixel(self) -> float:
        """1.5 where four pixels share a colour, 3 where each has its own."""
        return 1 + 2 / (self.rows * self.columns)


NV12, NV21 = PlanarLayout(2, 2, True), PlanarLayout(2, 2, True, has_v_first=True)
NV24, NV42 = PlanarLayout(1, 1, True), PlanarLayout(1, 1, True, has_v_first=True)
I420, YV12 = PlanarLayout(2, 2, False), PlanarLayout(2, 2, False, has_v_first=True)
# By the names of sensor_msgs, camera_ros, usb_cam, depthai and FFmpeg.
PLANAR = {
    'nv12': NV12,
    'nv21': NV21,
    'nv24': NV24,
    'nv42': NV42,
    'i420': I420,
    'yuv420': I420,
    'yuv420p': I420,
    'YUV420': I420,
    'yv12': YV12,
}


def yuyv_of_planes(data: np.ndarray, height: int, width: int, step: int, layout: PlanarLayout) -> np.ndarray:
    """Return the picture as yuyv: (height, width, 2) uint8, brightness and in turn U and V of each pair of pixels.

    data: (bytes,) uint8. step: bytes of a row of brightness.
    Raises ImageError with cause 'size', 'step' or 'truncated'.
    """
    if width % 2 or height % layout.rows:
        raise ImageError('size', f'The picture is {width} x {height} pixels; its encoding needs even numbers.')
    most = round(step * height * layout.bytes_a_pixel)
    if step < width or (step % 2 and not layout.is_interleaved):
        raise ImageError('step', f'step is {step} bytes; expected at least {width}, one for each pixel of a row.')
    if data.size != most:
        cause = 'truncated' if data.size < most else 'step'
        raise ImageError(cause, f'The picture has {data.size} bytes; expected {most} in its planes.')
    brightness, colours = data[: step * height].reshape(height, step), data[step * height :]
    shared_rows, shared_columns = height // layout.rows, width // layout.columns
    if layout.is_interleaved:
        rows = colours.reshape(shared_rows, -1)[:, : 2 * shared_columns]
        u, v = rows[:, 0::2], rows[:, 1::2]
    else:
        u, v = colours.reshape(2, shared_rows, -1)[:, :, :shared_columns]
    u, v = (v, u) if layout.has_v_first else (u, v)
    every = 2 // layout.columns  # yuyv has a colour for each pair of pixels
    packed = np.empty((height, width, 2), np.uint8)
    packed[:, :, 0] = brightness[:, :width]
    packed[:, 0::2, 1] = u[:, ::every].repeat(layout.rows, axis=0)
    packed[:, 1::2, 1] = v[:, ::every].repeat(layout.rows, axis=0)
    return packed
