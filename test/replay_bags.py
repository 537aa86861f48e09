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

"""Tiny bags for the replay's tests."""

from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from vlm_reuse_node.scene.frame import Frame

TYPES = get_typestore(Stores.ROS2_KILTED)
BEGIN_NS = 1_700_000_000_000_000_000
IMAGE, COMPRESSED, TEXT = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage', 'std_msgs/msg/String'


def scene(number: int, changes_at: tuple[int, ...] = (4, 8)) -> np.ndarray:
    """A picture of coloured blocks, another one from each of `changes_at` on: (48, 64, 3) uint8."""
    seed = sum(number >= change for change in changes_at)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def frames(count: int, camera: str = 'camera', step_s: float = 0.5, **options) -> list[Frame]:
    """Pictures of `scene`, one every `step_s`."""
    return [
        Frame(scene(number, **options), BEGIN_NS + round(number * step_s * 1e9), f'{camera}_optical', camera)
        for number in range(count)
    ]


def write_bag(
    path: Path,
    pictures: dict[str, list[Frame]],
    *,
    storage: StoragePlugin = StoragePlugin.MCAP,
    kind: str = IMAGE,
    stamped: bool = True,
    silent: tuple[str, ...] = (),
) -> Path:
    """Write a bag.

    pictures: by topic; a topic without any becomes one of texts. silent: image topics without a message.
    """
    messages = []
    with Writer(path, version=9, storage_plugin=storage) as writer:
        for topic in silent:
            writer.add_connection(topic, kind, typestore=TYPES)
        for topic, each in pictures.items():
            own = kind if each else TEXT
            connection = writer.add_connection(topic, own, typestore=TYPES)
            if not each:
                text = TYPES.serialize_cdr(TYPES.types[TEXT](data='nothing to see'), TEXT)
                messages.append((BEGIN_NS, connection, text))
            messages += [
                (frame.stamp_ns, connection, TYPES.serialize_cdr(message_of(frame, own, stamped), own))
                for frame in each
            ]
        for time_ns, connection, data in sorted(messages, key=lambda message: message[0]):
            writer.write(connection, time_ns, data)
    return path


def storage_file(bag: Path) -> Path:
    """The file with the messages."""
    return next(path for path in bag.iterdir() if path.suffix in ('.mcap', '.db3'))


def truncate(bag: Path, share: float) -> Path:
    """Cut the file with the messages."""
    file = storage_file(bag)
    with file.open('r+b') as stream:
        stream.truncate(round(share * file.stat().st_size))
    return bag


def message_of(frame, kind, stamped):
    seconds, nanoseconds = divmod(frame.stamp_ns if stamped else 0, 1_000_000_000)
    stamp = TYPES.types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
    header = TYPES.types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame.frame_id)
    if kind == COMPRESSED:
        data = cv2.imencode('.png', frame.rgb[..., ::-1])[1].reshape(-1)
        return TYPES.types[kind](header=header, format='rgb8; png compressed bgr8', data=data)
    height, width = frame.size
    return TYPES.types[kind](
        header=header,
        height=height,
        width=width,
        encoding='rgb8',
        is_bigendian=0,
        step=3 * width,
        data=frame.rgb.reshape(-1),
    )
