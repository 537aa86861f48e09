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

"""The overlay of every replayed picture, as a video: each picture once, with all cells that were computed from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vlm_reuse_node.replay.video_file import VideoFile
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.overlay import draw_overlay
from vlm_reuse_node.scene.refresh import Refresh

SLOWEST_HZ, FASTEST_HZ = 1.0, 60.0


class Video:
    """Writes a video whose rate is that of the first two pictures."""

    def __init__(self, path: Path) -> None:
        """A picture is written when the next one comes: until then more of it may be computed."""
        self._path = path
        self._last: tuple[float, Frame, Refresh] | None = None
        self._file: VideoFile | None = None

    def add(self, frame: Frame, refresh: Refresh, at_s: float) -> None:
        """Add a look at a picture, or a refresh from the newest one. A picture of another size is resized."""
        if self._last and self._last[0] == at_s:
            before = self._last[2]
            refresh = replace(refresh, refreshed=refresh.refreshed | before.refreshed)
        elif self._last:
            self._write_last(1.0 / max(1e-6, at_s - self._last[0]))
        self._last = (at_s, frame, refresh)

    def close(self) -> None:
        """Finish the file."""
        if self._last:
            self._write_last(SLOWEST_HZ)
        if self._file:
            self._file.close()

    def _write_last(self, rate_hz: float) -> None:
        """Write the last picture. rate_hz: of the video, if it is the first one."""
        _, frame, refresh = self._last
        if self._file is None:
            self._file = VideoFile(self._path, float(np.clip(rate_hz, SLOWEST_HZ, FASTEST_HZ)))
        self._file.write(draw_overlay(frame, refresh)[..., ::-1])
