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

"""Decodes a camera's video: H.264, H.265, VP9 and AV1, one packet at a time, with PyAV.

PyAV is an optional extra. Pictures are decoded on the calling thread, in software.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.scene.pixels import check_size

if TYPE_CHECKING:
    import av

NEEDS_PYAV = "decoding video needs PyAV, this package's extra 'video'; install it: pip install av"
# Names of codecs, and of the encoders that ffmpeg_image_transport writes instead, by FFmpeg's decoder.
_DECODERS = {
    'h264': ('h264', 'libx264', 'libopenh264'),
    'hevc': ('hevc', 'h265', 'libx265'),
    'vp9': ('vp9', 'libvpx-vp9'),
    'libdav1d': ('av1', 'libaom-av1', 'libsvtav1', 'librav1e'),
}
_HARDWARE = ('nvenc', 'nvmpi', 'nvv4l2', 'vaapi', 'qsv', 'v4l2m2m', 'videotoolbox', 'omx', 'amf', 'rkmpp', 'cuvid')
# A packet whose picture has not come when so many newer ones were sent has none; H.264 and H.265 reorder at most 16.
MOST_DELAYED = 32
# A larger step of pts is an encoder that started anew.
LARGEST_GAP = 10_000
KEY_FLAG = 1  # in a packet's flags, of FFmpeg and of its messages
_LOW_DELAY = 1 << 19  # AV_CODEC_FLAG_LOW_DELAY
KEY_FRAME, LOST, DAMAGED = 'key frame', 'lost', 'decode'


@dataclass(frozen=True)
class VideoPacket:
    """One packet of a video: what the encoder made of one picture.

    codec: FFmpeg's name of the codec or of the encoder; 'h264;yuv420p;bgr8;bgr8' names h264.
    stamp_ns, recorded_ns: of this packet's picture. recorded_ns: on the recorder's clock; 0: not recorded.
    pts: the encoder's number of the picture; None where the message has none.
    is_key: whether decoding can start here; None where the message does not say.
    """

    data: bytes
    codec: str
    stamp_ns: int
    frame_id: str = ''
    recorded_ns: int = 0
    pts: int | None = None
    is_key: bool | None = None


@dataclass(frozen=True)
class VideoPicture:
    """A decoded picture, with the packet that it came in; `rgb` converts it."""

    packet: VideoPacket
    frame: 'av.VideoFrame'

    def rgb(self) -> np.ndarray:
        """Return (height, width, 3) uint8 RGB. Raises ImageError with cause 'decode'."""
        try:
            return self.frame.to_ndarray(format='rgb24', threads=1)
        except Exception as error:  # an unusual pixel format
            raise ImageError(DAMAGED, f'The picture of the video cannot be converted to RGB: {error}.') from error


def can_decode_video() -> bool:
    """Whether PyAV is installed."""
    return find_spec('av') is not None


class VideoDecoder:
    """Decodes the packets of one camera, in the order in which they were sent.

    After a lost or damaged packet, no picture is given until the next key frame: those between show remains of others.
    """

    def __init__(self, refuse: Callable[[ImageError], None]) -> None:
        """Start before the first key frame.

        refuse: called with each picture that cannot be given, once. Causes: 'key frame' (none came so far, or since
        packets were lost), 'lost' (the packet never came, as the numbers of the others tell), 'decode', 'size',
        'encoding' and 'truncated'.
        """
        self._refuse = refuse
        self._opened: tuple[str, int] | None = None
        self._context: av.VideoCodecContext | None = None
        self._sent: dict[int, VideoPacket] = {}  # without a picture so far, by number
        self._number = 0
        self._received: deque[int] = deque(maxlen=2 * MOST_DELAYED)  # pts of the newest packets
        self._newest_pts: int | None = None  # of the pictures given by the decoder
        self._counts = False  # whether pts counts pictures, so that a step tells how many are missing
        self._waits = True  # for a key frame

    def decode(self, packet: VideoPacket, max_pixels: int) -> Iterator[VideoPicture]:
        """Decode one packet, and yield the pictures that are complete now: in the order of the camera.

        max_pixels: larger pictures are refused; the decoder itself makes none that are much larger.
        """
        if packet.pts is not None:
            self._received.append(packet.pts)
        try:
            context = self._open(packet.codec, max_pixels)
            if not packet.data:  # to the decoder this would be the end
                raise ImageError('truncated', 'The packet of the video is empty.')
        except ImageError as error:
            self._waits = True
            self._refuse(error)
            return
        self._number += 1
        self._sent[self._number] = packet
        yield from self._pictures(context, packet, max_pixels)
        while self._sent and (oldest := next(iter(self._sent))) <= self._number - MOST_DELAYED:
            self._give_up(self._sent.pop(oldest))

    def finish(self, max_pixels: int) -> Iterator[VideoPicture]:
        """Yield the pictures that the decoder still holds; no packet follows."""
        if self._context is not None and self._number:
            yield from self._pictures(self._context, None, max_pixels)
        self._give_up_all()
        self._opened = None

    def _open(self, codec: str, max_pixels: int) -> 'av.VideoCodecContext':
        """The decoder, a new one where the codec or the limit has changed. Raises ImageError."""
        if self._context is not None and self._opened == (codec, max_pixels):
            return self._context
        name = decoder_of(codec)
        if not can_decode_video():
            raise ImageError('encoding', f'{NEEDS_PYAV[0].upper()}{NEEDS_PYAV[1:]}.')
        self._context, self._opened = _context(name, max_pixels), (codec, max_pixels)
        self._waits, self._counts, self._newest_pts = True, False, None
        self._give_up_all()
        return self._context

    def _pictures(
        self, context: 'av.VideoCodecContext', packet: VideoPacket | None, max_pixels: int
    ) -> Iterator[VideoPicture]:
        """Send a packet, None for the end, and yield what can be used of that which comes back."""
        try:
            frames = context.decode(_av_packet(packet.data, self._number) if packet else None)
        except Exception as error:  # damaged bytes make a decoder raise nearly anything
            if packet:
                del self._sent[self._number]
                self._refuse(self._why(error, context, packet, max_pixels))
            self._waits = True
            return
        for frame in frames:
            if sent := self._sent.pop(frame.pts, None):
                try:
                    self._check(sent, frame, max_pixels)
                except ImageError as error:
                    self._refuse(error)
                else:
                    yield VideoPicture(sent, frame)

    def _check(self, packet: VideoPacket, frame: 'av.VideoFrame', max_pixels: int) -> None:
        """Raise ImageError for a picture that cannot be used. Those that are missing before it are counted."""
        check_size(frame.width, frame.height, max_pixels)
        if (missing := self._missing(packet.pts)) or frame.is_corrupt:
            self._waits = True
            for _ in range(missing):
                self._refuse(ImageError(LOST, f'Its packet of the video never came; that of number {packet.pts} did.'))
        if frame.is_corrupt:
            raise ImageError(DAMAGED, 'The decoder says that the picture is damaged.')
        if self._waits and not frame.key_frame:
            raise _no_key_frame()
        self._waits = False

    def _missing(self, pts: int | None) -> int:
        """How many pictures are missing before this one, as far as pts tells."""
        last, self._newest_pts = self._newest_pts, pts
        if pts is None or last is None:
            return 0
        step = pts - last
        if step == 1:
            self._counts = True
            return 0
        if step < 1 or step > LARGEST_GAP:
            self._waits = True
            return 0
        return step - 1 - sum(last < each < pts for each in set(self._received)) if self._counts else 0

    def _why(
        self, error: Exception, context: 'av.VideoCodecContext', packet: VideoPacket, max_pixels: int
    ) -> ImageError:
        try:
            check_size(max(1, context.width), max(1, context.height), max_pixels)
        except ImageError as too_large:
            return too_large
        if self._waits and not packet.is_key and not isinstance(error, MemoryError):
            return _no_key_frame()
        return ImageError(
            DAMAGED,
            f'A packet of the video cannot be decoded ({packet.codec[:40]}, {len(packet.data)} bytes): it is damaged, '
            f'or its picture has more than {max_pixels} pixels. Pictures go on with the next key frame.',
        )

    def _give_up_all(self) -> None:
        """Count the packets that have given no picture so far."""
        for packet in self._sent.values():
            self._give_up(packet)
        self._sent.clear()

    def _give_up(self, packet: VideoPacket) -> None:
        """Count a packet that gave no picture."""
        if self._waits and not packet.is_key:
            self._refuse(_no_key_frame())
        else:
            self._waits = True
            self._refuse(ImageError(DAMAGED, 'A packet of the video gave no picture; it is damaged.'))


def decoder_of(codec: str) -> str:
    """Return the name of FFmpeg's decoder. Raises ImageError with cause 'encoding' for a codec that is not read."""
    name = codec.partition(';')[0].strip().lower()
    base, _, made_by = name.partition('_')
    for decoder, names in _DECODERS.items():
        if name in names or (base in names and made_by in _HARDWARE):
            return decoder
    raise ImageError(
        'encoding',
        f"The video's codec is '{codec[:40]}'; expected h264, hevc, h265, vp9 or av1. Set the encoder to one of these.",
    )


def _no_key_frame() -> ImageError:
    return ImageError(
        KEY_FRAME,
        'It came before the first key frame of the video, or after lost or damaged packets; pictures go on with the '
        'next key frame.',
    )


def _av_packet(data: bytes, number: int) -> 'av.Packet':
    from av import Packet

    packet = Packet(data)
    packet.pts = number  # the decoder gives it to the picture of this packet, in whatever order they come
    return packet


def _context(name: str, max_pixels: int) -> 'av.VideoCodecContext':
    """A decoder on one thread that gives each picture as soon as it can, and makes none that is far too large."""
    _silence()
    from av import CodecContext, VideoCodecContext

    context = CodecContext.create(name, 'r')
    assert isinstance(context, VideoCodecContext)
    context.thread_type, context.thread_count = 'NONE', 1
    context.flags |= _LOW_DELAY
    # Decoders round sizes up to whole blocks. A picture that is above max_pixels by less is refused afterwards.
    context.options = {'max_pixels': str(max_pixels + max_pixels // 8 + 65_536), 'err_detect': 'explode'}
    return context


@cache
def _silence() -> None:
    """Damage is told by `refuse`, not by lines of FFmpeg."""
    from av import logging

    logging.set_level(None)
