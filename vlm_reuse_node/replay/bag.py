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

"""Recordings as `Frame`s, read in process and without ROS; damaged ones as far as they can be read."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.replay.bag_reader import BagReader
from vlm_reuse_node.replay.camera_clock import CameraClock
from vlm_reuse_node.replay.image_topics import ImageTopic, choose_topics
from vlm_reuse_node.replay.picture_message import read_packet, read_picture
from vlm_reuse_node.replay.storage.channel import Message
from vlm_reuse_node.scene.contrast import Contrast
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.video_decoder import VideoDecoder, VideoPicture

NOT_NEWER, BEFORE_FIRST = 'not newer than the one before', "with a stamp before the bag's first picture"
OUTSIDE, TOO_SOON = 'outside of --start and --duration', 'above --rate-limit'
# Two cameras' clocks that are further apart than this are compared by the recorder's clock.
ONE_CLOCK_NS = 60_000_000_000


@dataclass(frozen=True)
class RecordedPicture:
    """A picture of a recording. recorded_ns: when, on the recorder's clock. rgb: converts it; raises ImageError."""

    stamp_ns: int
    recorded_ns: int
    frame_id: str
    rgb: Callable[[], np.ndarray]


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
    """One recording: a directory, or a single file, see `BagReader`.

    topics: those that are replayed. seconds: from the first to the last message, as far as is known; 0 where it is not.
    read, used: pictures of each camera that were read, and that were replayed.
    refused, left_out: pictures of each camera that could not be used, by cause; and that were not replayed, by reason.
    conversion_s: what decoding and converting each camera's pictures took so far, seconds.
    damage: sentences on what is wrong with the bag; notes: on what else a reader of the results has to know. Both are
    complete after everything was read.
    """

    def __init__(self, path: Path, selection: Selection = Selection()) -> None:
        """Open it. Raises BagError when there is nothing to replay, in one sentence that says why."""
        self.path = path
        self._selection = selection
        self._reader = BagReader(path)
        try:
            choice = choose_topics(path, self._reader.channels.values(), self._reader.empty, selection.topics)
        except Exception:
            self.close()
            raise
        self.topics = choice.topics
        self.seconds = self._reader.seconds
        self.read: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.refused: dict[str, Counter[str]] = {}
        self.left_out: dict[str, Counter[str]] = {}
        self.conversion_s: defaultdict[str, float] = defaultdict(float)
        self.damage: list[str] = []
        self.notes = list(choice.passed_over)
        self._clocks: dict[str, CameraClock] = {}
        self._contrasts = {topic.camera: Contrast() for topic in self.topics}
        self._decoders = {
            topic.camera: VideoDecoder(partial(self._refuse_video, topic.camera))
            for topic in self.topics
            if topic.is_video
        }
        self._without_stamp: Counter[str] = Counter()
        self._first_ns: int | None = None
        self._first_recorded_ns = 0

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

        Their stamps are times of the bag: where a camera's clock jumps they go on as the recorder's clock does, see
        `CameraClock`. A picture without a stamp gets the time at which it was recorded.
        """
        used_ns: dict[str, int] = {}
        for camera, picture in self._pictures():
            time_ns = self._time_ns(camera, picture.stamp_ns, picture.recorded_ns)
            reason = self._why_not(time_ns, used_ns.get(camera))
            if reason or time_ns is None:
                self.left_out.setdefault(camera, Counter())[reason] += 1
                continue
            frame = self._frame(camera, picture, time_ns)
            if frame is not None:
                used_ns[camera] = time_ns
                self.used[camera] += 1
                yield frame
        self._report()

    def refuse(self, camera: str, cause: str, why: str) -> None:
        """Count a picture that cannot be used. cause: a short key. why: a sentence."""
        counts = self.refused.setdefault(camera, Counter())
        if not counts[cause]:
            self.damage.append(f"Some pictures of '{camera}' cannot be used ({cause}). The first one: {why}")
        counts[cause] += 1

    def _refuse_video(self, camera: str, error: ImageError) -> None:
        self.refuse(camera, error.cause, str(error))

    def steps(self, camera: str) -> Counter[str]:
        """How often a camera's clock jumped so far, by kind."""
        return self._clocks[camera].steps if camera in self._clocks else Counter()

    def restarts(self, camera: str) -> int:
        """How often a camera's time went back so far, whereupon the node forgets its state."""
        return self._clocks[camera].restarts if camera in self._clocks else 0

    def at_s(self, frame: Frame) -> float:
        """Return when a picture was taken: seconds from the bag's first one, to the microsecond."""
        return self.seconds_of(frame.stamp_ns)

    def seconds_of(self, stamp_ns: int) -> float:
        """Convert a stamp to seconds from the bag's first picture, to the microsecond."""
        return round((stamp_ns - self.first_ns) / 1e9, 6)

    def _pictures(self) -> Iterator[tuple[str, RecordedPicture]]:
        """The pictures with their cameras, by the time they were recorded; those that cannot be read are counted."""
        topics = {topic.name: topic for topic in self.topics}
        for message in self._reader.messages(set(topics)):
            topic = topics[message.channel.topic]
            self.read[topic.camera] += 1
            try:
                yield from ((topic.camera, each) for each in self._pictures_of(topic, message))
            except ImageError as error:
                self.refuse(topic.camera, error.cause, str(error))
        for camera, decoder in self._decoders.items():
            yield from ((camera, _of_video(each)) for each in decoder.finish(self._selection.max_pixels))

    def _pictures_of(self, topic: ImageTopic, message: Message) -> list[RecordedPicture]:
        """The pictures that are complete with a message: one, or of a video any number. Raises ImageError."""
        max_pixels = self._selection.max_pixels
        if not topic.is_video:
            picture = read_picture(message.channel, message.data)
            convert = partial(picture.rgb, max_pixels, self._contrasts[topic.camera])
            return [RecordedPicture(picture.stamp_ns, message.time_ns, picture.frame_id, convert)]
        packet = read_packet(message.channel, message.data, message.time_ns)
        start_s = time.perf_counter()
        pictures = [_of_video(each) for each in self._decoders[topic.camera].decode(packet, max_pixels)]
        self.conversion_s[topic.camera] += time.perf_counter() - start_s
        return pictures

    def _frame(self, camera: str, picture: RecordedPicture, time_ns: int) -> Frame | None:
        """The picture's pixels; None for one that cannot be used, which is counted."""
        start_s = time.perf_counter()
        try:
            frame = Frame(picture.rgb(), time_ns, picture.frame_id, camera)
        except ImageError as error:
            self.refuse(camera, error.cause, str(error))
            return None
        self.conversion_s[camera] += time.perf_counter() - start_s
        return frame

    def _time_ns(self, camera: str, stamp_ns: int, recorded_ns: int) -> int | None:
        """A picture's time in the bag; None for one that is not newer than its camera's one before."""
        if stamp_ns <= 0:
            self._without_stamp[camera] += 1
            stamp_ns = recorded_ns
        if clock := self._clocks.get(camera):
            return clock.place(stamp_ns, recorded_ns)
        time_ns = stamp_ns
        if self._first_ns is None:
            self._first_ns, self._first_recorded_ns = stamp_ns, recorded_ns
        elif abs((stamp_ns - self._first_ns) - (recorded_ns - self._first_recorded_ns)) > ONE_CLOCK_NS:
            time_ns = self._first_ns + recorded_ns - self._first_recorded_ns
        self._clocks[camera] = CameraClock(time_ns, stamp_ns, recorded_ns)
        return time_ns

    def _why_not(self, time_ns: int | None, used_ns: int | None) -> str:
        """Why a picture is not replayed, '' when it is. used_ns: time of its camera's last one that is."""
        selection = self._selection
        if time_ns is None:
            return NOT_NEWER
        if time_ns < self.first_ns:  # of another camera, whose messages are recorded later
            return BEFORE_FIRST
        if not 0 <= self.seconds_of(time_ns) - selection.start_s < selection.duration_s:
            return OUTSIDE
        # A tenth of a period of slack: a camera of 30 Hz that jitters stays one of 30 Hz.
        period_ns = 0.9e9 / selection.rate_limit_hz if selection.rate_limit_hz else 0
        if used_ns is not None and time_ns - used_ns < period_ns:
            return TOO_SOON
        return ''

    def _report(self) -> None:
        """Complete damage and notes."""
        self.damage += [
            f"Pictures of '{camera}' left out: {counts[reason]} ({reason})."
            for camera, counts in sorted(self.left_out.items())
            for reason in (NOT_NEWER, BEFORE_FIRST)
            if counts[reason]
        ]
        read, expected = self.read.total(), self._reader.expected({topic.name for topic in self.topics})
        damage = self._reader.damage or ('messages are missing.' if read < expected else '')
        if damage:
            of_all = f' of the {expected} that metadata.yaml names' if expected else ''
            self.damage.insert(
                0, f'The bag is damaged ({damage.rstrip(".")}); {read} pictures{of_all} were read, the rest is lost.'
            )
        self.notes += [f'Nothing was recorded on {topic.name}.' for topic in self.topics if not self.read[topic.camera]]
        self.notes += [
            f"Pictures of '{camera}' without a stamp: {count}; each has the time at which it was recorded."
            for camera, count in sorted(self._without_stamp.items())
        ]
        self.notes += [
            f"Pictures of '{camera}' are {contrast.note}."
            for camera, contrast in sorted(self._contrasts.items())
            if contrast.note
        ]
        for camera, clock in sorted(self._clocks.items()):
            if clock.steps:
                told = {kind: 'once' if count == 1 else f'{count} times' for kind, count in sorted(clock.steps.items())}
                steps = ', '.join(f'{kind} {count}' for kind, count in told.items())
                self.notes.append(
                    f"The clock of '{camera}' jumped ({steps}); from there on its times follow the recorder's clock."
                )


def _of_video(picture: VideoPicture) -> RecordedPicture:
    packet = picture.packet
    return RecordedPicture(packet.stamp_ns, packet.recorded_ns, packet.frame_id, picture.rgb)
