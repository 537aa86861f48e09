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

"""The raw messages of a recording, whatever it is stored in, as far as they can be read."""

import heapq
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from vlm_reuse_node.replay.storage.channel import BagError, Channel, Message, StoredFile, natural_order
from vlm_reuse_node.replay.storage.mcap_file import McapFile
from vlm_reuse_node.replay.storage.metadata import read_metadata
from vlm_reuse_node.replay.storage.packing import PACKED, unpack_file, unpacked_message
from vlm_reuse_node.replay.storage.ros1_file import Ros1File
from vlm_reuse_node.replay.storage.sqlite_file import SqliteFile

EXPECTED = 'the directory of a ROS 2 bag, or an mcap, db3 or bag file (also compressed: .zstd)'
CONTAINERS: dict[str, Callable[[Path], StoredFile]] = {'.mcap': McapFile, '.db3': SqliteFile, '.bag': Ros1File}
# A span beyond this comes from a clock that was set meanwhile.
LONGEST_S = 30 * 86_400.0


class BagReader:
    """Reads one file, or all files of a directory in the order in which they were recorded.

    channels: by topic. empty: topics without a message. seconds: from the first to the last message, as far as is
    known; 0 where it is not.
    """

    def __init__(self, path: Path) -> None:
        """Open it. Raises BagError when nothing can be read."""
        if not path.exists():
            raise BagError(f"There is no bag '{path}'; expected {EXPECTED}.")
        self._metadata = read_metadata(path)
        self._damage: list[str] = []
        self._unpacked: list[TemporaryDirectory[str]] = []
        self._files: list[tuple[str, StoredFile]] = []
        paths = self._paths(path)
        if not paths:
            raise BagError(f"'{path}' is no recording; expected {EXPECTED}.")
        for file in paths:
            self._open(file)
        self.channels: dict[str, Channel] = {}
        for _, stored in self._files:
            self.channels = stored.channels | self.channels
        if not self.channels and self.damage:
            self.close()
            raise BagError(
                f"The bag '{path}' is damaged, and nothing in it can be read: {self.damage} Record or copy it again."
            )
        full = {topic for _, stored in self._files for topic in stored.full}
        self.empty = self.channels.keys() - full
        seconds = sum(stored.span_ns for _, stored in self._files) / 1e9
        self.seconds = seconds if seconds <= LONGEST_S else 0.0

    @property
    def damage(self) -> str:
        """What is wrong with the recording, '' as long as nothing is known; complete once everything was read."""
        return ' '.join([*self._damage, *(f'{name}: {stored.damage}' for name, stored in self._files if stored.damage)])

    def expected(self, topics: set[str]) -> int:
        """Return how many messages of these topics metadata.yaml promises; 0 where it does not say."""
        return sum(count for topic, count in self._metadata.messages.items() if topic in topics)

    def messages(self, topics: set[str]) -> Iterator[Message]:
        """Yield the messages of some topics: of each in the order of recording, all of them by the recorder's clock."""
        for _, stored in self._files:
            of_topics = [stored.messages(topic) for topic in sorted(topics & stored.channels.keys())]
            for message in heapq.merge(*of_topics, key=lambda message: message.time_ns):
                yield message._replace(data=unpacked_message(message.data))

    def close(self) -> None:
        """Close the files, and remove what was decompressed."""
        for _, stored in self._files:
            stored.close()
        for folder in self._unpacked:
            folder.cleanup()

    def _paths(self, path: Path) -> list[Path]:
        """The files of the recording, in order: those that metadata.yaml names, else all that could be part of it."""
        if not path.is_dir():
            return [path] if _container(path) else []
        named = [path / name for name in self._metadata.files]
        there = [file for file in named if file.exists()]
        self._damage += [f'{file.name} is missing.' for file in named if there and file not in there]
        return there or sorted((file for file in path.iterdir() if _container(file)), key=natural_order)

    def _open(self, path: Path) -> None:
        """Open one file; one that cannot be read is damage."""
        name, container = path.name, CONTAINERS[_container(path) or '.mcap']
        if path.suffix in PACKED:
            folder: TemporaryDirectory[str] = TemporaryDirectory()
            self._unpacked.append(folder)
            path, why = unpack_file(path, folder)
            self._damage += [f'{name}: {why}'] if why else []
        try:
            self._files.append((name, container(path)))
        except BagError as error:
            self._damage.append(f'{name}: {error}')


def bag_name(path: Path) -> str:
    """Return the name of a recording: its folder's or file's without endings."""
    if not path.is_file():
        return path.resolve().name
    return Path(path.stem).stem if path.suffix in PACKED else path.stem


def _container(path: Path) -> str:
    """The ending of a file that can hold a recording, without that of its compression; '' for any other file."""
    suffix = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    return suffix if suffix in CONTAINERS and not path.is_dir() else ''
