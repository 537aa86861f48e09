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

"""Recordings of videos: packets that PyAV's encoders made of a few small pictures, in the messages that robots use."""

import base64
import json
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from recordings import ROS1_TYPES
from replay_bags import BEGIN_NS, TYPES
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import get_types_from_msg

from vlm_reuse_node.scene.video_decoder import VideoPacket

STEP_NS = 40_000_000
KEY_EVERY = 8
FFMPEG, FOXGLOVE = 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket', 'foxglove_msgs/msg/CompressedVideo'
TOPIC = '/camera/image_raw/ffmpeg'
_ROS1_PACKET = (
    'std_msgs/Header header\nint32 img_width\nint32 img_height\nstring encoding\nuint64 pts\nuint8 flags\n'
    'uint8[] data\n'
)
_ROS2_PACKET = (
    'std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\nbool is_bigendian\n'
    'uint8[] data\n'
)
_ROS2_VIDEO = 'builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n'
# By FFmpeg's name of the codec: the encoder, and what makes it silent and keeps it from delaying pictures.
ENCODERS = {
    'h264': ('libx264', {'tune': 'zerolatency', 'x264-params': 'log-level=none'}),
    'hevc': ('libx265', {'tune': 'zerolatency', 'x265-params': 'log-level=none'}),
    'vp9': ('libvpx-vp9', {'lag-in-frames': '0'}),
    'av1': ('libsvtav1', {'svtav1-params': 'pred-struct=1:lookahead=0', 'preset': '10'}),
}
TYPES.register({**get_types_from_msg(_ROS2_PACKET, FFMPEG), **get_types_from_msg(_ROS2_VIDEO, FOXGLOVE)})
ROS1_TYPES.register(get_types_from_msg(_ROS1_PACKET, FFMPEG))


@dataclass(frozen=True)
class Video:
    """packets: as they are sent. pictures: by stamp, as FFmpeg decodes them in one go."""

    packets: list[VideoPacket]
    pictures: dict[int, np.ndarray]


def scene(number, size=(64, 48)):
    """A square that moves over a smooth background, and jumps with every twelfth picture."""
    width, height = size
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    picture = np.stack([255 * down, 255 * across, 128 + 0 * down], axis=2).astype(np.uint8)
    at = 3 * number % (width - 16)
    cv2.rectangle(picture, (at, 8 * (number // 12) % 24), (at + 12, 8 * (number // 12) % 24 + 12), (250, 40, 40), -1)
    return picture


def video(codec='h264', count=24, b_frames=0, size=(64, 48), named=None):
    """Encode `count` pictures. named: what the messages call the codec; None: as the encoder."""
    import av

    name, options = ENCODERS[codec]
    encoder = av.CodecContext.create(name, 'w')
    encoder.width, encoder.height, encoder.pix_fmt = *size, 'yuv420p'
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, 25), 25, KEY_EVERY
    encoder.max_b_frames = b_frames
    encoder.thread_count = 1
    encoder.options = {name: value for name, value in options.items() if not b_frames or name != 'tune'}
    packets = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(scene(number, size), 'rgb24')
        frame.pts, frame.time_base = number, encoder.time_base
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create('libdav1d' if codec == 'av1' else codec, 'r')
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return Video(
        [
            VideoPacket(
                bytes(packet),
                named or name,
                stamp(packet.pts),
                'camera_optical',
                pts=packet.pts,
                is_key=packet.is_keyframe,
            )
            for packet in packets
        ],
        {stamp(frame.pts): frame.to_ndarray(format='rgb24') for frame in frames},
    )


def stamp(number):
    return BEGIN_NS + number * STEP_NS


def write_video(path, packets, kind=FFMPEG, storage=StoragePlugin.MCAP, topic=TOPIC):
    """Write packets to a ROS 2 bag, each recorded when it was sent."""
    with Ros2Writer(path, version=9, storage_plugin=storage) as writer:
        connection = writer.add_connection(topic, kind, typestore=TYPES)
        for number, packet in enumerate(packets):
            writer.write(connection, stamp(number), TYPES.serialize_cdr(message(packet, kind), kind))
    return path


def message(packet, kind, types=TYPES):
    """The message of ROS 2 or 1 with a packet."""
    seconds, nanoseconds = divmod(packet.stamp_ns, 1_000_000_000)
    time = types.types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
    data = np.frombuffer(packet.data, np.uint8)
    if kind == FOXGLOVE:
        return types.types[kind](timestamp=time, frame_id=packet.frame_id, data=data, format=packet.codec)
    number = {'seq': 0} if types is ROS1_TYPES else {}
    header = types.types['std_msgs/msg/Header'](stamp=time, frame_id=packet.frame_id, **number)
    size = {'img_width': 64, 'img_height': 48} if number else {'width': 64, 'height': 48, 'is_bigendian': False}
    encoding = f'{packet.codec};yuv420p;bgr8;bgr8'
    return types.types[kind](
        header=header, encoding=encoding, pts=packet.pts, flags=int(packet.is_key), data=data, **size
    )


def write_ros1_video(path, packets):
    """Write packets to a bag of ROS 1, whose message has other fields."""
    with Ros1Writer(path) as writer:
        connection = writer.add_connection(TOPIC, FFMPEG, typestore=ROS1_TYPES)
        for number, packet in enumerate(packets):
            data = ROS1_TYPES.serialize_ros1(message(packet, FFMPEG, ROS1_TYPES), FFMPEG)
            writer.write(connection, stamp(number), bytes(data))
    return path


def json_video(packet):
    """Foxglove's message in JSON."""
    seconds, nanoseconds = divmod(packet.stamp_ns, 1_000_000_000)
    return json.dumps(
        {
            'timestamp': {'sec': seconds, 'nsec': nanoseconds},
            'frame_id': packet.frame_id,
            'format': packet.codec,
            'data': base64.b64encode(packet.data).decode(),
        }
    ).encode()
