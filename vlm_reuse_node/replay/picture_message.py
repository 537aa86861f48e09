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

"""Pictures and packets of videos in messages: of ROS 2, ROS 1, and Foxglove's in JSON and protobuf."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from mcap.records import Schema
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.replay.storage.channel import CDR, JSON, PROTOBUF, ROS1, Channel
from vlm_reuse_node.scene.contrast import Contrast
from vlm_reuse_node.scene.picture_file import rgb_of_file
from vlm_reuse_node.scene.pixels import rgb_of_image
from vlm_reuse_node.scene.video_decoder import KEY_FLAG, VideoPacket

T = TypeVar('T')

RAW = ('sensor_msgs/msg/Image', 'foxglove_msgs/msg/RawImage', 'foxglove.RawImage')
COMPRESSED = ('sensor_msgs/msg/CompressedImage', 'foxglove_msgs/msg/CompressedImage', 'foxglove.CompressedImage')
FFMPEG = 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket'
VIDEO = (FFMPEG, 'foxglove_msgs/msg/CompressedVideo', 'foxglove.CompressedVideo')
# Videos that are not decoded, and what to do about them.
OTHER_VIDEO = {
    'theora_image_transport/msg/Packet': 'Theora is not decoded; play the bag through `ros2 run image_transport '
    'republish theora raw` and record the raw pictures'
}
ENCODINGS = (CDR, ROS1, JSON, PROTOBUF)
# Definitions for recordings without them. ROS 1's packet has other fields.
_OURS = {
    'foxglove_msgs/msg/RawImage': '{time} timestamp\nstring frame_id\nuint32 width\nuint32 height\nstring encoding\n'
    'uint32 step\nuint8[] data\n',
    'foxglove_msgs/msg/CompressedImage': '{time} timestamp\nstring frame_id\nuint8[] data\nstring format\n',
    'foxglove_msgs/msg/CompressedVideo': '{time} timestamp\nstring frame_id\nuint8[] data\nstring format\n',
    FFMPEG: 'std_msgs/Header header\nint32 {size}width\nint32 {size}height\nstring encoding\nuint64 pts\nuint8 flags\n'
    '{byte_order}uint8[] data\n',
}
_WORDS = {
    CDR: {'time': 'builtin_interfaces/Time', 'size': '', 'byte_order': 'bool is_bigendian\n'},
    ROS1: {'time': 'time', 'size': 'img_', 'byte_order': ''},
}


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
    return _read(channel, data, lambda message: _picture(message, is_compressed=channel.type in COMPRESSED))


def read_packet(channel: Channel, data: bytes, recorded_ns: int) -> VideoPacket:
    """Decode a message with a packet of a video. Raises ImageError with cause 'message'."""
    return _read(channel, data, lambda message: _packet(message, recorded_ns))


def _read(channel: Channel, data: bytes, of_fields: Callable[[Any], T]) -> T:
    try:
        return of_fields(_decoder(channel)(data))
    except ImageError:
        raise
    except Exception as error:  # a torn message makes every decoder raise nearly anything
        text = ' '.join(f'{error}'.split()) or type(error).__name__
        raise ImageError('message', f'The message cannot be decoded as {channel.type}: {text[:200]}.') from error


def _picture(message: Any, is_compressed: bool) -> PictureMessage:
    head = (*_header(message), message.data)
    if is_compressed:
        return PictureMessage(*head, format=message.format)
    is_bigendian = getattr(message, 'is_bigendian', False)
    return PictureMessage(
        *head, None, message.encoding, message.width, message.height, message.step, is_bigendian=is_bigendian
    )


def _packet(message: Any, recorded_ns: int) -> VideoPacket:
    stamp_ns, frame_id = _header(message)
    data = bytes(message.data)
    if hasattr(message, 'format'):
        return VideoPacket(data, message.format, stamp_ns, frame_id, recorded_ns)
    is_key = bool(message.flags & KEY_FLAG)
    return VideoPacket(data, message.encoding, stamp_ns, frame_id, recorded_ns, int(message.pts), is_key)


def _header(message: Any) -> tuple[int, str]:
    """Stamp and coordinate frame."""
    header = getattr(message, 'header', None)
    stamp, frame_id = (header.stamp, header.frame_id) if header else (message.timestamp, message.frame_id)
    return _nanoseconds(stamp), frame_id


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
    types = _types(channel.encoding, channel.type, channel.schema)
    if channel.encoding == ROS1:
        return lambda data: types.deserialize_ros1(data, channel.type)
    return lambda data: types.deserialize_cdr(data, channel.type)


@lru_cache(maxsize=64)
def _types(encoding: str, kind: str, definition: bytes) -> Typestore:
    """The message types of ROS 1 or 2; others as the recording defines them, else as they are known here."""
    store = get_typestore(Stores.ROS1_NOETIC if encoding == ROS1 else Stores.ROS2_KILTED)
    if kind in store.types:
        return store
    try:
        found = get_types_from_msg(definition.decode(), kind)
        if kind in found and found[kind][1]:
            store.register({name: each for name, each in found.items() if name not in store.types})
            return store
    except Exception:  # a damaged definition makes the parser raise nearly anything
        pass
    if text := _OURS.get(kind):
        store.register(get_types_from_msg(text.format(**_WORDS[encoding]), kind))
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
