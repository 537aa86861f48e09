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

"""Recorded bags as `Frame`s, read in process and without ROS; damaged ones as far as they can be read."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.typesys import Stores, get_typestore

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.replay.bag_reader import BagReader, expected_messages
from vlm_reuse_node.replay.image_topics import COMPRESSED, ImageTopic, choose_topics
from vlm_reuse_node.replay.salvage import one_line
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.pixels import rgb_of_file, rgb_of_image

NOT_NEWER, BEFORE_FIRST = 'not newer than the one before', "with a stamp before the bag's first picture"
OUTSIDE, TOO_SOON = 'outside of --start and --duration', 'above --rate-limit'
_TYPES = get_typestore(Stores.ROS2_KILTED)


@dataclass(frozen=True)
class Selection:
    """Which part of a bag is replayed.

    topics: empty takes the only camera's. start_s, duration_s: counted from the bag's first picture.
    rate_limit_hz: 0 takes every picture. max_pixels: larger pictures are refused.
    """

    topics: tuple[str, ...] = ()
    start_s: float = 0.0
    duration_s: float = math.inf
    rate_limit_hz: float = 0.0
    max_pixels: int = 33_177_600


class Bag:
    """One bag: a directory with metadata.yaml, or a single mcap or sqlite3 file.

    topics: those that are replayed. seconds: from the first to the last message, as far as is known before all is read.
    read, used: pictures of each camera that were read, and that were replayed.
    refused, left_out: pictures of each camera that could not be used, by cause; and that were not replayed, by reason.
    damage: sentences on what is wrong with the bag; complete after everything was read.
    """

    def __init__(self, path: Path, selection: Selection = Selection()) -> None:
        """Open it. Raises BagError when there is nothing to replay, in one sentence that says why."""
        self.path = path
        self._selection = selection
        self._reader = BagReader(path)
        self.topics = tuple(choose_topics(path, self._reader.topics, self._reader.empty, selection.topics))
        self.seconds = self._reader.seconds
        self.read: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.refused: dict[str, Counter[str]] = {}
        self.left_out: dict[str, Counter[str]] = {}
        self.damage: list[str] = []
        self._first_ns: int | None = None

    @property
    def first_ns(self) -> int:
        """The stamp of the first picture, nanoseconds. Raises RuntimeError before it was read."""
        if self._first_ns is None:
            raise RuntimeError('No picture of the bag was read yet; take one from frames first.')
        return self._first_ns

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    def frames(self) -> Iterator[Frame]:
        """Yield the pictures by the time they were recorded, those of each camera in the order of their stamps.

        A picture without a stamp gets the time at which it was recorded.
        """
        topics = {topic.name: topic for topic in self.topics}
        newest_ns: dict[str, int] = {}
        used_ns: dict[str, int] = {}
        for name, time_ns, data in self._reader.messages(set(topics)):
            frame = self._frame(topics[name], time_ns, data)
            if frame is None:
                continue
            if self._first_ns is None:
                self._first_ns = frame.stamp_ns
            camera = frame.camera
            reason = self._why_not(frame, newest_ns.get(camera, -1), used_ns.get(camera))
            newest_ns[camera] = max(newest_ns.get(camera, -1), frame.stamp_ns)
            if reason:
                self.left_out.setdefault(camera, Counter())[reason] += 1
                continue
            used_ns[camera] = frame.stamp_ns
            self.used[camera] += 1
            yield frame
        self._report_damage()

    def refuse(self, camera: str, cause: str, why: str) -> None:
        """Count a picture that cannot be used. cause: a short key. why: a sentence."""
        counts = self.refused.setdefault(camera, Counter())
        if not counts[cause]:
            self.damage.append(f"Some pictures of '{camera}' cannot be used ({cause}). The first one: {why}")
        counts[cause] += 1

    def at_s(self, frame: Frame) -> float:
        """Return when a picture was taken: seconds from the bag's first one, to the microsecond."""
        return self.seconds_of(frame.stamp_ns)

    def seconds_of(self, stamp_ns: int) -> float:
        """Convert a stamp to seconds from the bag's first picture, to the microsecond."""
        return round((stamp_ns - self.first_ns) / 1e9, 6)

    def _frame(self, topic: ImageTopic, time_ns: int, data: bytes) -> Frame | None:
        """The picture of a message, or None for one that cannot be used; both are counted."""
        self.read[topic.camera] += 1
        try:
            message = _TYPES.deserialize_cdr(data, topic.type)
        except Exception as error:  # a torn message makes rosbags raise nearly anything
            self.refuse(topic.camera, 'message', one_line(error))
            return None
        try:
            return _frame_of(message, topic, time_ns, self._selection.max_pixels)
        except ImageError as error:
            self.refuse(topic.camera, error.cause, str(error))
            return None

    def _why_not(self, frame: Frame, newest_ns: int, used_ns: int | None) -> str:
        """Why a picture is not replayed, '' when it is. newest_ns, used_ns: stamps of its camera's pictures."""
        selection = self._selection
        if frame.stamp_ns <= newest_ns:
            return NOT_NEWER
        if frame.stamp_ns < self.first_ns:  # of another camera, whose messages are recorded later
            return BEFORE_FIRST
        if not 0 <= self.at_s(frame) - selection.start_s < selection.duration_s:
            return OUTSIDE
        # A tenth of a period of slack: a camera of 30 Hz that jitters stays one of 30 Hz.
        period_ns = 0.9e9 / selection.rate_limit_hz if selection.rate_limit_hz else 0
        if used_ns is not None and frame.stamp_ns - used_ns < period_ns:
            return TOO_SOON
        return ''

    def _report_damage(self) -> None:
        self.damage += [
            f"Pictures of '{camera}' left out: {counts[reason]} ({reason})."
            for camera, counts in sorted(self.left_out.items())
            for reason in (NOT_NEWER, BEFORE_FIRST)
            if counts[reason]
        ]
        if self._reader.damage:
            expected = expected_messages(self.path, {topic.name for topic in self.topics})
            of_all = f' of the {expected} that metadata.yaml names' if expected else ''
            self.damage.insert(
                0,
                f'The bag is damaged ({self._reader.damage.rstrip(".")}); {sum(self.read.values())} '
                f'pictures{of_all} were read, the rest is lost.',
            )


def _frame_of(message: Any, topic: ImageTopic, time_ns: int, max_pixels: int) -> Frame:
    """The picture of a message; without a stamp it gets the time of its recording. Raises ImageError."""
    if topic.type == COMPRESSED:
        rgb = rgb_of_file(bytes(message.data), message.format, max_pixels)
    else:
        rgb = rgb_of_image(message, max_pixels)
    header = message.header
    stamp_ns = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
    return Frame(rgb, stamp_ns or time_ns, header.frame_id, topic.camera)
