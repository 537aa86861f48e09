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

"""Pictures of a live topic. The only file of the check that needs ROS."""

import time

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from vlm_reuse_node.check.pictures import COUNT, Pictures, in_turn
from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ImageError, VlmReuseError
from vlm_reuse_node.ros.conversion import frame_from_compressed, frame_from_image
from vlm_reuse_node.ros.image_subscription import ImageSubscription
from vlm_reuse_node.scene.frame import Frame

NODE = 'vlm_reuse_check'
GAP_S = 0.3  # between two pictures, so that something may change
TYPES = {'sensor_msgs/msg/Image': Image, 'sensor_msgs/msg/CompressedImage': CompressedImage}


class LiveError(VlmReuseError):
    """No picture came from a live topic."""


class Receiver:
    """Receives pictures of a topic with a node of its own. frames: so far. refused: why the last one was unusable."""

    def __init__(self, node: Node, topic: str, kind: type) -> None:
        """Subscribe. Raises ConfigError for an invalid name."""
        self.frames: list[Frame] = []
        self.refused = ''
        self._last_s = float('-inf')
        self.subscription = ImageSubscription(node, kind, topic, self._take)

    def _take(self, message: Image | CompressedImage) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s < GAP_S:
            return
        convert = frame_from_compressed if isinstance(message, CompressedImage) else frame_from_image
        try:
            self.frames.append(convert(message, 'camera', Config().max_image_pixels))
        except ImageError as error:
            self.refused = str(error)
            return
        self._last_s = now_s


def live(topic: str, timeout_s: float) -> Pictures:
    """Wait for pictures on a topic, and take those that came within the time limit, at least one.

    Raises LiveError when none came, ConfigError when the topic's name is invalid.
    """
    context = Context()
    rclpy.init(args=[], context=context)
    executor = SingleThreadedExecutor(context=context)
    node = rclpy.create_node(NODE, context=context, start_parameter_services=False)
    try:
        executor.add_node(node)
        return _receive(node, executor, topic, time.monotonic() + timeout_s, timeout_s)
    finally:
        node.destroy_node()
        executor.shutdown()
        context.try_shutdown()


def _receive(node: Node, executor: SingleThreadedExecutor, topic: str, end_s: float, timeout_s: float) -> Pictures:
    kind, receiver = None, None
    while time.monotonic() < end_s and (receiver is None or len(receiver.frames) < COUNT):
        executor.spin_once(timeout_sec=0.05)
        if receiver is None and (kind := _kind(node, topic)):
            receiver = Receiver(node, topic, kind)
        elif receiver is not None:
            receiver.subscription.follow_publishers()
    if receiver is not None and receiver.frames:
        return in_turn(receiver.frames, f'of live topic {topic}')
    if receiver is not None and receiver.refused:
        raise LiveError(f"The pictures of '{topic}' cannot be used: {receiver.refused}")
    raise LiveError(
        f"No picture came on '{topic}' within {timeout_s:g} s; {_known(node)}. Start the camera, or name another topic."
    )


def _kind(node: Node, topic: str) -> type | None:
    """The topic's type, once somebody publishes it. Raises ConfigError for a wrong name."""
    try:
        name = node.resolve_topic_name(topic)
    except Exception as error:  # rclpy raises several kinds
        raise ConfigError(f"'{topic}' is no name of a topic; expected one such as /camera/image_raw.") from error
    for published, types in node.get_topic_names_and_types():
        if published == name:
            return next((TYPES[kind] for kind in types if kind in TYPES), None)
    return None


def _known(node: Node) -> str:
    """The image topics that there are."""
    names = [name for name, types in node.get_topic_names_and_types() if set(types) & set(TYPES)]
    return f'topics with pictures are {", ".join(sorted(names)[:5])}' if names else 'no topic has pictures'
