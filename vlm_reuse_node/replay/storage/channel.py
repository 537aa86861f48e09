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

"""What a recording's file holds: channels, and the messages in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from vlm_reuse_node.errors import VlmReuseError

CDR, ROS1, JSON, PROTOBUF = 'cdr', 'ros1', 'json', 'protobuf'
_SHORT_ROS_NAME = re.compile(r'(\w+)/(\w+)')


class BagError(VlmReuseError):
    """A bag that cannot be replayed."""


@dataclass(frozen=True)
class Channel:
    """A topic of one file.

    type: the message's, in ROS 2's long form where it is one of ROS. encoding: how messages are serialized, see CDR.
    schema: the definition of the type, as the recording holds it: protobuf's descriptors, or ROS's text; empty: none.
    """

    topic: str
    type: str
    encoding: str = CDR
    schema: bytes = b''


class Message(NamedTuple):
    """A message as it was recorded. time_ns: when, on the recorder's clock."""

    channel: Channel
    time_ns: int
    data: bytes


class StoredFile(Protocol):
    """One file of a recording.

    channels: by topic. full: topics with a message. span_ns: from the first to the last message; 0 where it is not
    known. damage: what is wrong with the file, '' as long as nothing is known; complete once everything was read.
    """

    channels: dict[str, Channel]
    full: set[str]
    span_ns: int
    damage: str

    def messages(self, topic: str) -> Iterator[Message]:
        """Yield the messages of a topic in the order in which they were recorded, as far as they can be read."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def long_type(name: str) -> str:
    """Return a ROS type's name as ROS 2 writes it: 'sensor_msgs/Image' is 'sensor_msgs/msg/Image'."""
    short = _SHORT_ROS_NAME.fullmatch(name)
    return f'{short[1]}/msg/{short[2]}' if short else name


def one_line(error: Exception) -> str:
    """Return an error's message as one sentence."""
    text = ' '.join(f'{error}'.split()) or type(error).__name__
    return text if text.endswith('.') else f'{text}.'


def natural_order(file: Path) -> list[tuple[int, str]]:
    """Sort key of file names: bag_9 comes before bag_10, as they were recorded."""
    return [(int(part), '') if part.isdigit() else (-1, part) for part in re.split(r'([0-9]+)', file.name)]
