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

"""Records what the node publishes while the bag plays: refresh budget, overlay and diagnostics."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vlm_reuse_interfaces.msg import RefreshBudget

from vlm_reuse_node.demo.stills import decoded
from vlm_reuse_node.demo.summary import CameraCounts, Look
from vlm_reuse_node.replay.video_file import VideoFile
from vlm_reuse_node.ros.conversion import stamp_ns
from vlm_reuse_node.ros.messages import level_of
from vlm_reuse_node.scene.refresh import Totals

NODE = 'vlm_reuse_node'
STILL_QUALITY = 92


class Recorder:
    """Subscribes to the node's outputs.

    overlay_topic: of the camera. stills: JPEG of each picture's last overlay, by the picture's time.
    diagnostics: the newest, as JSON types.
    """

    def __init__(self, node: Node, video: Path, *, camera: str, first_ns: int, rate_hz: float) -> None:
        """Subscribe. first_ns: where times begin. video: written at the end, with `rate_hz` pictures a second."""
        self._looks: dict[float, Look] = {}
        self.overlay_topic = f'/{NODE}/overlay/{camera}'
        self.stills: dict[float, bytes] = {}
        self.diagnostics: list[dict] = []
        self._first_ns = first_ns
        self._rate_hz = rate_hz
        self._path = video
        self._last: RefreshBudget | None = None
        node.create_subscription(RefreshBudget, f'/{NODE}/refresh_budget', self._on_budget, QoSProfile(depth=50))
        node.create_subscription(Image, self.overlay_topic, self._on_overlay, QoSProfile(depth=10))
        self._stop_diagnostics = partial(
            node.destroy_subscription,
            node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, QoSProfile(depth=10)),
        )

    def keep_diagnostics(self) -> None:
        """Take no newer diagnostics: after the bag they would only say that no picture comes."""
        self._stop_diagnostics()

    def close(self) -> None:
        """Write the video: each picture once, as its last overlay shows it."""
        video = VideoFile(self._path, self._rate_hz)
        for picture_s in sorted(self.stills):
            video.write(decoded(self.stills[picture_s]))
        video.close()

    @property
    def looks(self) -> tuple[Look, ...]:
        """Each picture that was looked at once, in order."""
        return tuple(self._looks[picture_s] for picture_s in sorted(self._looks))

    @property
    def totals(self) -> Totals:
        """The node's account of the camera, from its newest message."""
        last = self._last or RefreshBudget()
        return Totals(last.work_ms_total, last.cold_ms_total, last.credit_ms)

    def camera(self, sent: int) -> CameraCounts:
        """Return the node's own counts, from its newest message. sent: pictures that the player sent."""
        last = self._last or RefreshBudget()
        return CameraCounts(sent, last.frames_received, last.frames_dropped, last.frames_refused)

    def seconds(self, header: Header) -> float:
        """Return when a picture was taken, seconds from the first one."""
        return (stamp_ns(header) - self._first_ns) / 1e9

    def _on_budget(self, message: RefreshBudget) -> None:
        """Keep a look at a picture, or add a refresh to it."""
        self._last = message
        look = Look(
            self.seconds(message.header),
            str(level_of(message)),
            message.reason,
            message.visual_tokens_total,
            message.visual_tokens_refreshed,
            message.change_ms,
            message.vision_ms + message.prefill_ms,
            message.visual_tokens_stale,
        )
        known = self._looks.get(look.picture_s)
        self._looks[look.picture_s] = known.together(look) if known else look

    def _on_overlay(self, message: Image) -> None:
        """Keep it; the overlay of a refresh replaces that of the look at the same picture."""
        bgr = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)[..., ::-1]
        jpeg = cv2.imencode('.jpg', bgr, (cv2.IMWRITE_JPEG_QUALITY, STILL_QUALITY))[1]
        self.stills[self.seconds(message.header)] = jpeg.tobytes()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.diagnostics = [
            {
                'name': status.name,
                'level': int.from_bytes(status.level),
                'message': status.message,
                'values': {pair.key: pair.value for pair in status.values},
            }
            for status in message.status
        ]
