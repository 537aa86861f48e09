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

"""Pictures in messages: of ROS 2, ROS 1, and Foxglove's in JSON and protobuf."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from mcap.records import Schema
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.replay.storage.channel import CDR, JSON, PROTOBUF, ROS1, Channel
from vlm_reuse_node.scene.contrast import Contrast
from vlm_reuse_node.scene.picture_file import rgb_of_file
from vlm_reuse_node.scene.pixels import rgb_of_image

RAW = ('sensor_msgs/msg/Image', 'foxglove_msgs/msg/RawImage', 'foxglove.RawImage')
COMPRESSED = ('sensor_msgs/msg/CompressedImage', 'foxglove_msgs/msg/CompressedImage', 'foxglove.CompressedImage')
# Pictures that only make sense one after the other, and what to do about them.
_TO_PICTURES = 'play the bag through `ros2 run image_transport republish {} raw` and record the raw pictures'
VIDEO = {
    'theora_image_transport/msg/Packet': _TO_PICTURES.format('theora'),
    'ffmpeg_image_transport_msgs/msg/FFMPEGPacket': _TO_PICTURES.format('ffmpeg'),
    'foxglove_msgs/msg/CompressedVideo': 'decode the video (H.264, H.265, VP9, AV1) to pictures with FFmpeg first',
    'foxglove.CompressedVideo': 'decode the video (H.264, H.265, VP9, AV1) to pictures with FFmpeg first',
}
ENCODINGS = (CDR, ROS1, JSON, PROTOBUF)
_FOXGLOVE = {
    'foxglove_msgs/msg/RawImage': '{time} timestamp\nstring frame_id\nuint32 width\nuint32 height\nstring encoding\n'
    'uint32 step\nuint8[] data\n',
    'foxglove_msgs/msg/CompressedImage': '{time} timestamp\nstring frame_id\nuint8[] data\nstring format\n',
}
_TIME = {CDR: 'builtin_interfaces/Time', ROS1: 'time'}


@dataclass(frozen=True)
class PictureMessage:
    """The fields of a message with a picture.

    stamp_ns: 0 and less where the driver sets none. format: of a compressed picture; None for a raw one.
    """

    stamp_ns: int
    frame_id: str
    data: bytes | np.ndarray
    format: str | None = None
    encoding: str = ''
    width: int = 0
    height: int = 0
    step: int = 0
    is_bigendian: bool | int = False

    def rgb(self, max_pixels: int, contrast: Contrast) -> np.ndarray:
        """Return its pixels, see `rgb_of_image`. contrast: of the camera. Raises ImageError."""
        if self.format is not None:
            return rgb_of_file(bytes(self.data), self.format, max_pixels, contrast)
        return rgb_of_image(self, max_pixels, contrast)  # type: ignore[arg-type]


def read_picture(channel: Channel, data: bytes) -> PictureMessage:
    """Decode a message. Raises ImageError with cause 'message'."""
    try:
        return _of_fields(_decoder(channel)(data), is_compressed=channel.type in COMPRESSED)
    except ImageError:
        raise
    except Exception as error:  # a torn message makes every decoder raise nearly anything
        text = ' '.join(f'{error}'.split()) or type(error).__name__
        raise ImageError('message', f'The message cannot be decoded as {channel.type}: {text[:200]}.') from error


def _of_fields(message: Any, is_compressed: bool) -> PictureMessage:
    header = getattr(message, 'header', None)
    stamp, frame_id = (header.stamp, header.frame_id) if header else (message.timestamp, message.frame_id)
    head = (_nanoseconds(stamp), frame_id, message.data)
    if is_compressed:
        return PictureMessage(*head, format=message.format)
    is_bigendian = getattr(message, 'is_bigendian', False)
    return PictureMessage(
        *head, None, message.encoding, message.width, message.height, message.step, is_bigendian=is_bigendian
    )


def _nanoseconds(stamp: Any) -> int:
    """A time of ROS or of Foxglove, which names its parts differently in each encoding."""
    seconds = stamp.sec if hasattr(stamp, 'sec') else stamp.seconds
    rest = next(getattr(stamp, name) for name in ('nanosec', 'nanos', 'nsec') if hasattr(stamp, name))
    return int(seconds) * 1_000_000_000 + int(rest)


@lru_cache(maxsize=64)
def _decoder(channel: Channel) -> Callable[[bytes], Any]:
    if channel.encoding == JSON:
        return _json_message
    if channel.encoding == PROTOBUF:
        return _protobuf_decoder(channel)
    types = _types(channel.encoding)
    if channel.encoding == ROS1:
        return lambda data: types.deserialize_ros1(data, channel.type)
    return lambda data: types.deserialize_cdr(data, channel.type)


@cache
def _types(encoding: str) -> Typestore:
    """The message types of ROS 1 or 2, and Foxglove's for it."""
    store = get_typestore(Stores.ROS1_NOETIC if encoding == ROS1 else Stores.ROS2_KILTED)
    for name, text in _FOXGLOVE.items():
        store.register(get_types_from_msg(text.format(time=_TIME[encoding]), name))
    return store


class _Json:
    """A JSON object whose members are attributes."""

    def __init__(self, members: dict) -> None:
        self.__dict__.update({name: _Json(each) if isinstance(each, dict) else each for name, each in members.items()})


def _json_message(data: bytes) -> _Json:
    message = json.loads(data)
    return _Json({**message, 'data': base64.b64decode(message['data'], validate=True)})


def _protobuf_decoder(channel: Channel) -> Callable[[bytes], Any]:
    try:
        from mcap_protobuf.decoder import DecoderFactory
    except ImportError as error:
        raise ImageError(
            'message', 'The pictures are in protobuf, which needs the package mcap-protobuf-support; install it.'
        ) from error
    schema = Schema(1, channel.schema, PROTOBUF, channel.type)
    decoder = DecoderFactory().decoder_for(PROTOBUF, schema)
    if decoder is None:
        raise ValueError('its schema is not in protobuf')
    return decoder
