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

"""Which topics of a bag have pictures, and which of them are replayed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vlm_reuse_node.replay.bag_reader import BagError

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_NO_CAMERA = re.compile(r'/(image_raw|image_color|image|compressed)$')


@dataclass(frozen=True)
class ImageTopic:
    """A topic with pictures."""

    name: str
    type: str

    @property
    def camera(self) -> str:
        """The topic's name without the usual endings: '/front/image_raw/compressed' is the camera 'front'."""
        name = self.name
        while (shorter := _NO_CAMERA.sub('', name)) not in (name, ''):
            name = shorter
        return name.strip('/')


def choose_topics(path: Path, topics: dict[str, str], empty: set[str], wanted: tuple[str, ...]) -> list[ImageTopic]:
    """Return the wanted topics; without any, the only camera's that has a message.

    path: of the bag. topics: all, by name, with their types. empty: those without a message.
    Raises BagError when there is no such topic, or when it is not clear which is meant.
    """
    image_topics = {name: ImageTopic(name, kind) for name, kind in topics.items() if kind in (IMAGE, COMPRESSED)}
    if not image_topics:
        found = ', '.join(f'{name} ({kind})' for name, kind in sorted(topics.items())) or 'none'
        raise BagError(
            f"The bag '{path}' has no pictures: its topics are {found}; expected one of type {IMAGE} or {COMPRESSED}."
        )
    if missing := [name for name in wanted if name not in image_topics]:
        raise BagError(
            f"The bag '{path}' has no pictures on {', '.join(missing)}; it has them on "
            f'{", ".join(sorted(image_topics))}.'
        )
    if wanted:
        chosen = [image_topics[name] for name in wanted]
    else:
        full = [topic for name, topic in image_topics.items() if name not in empty]
        chosen = _one_per_camera(full or image_topics.values())
    cameras = {topic.camera for topic in chosen}
    if (not wanted and len(chosen) > 1) or len(cameras) < len(chosen):
        raise BagError(
            f"The bag '{path}' has pictures on {', '.join(sorted(image_topics))}; say which to replay: "
            '--topic, once for each camera.'
        )
    return chosen


def _one_per_camera(topics: Iterable[ImageTopic]) -> list[ImageTopic]:
    """Of a camera that has raw and compressed pictures, the raw ones."""
    cameras: dict[str, ImageTopic] = {}
    for topic in sorted(topics, key=lambda topic: (topic.type == COMPRESSED, topic.name)):
        cameras.setdefault(topic.camera, topic)
    return list(cameras.values())
