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

from vlm_reuse_node.replay.picture_message import COMPRESSED, ENCODINGS, OTHER_VIDEO, RAW, VIDEO
from vlm_reuse_node.replay.storage.channel import BagError, Channel
from vlm_reuse_node.scene.video_decoder import NEEDS_PYAV, can_decode_video

_NO_CAMERA = re.compile(r'/(image_raw|image_color|image_rect|image|compressed|compressedDepth|ffmpeg)$')
_DEPTH = re.compile(r'(^|[/_])(depth|disparity)|compressedDepth$')


@dataclass(frozen=True)
class ImageTopic:
    """A topic with pictures."""

    channel: Channel

    @property
    def name(self) -> str:
        """The topic's."""
        return self.channel.topic

    @property
    def camera(self) -> str:
        """The topic's name without the usual endings: '/front/image_raw/compressed' is the camera 'front'."""
        name = self.name
        while (shorter := _NO_CAMERA.sub('', name)) not in (name, ''):
            name = shorter
        return name.strip('/')

    @property
    def is_compressed(self) -> bool:
        """Whether its pictures are compressed."""
        return self.channel.type in COMPRESSED

    @property
    def is_video(self) -> bool:
        """Whether its pictures are a video, whose packets only make sense one after the other."""
        return self.channel.type in VIDEO

    @property
    def is_depth(self) -> bool:
        """Whether its pictures are distances, as far as its name tells."""
        return _DEPTH.search(self.name) is not None


@dataclass(frozen=True)
class TopicChoice:
    """The topics that are replayed, and sentences on those that are passed over."""

    topics: tuple[ImageTopic, ...]
    passed_over: tuple[str, ...]


def choose_topics(
    path: Path, channels: Iterable[Channel], empty: Iterable[str], wanted: tuple[str, ...]
) -> TopicChoice:
    """Choose the wanted topics; without any, the only camera's that has a message; distances only if nothing else is.

    path: of the bag. channels: all. empty: topics without a message.
    Raises BagError when there is no such topic, or when it is not clear which is meant.
    """
    channels = list(channels)
    topics = {
        each.topic: ImageTopic(each)
        for each in channels
        if each.type in (*RAW, *COMPRESSED, *VIDEO) and each.encoding in ENCODINGS
    }
    if not topics:
        raise BagError(_nothing_to_see(path, channels))
    if missing := [name for name in wanted if name not in topics]:
        raise BagError(
            f"The bag '{path}' has no pictures on {', '.join(missing)}; it has them on {', '.join(sorted(topics))}."
        )
    if wanted:
        chosen = [topics[name] for name in wanted]
    else:
        full = [topic for name, topic in topics.items() if name not in set(empty)] or list(topics.values())
        chosen = _one_per_camera([topic for topic in full if not topic.is_depth] or full)
    cameras = {topic.camera for topic in chosen}
    if (not wanted and len(chosen) > 1) or len(cameras) < len(chosen):
        raise BagError(
            f"The bag '{path}' has pictures on {', '.join(sorted(topics))}; say which to replay: "
            '--topic, once for each camera.'
        )
    if videos := [topic.name for topic in chosen if topic.is_video and not can_decode_video()]:
        raise BagError(f"The pictures on {', '.join(videos)} in the bag '{path}' are a video; {NEEDS_PYAV}.")
    return TopicChoice(tuple(chosen), tuple(_passed_over(channels, topics, set(empty), chosen)))


def _one_per_camera(topics: Iterable[ImageTopic]) -> list[ImageTopic]:
    """Of a camera that has several kinds of pictures, the raw ones, else the compressed ones, else the video."""
    cameras: dict[str, ImageTopic] = {}
    for topic in sorted(topics, key=lambda topic: (topic.is_video, topic.is_compressed, topic.name)):
        cameras.setdefault(topic.camera, topic)
    return list(cameras.values())


def _nothing_to_see(path: Path, channels: list[Channel]) -> str:
    for channel in channels:
        if remedy := OTHER_VIDEO.get(channel.type):
            return f"The bag '{path}' has only a video on {channel.topic} ({channel.type}): {remedy}."
    found = ', '.join(f'{each.topic} ({each.type})' for each in sorted(channels, key=lambda each: each.topic))
    return (
        f"The bag '{path}' has no pictures: its topics are {found or 'none'}; expected one of type {RAW[0]} or "
        f'{COMPRESSED[0]}.'
    )


def _passed_over(
    channels: list[Channel], topics: dict[str, ImageTopic], empty: set[str], chosen: list[ImageTopic]
) -> Iterable[str]:
    """Say which pictures are not replayed, and why."""
    cameras = {topic.camera for topic in chosen}
    for channel in sorted(channels, key=lambda each: each.topic):
        topic = topics.get(channel.topic)
        if topic in chosen or (topic is None and channel.type not in (*OTHER_VIDEO, *VIDEO, *RAW, *COMPRESSED)):
            continue
        if topic is None:
            remedy = OTHER_VIDEO.get(channel.type, f'its messages are in {channel.encoding}')
            yield f'{channel.topic} ({channel.type}) is not replayed: {remedy}.'
        elif topic.name in empty:
            yield f'{topic.name} is not replayed: it has no message.'
        elif topic.camera in cameras:
            yield f'{topic.name} is not replayed: its camera has other pictures that are.'
        elif topic.is_depth:
            yield f'{topic.name} is not replayed: it is named as distances; --topic {topic.name} replays it.'
        else:
            yield f'{topic.name} is not replayed: --topic names others.'
