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

"""One camera's images. An image callback converts the message, hands the frame over and counts, no more."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from threading import Lock
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from vlm_reuse_node.config import FFMPEG_TRANSPORT, Config
from vlm_reuse_node.errors import ConfigError, ImageError
from vlm_reuse_node.ros.arrivals import Arrivals
from vlm_reuse_node.ros.camera_state import CameraState
from vlm_reuse_node.ros.conversion import frame_from_compressed, frame_from_image, packet_of_ffmpeg, stamp_ns
from vlm_reuse_node.ros.executor_load import ExecutorLoad
from vlm_reuse_node.ros.graph import TRANSPORTS, hint, published_pictures, publishers_of, topic_of
from vlm_reuse_node.ros.image_subscription import ImageSubscription
from vlm_reuse_node.ros.node_time import NodeTime
from vlm_reuse_node.ros.stamps import Stamps
from vlm_reuse_node.scene.contrast import Contrast
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.lookout import RESTARTED_NS
from vlm_reuse_node.scene.video_decoder import NEEDS_PYAV, VideoDecoder, can_decode_video
from vlm_reuse_node.session.embedded_model import means_nothing

# Packets of a video that may wait: two seconds of most cameras. One that is lost costs all pictures up to a key frame.
VIDEO_DEPTH = 60


class CameraInput:
    """Receives the pictures on `<name>/image_raw`, or on the topic of another `image_transport` below it.

    Of a video every packet is decoded, in order, also while the model is busy.

    received, dropped, refused: counts of pictures since the object was created. Dropped pictures were not looked at,
    because a newer one came first; refused pictures are counted by cause.
    topic: the full name after remapping.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        config: Config,
        observe: Callable[[Frame], None],
        forget: Callable[[str], None],
        node_time: NodeTime | None = None,
        load: ExecutorLoad | None = None,
    ) -> None:
        """Prepare. No picture is received before `subscribe`.

        observe: takes a frame.
        forget: called with the camera's name when its stamps jump back, as in a looping bag.
        node_time: the time of pictures and questions; None: this camera reads the node's clock alone.
        load: of the thread that calls back; None: it has nothing else to do.
        Raises ConfigError when the messages or the decoder of image_transport are not installed.
        """
        self.name = name
        self.max_image_pixels = config.max_image_pixels
        self.received = 0
        self.dropped = 0
        self.refused: Counter[str] = Counter()
        self.last_refusal = ''
        self.refused_in_a_row = 0
        self.callback_ms: deque[float] = deque(maxlen=300)
        self._last_stamp_ns = 0
        self._arrival_age_s = 0.0
        self._last_usable_s: float | None = None
        self._looked_at_s: float | None = None
        self._model_refuses = False
        self._model, self._is_foreign = config.model, False
        self._counting = Lock()
        self._contrast = Contrast()
        self._time = node_time or NodeTime(node.get_clock())
        self._load, self._stamps = load, Stamps()
        self._node, self._observe, self._forget = node, observe, forget
        self._transport, self._kind = config.image_transport, _message_type(config.image_transport)
        self._decoder = VideoDecoder(self._refuse)
        self._asked_topic = f'{name}/image_raw'
        self._base = node.resolve_topic_name(self._asked_topic)
        if self._transport != 'raw':  # like image_transport: remapping the base topic also moves the others
            self._asked_topic = topic_of(self._base, self._transport)
        self.topic = node.resolve_topic_name(self._asked_topic)
        self._subscription: ImageSubscription | None = None
        self._arrivals = Arrivals()
        self._lost, self._lost_before, self._failure = 0, 0, ''

    @property
    def is_subscribed(self) -> bool:
        """Whether pictures are received."""
        return self._subscription is not None

    def subscribe(self) -> None:
        """Receive pictures from now on. Raises ConfigError for an invalid QoS override."""
        depth = VIDEO_DEPTH if self._transport == FFMPEG_TRANSPORT else 1
        self._decoder = VideoDecoder(self._refuse)
        self._arrivals.forget_publishers()
        try:
            self._subscription = ImageSubscription(self._node, self._kind, self._asked_topic, self._on_taken, depth)
        except ConfigError as error:
            self._failure = str(error)
            raise
        self._failure = ''

    def unsubscribe(self) -> None:
        """Stop receiving pictures. The counts stay."""
        if self._subscription:
            self._lost += self._subscription.lost
            self._subscription.destroy()
            self._subscription = None

    def forget_time(self) -> None:
        """Accept any next stamp, because the clock jumped."""
        self._last_stamp_ns, self._arrival_age_s = 0, 0.0

    def follow_publishers(self) -> None:
        """Adapt to the publishers' reliability. Call it regularly: some middlewares do not announce new publishers."""
        if self._subscription:
            self._subscription.follow_publishers()

    def state(self) -> CameraState:
        """The camera's current state, for diagnostics and for messages of answers."""
        silent_s = None if self._last_usable_s is None else time.monotonic() - self._last_usable_s
        found = publishers_of(self._node, self._asked_topic, TRANSPORTS[self._transport])
        why_none = ''
        if not self.received and not found.nodes:
            why_none = hint(self.name, self._base, self._transport, found.types, published_pictures(self._node))
        return CameraState(
            name=self.name,
            topic=self.topic,
            failure=self._failure,
            hint=why_none,
            publishers=found.nodes,
            way=found.way,
            received=self.received,
            lost=self._lost_so_far,
            lost_since=self._lost_so_far - self._lost_before,
            missed=self._arrivals.missed,
            mixed=self._arrivals.mixed,
            busy=self._load.share if self._load else 0.0,
            dropped=self.dropped,
            refused=dict(self.refused),
            refused_in_a_row=self.refused_in_a_row,
            last_refusal=self.last_refusal,
            incompatible_qos=self._subscription.incompatible_qos if self._subscription else '',
            silent_s=silent_s,
            arrival_age_s=self._arrival_age_s,
            clock=self._time.trouble,
            stamps=self._stamps.trouble,
            is_foreign=self._is_foreign,
            callback_ms=tuple(self.callback_ms),
        )

    def on_looked_at(self) -> None:
        """Note that a picture was looked at. May be called on any thread; does not block."""
        with self._counting:
            self._looked_at_s = time.monotonic()
            if self._model_refuses:
                self._model_refuses = False
                self._last_usable_s, self.refused_in_a_row = self._looked_at_s, 0

    def on_refused(self, error: ImageError) -> None:
        """Count a picture that the model refused. May be called on any thread; does not block."""
        with self._counting:
            self._model_refuses, self._last_usable_s = True, self._looked_at_s
        self._refuse(error)

    def on_dropped(self) -> None:
        """Count a picture that a newer one has replaced. May be called on any thread; does not block."""
        with self._counting:
            self.dropped += 1

    @property
    def _lost_so_far(self) -> int:
        return self._lost + (self._subscription.lost if self._subscription else 0)

    def _on_taken(self, message: Any, info: Mapping[str, Any]) -> None:
        self._arrivals.note(info, stamp_ns(message.header))
        self._on_message(message)

    def _on_message(self, message: Any) -> None:
        start = time.perf_counter()
        self.received += 1
        try:
            for frame in self._frames(message):
                self._hand_over(self._arrived(frame))
        except ImageError as error:
            self._refuse(error)
        self.callback_ms.append(1000 * (time.perf_counter() - start))

    def _frames(self, message: Any) -> Iterator[Frame]:
        """The pictures that are complete with a message: one, or of a video any number. Raises ImageError."""
        if self._transport == FFMPEG_TRANSPORT:
            for picture in self._decoder.decode(packet_of_ffmpeg(message), self.max_image_pixels):
                yield Frame(picture.rgb(), picture.packet.stamp_ns, picture.packet.frame_id, self.name)
            return
        convert = frame_from_compressed if self._transport == 'compressed' else frame_from_image
        learnt = self._contrast.learnt
        yield convert(message, self.name, self.max_image_pixels, self._contrast)
        if self._contrast.learnt != learnt and (note := self._contrast.note):
            self._node.get_logger().info(f"Pictures of camera '{self.name}' are {note}.")

    def _arrived(self, frame: Frame) -> Frame:
        """The frame with the time of its arrival."""
        now_ns = 0 if self._time.is_missing else self._time.now_ns()
        frame = self._stamps.place(frame, now_ns, time.monotonic())
        self._is_foreign = means_nothing(self._model, frame.frame_id)
        self._arrival_age_s = (now_ns - frame.stamp_ns) / 1e9
        return frame

    def _hand_over(self, frame: Frame) -> None:
        if frame.stamp_ns < self._last_stamp_ns - RESTARTED_NS:
            self._node.get_logger().info(f"The stamps of camera '{self.name}' jumped back; its state is rebuilt.")
            self._forget(self.name)
        self._last_stamp_ns = frame.stamp_ns
        if not self._model_refuses:
            self._last_usable_s, self.refused_in_a_row = time.monotonic(), 0
            self._lost_before = self._lost_so_far
        self._observe(frame)

    def _refuse(self, error: ImageError) -> None:
        with self._counting:
            self.refused[error.cause] += 1
            self.refused_in_a_row += 1
            self.last_refusal = str(error)
        self._node.get_logger().warning(
            f"A picture of camera '{self.name}' was refused ({error.cause}). {error}", throttle_duration_sec=5.0
        )


def _message_type(transport: str) -> type:
    """The message of an image_transport. Raises ConfigError when it, or what decodes it, is not installed."""
    if transport != FFMPEG_TRANSPORT:
        return CompressedImage if transport == 'compressed' else Image
    try:
        kind = import_module('ffmpeg_image_transport_msgs.msg').FFMPEGPacket  # an optional package
    except ImportError as error:
        raise ConfigError(
            f"image_transport is '{transport}'; its messages are not installed. Install the ROS package "
            'ffmpeg_image_transport_msgs.'
        ) from error
    if not can_decode_video():
        raise ConfigError(f"image_transport is '{transport}'; {NEEDS_PYAV}.")
    return kind
