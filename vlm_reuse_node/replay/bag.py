"""Recorded bags (mcap, sqlite3) as `Frame`s, read in process; damaged ones as far as they can be read."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from vlm_reuse_node.errors import ImageError, VlmReuseError
from vlm_reuse_node.replay.salvage import Salvage, one_line
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.pixels import rgb_of_file, rgb_of_image

IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_TYPES = get_typestore(Stores.ROS2_KILTED)
NOT_NEWER, BEFORE_FIRST = 'not newer than the one before', "with a stamp before the bag's first picture"
_NO_CAMERA = re.compile(r'/(image_raw|image_color|image|compressed)$')


class BagError(VlmReuseError):
    """A bag that cannot be replayed."""


@dataclass(frozen=True)
class ImageTopic:
    """A topic with pictures. camera: its name without what every image topic is called."""

    name: str
    type: str

    @property
    def camera(self) -> str:
        """'/front/image_raw/compressed' is the camera 'front'."""
        name = self.name
        while (shorter := _NO_CAMERA.sub('', name)) not in (name, ''):
            name = shorter
        return name.strip('/')


@dataclass(frozen=True)
class Selection:
    """Which part of a bag is replayed; seconds count from its first picture. rate_limit_hz: 0 takes every picture."""

    topics: tuple[str, ...] = ()
    start_s: float = 0.0
    duration_s: float = math.inf
    rate_limit_hz: float = 0.0
    max_pixels: int = 33_177_600


class _Source(Protocol):
    topics: dict[str, str]
    empty: set[str]

    def messages(self, names: set[str], after_ns: int) -> Iterator[tuple[str, int, bytes]]: ...


class _Whole:
    """An undamaged bag, as far as opening it tells."""

    def __init__(self, reader: Reader):
        self._reader = reader
        self.topics = {connection.topic: connection.msgtype for connection in reader.connections}
        self.empty = {name for name, topic in reader.topics.items() if not topic.msgcount}

    def messages(self, names, after_ns):
        """Topic, time of recording and bytes, by time."""
        wanted = [connection for connection in self._reader.connections if connection.topic in names]
        for connection, time_ns, data in self._reader.messages(wanted):
            yield connection.topic, time_ns, data


class Bag:
    """One bag: a directory with metadata.yaml, or a single mcap or sqlite3 file.

    topics: those with pictures. first_ns: stamp of the first picture, once it was read. seconds: from the first to the
    last picture, as far as is known before all is read.
    read, used, refused, left_out: pictures of each camera that were read; replayed; could not be used, by cause; and
    were not replayed, by why. damage: sentences on what is wrong with the bag, complete after everything was read.
    """

    def __init__(self, path: Path, selection: Selection = Selection()):
        """Open it. Raises BagError when there is nothing to replay, in one sentence that says why."""
        self.path, self.name, self._selection = path, path.stem if path.is_file() else path.resolve().name, selection
        self.first_ns: int | None = None
        self.seconds = 0.0
        self.read: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.refused: dict[str, Counter[str]] = {}
        self.left_out: dict[str, Counter[str]] = {}
        self.damage: list[str] = []
        self._reader, self._last_ns, self._broken = None, -1, ''
        self._source = self._open()
        self.topics = self._chosen()

    def close(self) -> None:
        """Close the files."""
        if self._reader:
            self._reader.close()

    def frames(self) -> Iterator[Frame]:
        """The pictures of the chosen topics, by the time they were recorded, each camera's in the order of its stamps.

        A picture without a stamp has the time at which it was recorded.
        """
        kinds = {topic.name: topic for topic in self.topics}
        newest: dict[str, int] = {}
        taken: dict[str, int] = {}
        for name, time_ns, data in self._messages(set(kinds)):
            topic = kinds[name]
            self.read[topic.camera] += 1
            frame = self._frame(topic, time_ns, data)
            if frame is None:
                continue
            self.first_ns = frame.stamp_ns if self.first_ns is None else self.first_ns
            why = self._why_not(frame, newest.get(frame.camera, -1), taken.get(frame.camera))
            newest[frame.camera] = max(newest.get(frame.camera, -1), frame.stamp_ns)
            if why:
                self.left_out.setdefault(frame.camera, Counter())[why] += 1
                continue
            taken[frame.camera] = frame.stamp_ns
            self.used[frame.camera] += 1
            yield frame
        self._tell_damage()

    def refuse(self, camera: str, cause: str, why: str) -> None:
        """Count a picture that cannot be used."""
        counts = self.refused.setdefault(camera, Counter())
        if not counts[cause]:
            self.damage.append(f"Pictures of '{camera}' cannot be used ({cause}), the first one because: {why}")
        counts[cause] += 1

    def at_s(self, frame: Frame) -> float:
        """When a picture was taken: seconds from the bag's first one, to the microsecond."""
        return round((frame.stamp_ns - self.first_ns) / 1e9, 6)

    # --- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> _Source:
        if not self.path.exists():
            raise BagError(
                f"There is no bag '{self.path}'; expected the directory of a ROS 2 bag, or an mcap or db3 file."
            )
        try:
            self._reader = Reader(self.path)
            self._reader.open()
            self.seconds = max(0.0, self._reader.duration / 1e9)
            return _Whole(self._reader)
        except Exception as error:  # rosbags raises nearly anything on a damaged file
            self._reader, self._broken = None, one_line(error)
        salvage = Salvage(self.path)
        if not salvage.files:
            raise BagError(
                f"'{self.path}' is no ROS 2 bag: {self._broken} Expected a directory with metadata.yaml, or "
                'an mcap or db3 file.'
            )
        if not salvage.topics:
            raise BagError(
                f"The bag '{self.path}' is damaged, and nothing in it can be read: {self._broken} Record or "
                'copy it again.'
            )
        self.seconds = salvage.seconds
        return salvage

    def _chosen(self) -> tuple[ImageTopic, ...]:
        """The topics to replay: those that were named, or the only camera's that has any message."""
        topics = self._source.topics
        there = {name: ImageTopic(name, kind) for name, kind in topics.items() if kind in (IMAGE, COMPRESSED)}
        if not there:
            found = ', '.join(f'{name} ({kind})' for name, kind in sorted(topics.items())) or 'none'
            raise BagError(
                f"The bag '{self.path}' has no pictures: its topics are {found}; expected one of type "
                f'{IMAGE} or {COMPRESSED}.'
            )
        named = self._selection.topics
        if missing := [name for name in named if name not in there]:
            raise BagError(
                f"The bag '{self.path}' has no pictures on {', '.join(missing)}; it has them on "
                f'{", ".join(sorted(there))}.'
            )
        full = [topic for name, topic in there.items() if name not in self._source.empty]
        chosen = [there[name] for name in named] if named else _one_per_camera(full or there.values())
        cameras = [topic.camera for topic in chosen]
        if not named and len(chosen) > 1 or len(set(cameras)) < len(cameras):
            raise BagError(
                f"The bag '{self.path}' has pictures on {', '.join(sorted(there))}; say which to replay: "
                '--topic, once for each camera.'
            )
        return tuple(chosen)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _messages(self, names):
        """Messages as long as there are any; where a whole bag turns out to be damaged, what can still be read."""
        source, last_ns = self._source, -1
        try:
            for message in source.messages(names, last_ns):
                last_ns = message[1]
                yield message
        except Exception as error:  # likewise
            if isinstance(source, Salvage):
                raise
            self._broken = one_line(error)
            yield from Salvage(self.path).messages(names, last_ns)

    def _frame(self, topic, time_ns, data):
        """The picture of a message, or None for one that is none; counted."""
        try:
            message = _TYPES.deserialize_cdr(data, topic.type)
        except Exception as error:  # whatever a torn message leads to
            return self.refuse(topic.camera, 'message', one_line(error))
        try:
            frame = _frame_of(message, topic, time_ns, self._selection.max_pixels)
        except ImageError as error:
            return self.refuse(topic.camera, error.cause, str(error))
        return frame

    def _why_not(self, frame, newest_ns, taken_ns):
        """Why a picture is not replayed, '' when it is."""
        wanted = self._selection
        if frame.stamp_ns <= newest_ns:
            return NOT_NEWER
        if frame.stamp_ns < self.first_ns:  # of another camera, whose messages are recorded later
            return BEFORE_FIRST
        if not 0 <= self.at_s(frame) - wanted.start_s < wanted.duration_s:
            return 'outside of --start and --duration'
        # A tenth of a period of slack: a camera of 30 Hz that jitters stays one of 30 Hz.
        period_ns = 0.9e9 / wanted.rate_limit_hz if wanted.rate_limit_hz else 0
        if taken_ns is not None and frame.stamp_ns - taken_ns < period_ns:
            return 'above --rate-limit'
        return ''

    def _tell_damage(self):
        self.damage += [
            f"{counts[why]} pictures of '{camera}' were left out: {why}."
            for camera, counts in sorted(self.left_out.items())
            for why in (NOT_NEWER, BEFORE_FIRST)
            if counts[why]
        ]
        if self._broken:
            expected = _expected_messages(self.path, {topic.name for topic in self.topics})
            of_all = f' of the {expected} that metadata.yaml names' if expected else ''
            self.damage.insert(
                0,
                f'The bag is damaged ({self._broken.rstrip(".")}); {sum(self.read.values())} '
                f'pictures{of_all} were read, what the damage took is not there.',
            )


def _frame_of(message: Any, topic: ImageTopic, time_ns: int, max_pixels: int) -> Frame:
    """The picture of a message; without a stamp it has the time of its recording. Raises ImageError."""
    if topic.type == COMPRESSED:
        rgb = rgb_of_file(bytes(message.data), message.format, max_pixels)
    else:
        rgb = rgb_of_image(message, max_pixels)
    header = message.header
    stamp_ns = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
    return Frame(rgb, stamp_ns or time_ns, header.frame_id, topic.camera)


def _one_per_camera(topics):
    """Of a camera that is there twice, the raw pictures."""
    cameras: dict[str, ImageTopic] = {}
    for topic in sorted(topics, key=lambda topic: (topic.type == COMPRESSED, topic.name)):
        cameras.setdefault(topic.camera, topic)
    return list(cameras.values())


def _expected_messages(path: Path, names: set[str]) -> int:
    """How many messages of these topics metadata.yaml promises; 0 where it does not say."""
    try:
        content = yaml.safe_load((path / 'metadata.yaml').read_text(encoding='utf-8'))
        topics = content['rosbag2_bagfile_information']['topics_with_message_count']
        return sum(topic['message_count'] for topic in topics if topic['topic_metadata']['name'] in names)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return 0
