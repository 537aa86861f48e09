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

"""One camera's overlay topic."""

from threading import Lock

from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from vlm_reuse_node.ros.conversion import image_message
from vlm_reuse_node.ros.messages import header_of
from vlm_reuse_node.ros.parameters import making, overridable
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.overlay import draw_overlay
from vlm_reuse_node.scene.refresh import Refresh


class OverlayOutput:
    """Publishes `~/overlay/<camera>` while somebody subscribes to it."""

    def __init__(self, node: Node, camera: str) -> None:
        """Create the topic. Raises ConfigError for an invalid QoS override."""
        self._node, self._using = node, Lock()
        with making(f'The overlay topic of camera {camera}'):
            self._publisher = node.create_publisher(
                Image, f'~/overlay/{camera}', QoSProfile(depth=5), qos_overriding_options=overridable()
            )

    def publish(self, frame: Frame, refresh: Refresh) -> None:
        """Draw and publish the overlay of this frame. May be called from any thread."""
        with self._using:
            if self._publisher and self._publisher.get_subscription_count():
                header = header_of(frame.stamp_ns, frame.frame_id)
                self._publisher.publish(image_message(draw_overlay(frame, refresh), header))

    def destroy(self) -> None:
        """Remove the topic. Later overlays are not published."""
        with self._using:
            self._node.destroy_publisher(self._publisher)
            self._publisher = None
