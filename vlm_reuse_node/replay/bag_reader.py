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

"""The raw messages of a bag (mcap, sqlite3), as far as they can be read."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from rosbags.rosbag2 import Reader

from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.replay.salvage import Salvage, one_line


class BagError(VlmReuseError):
    """A bag that cannot be replayed."""


class BagReader:
    """Reads an undamaged bag with rosbags, and salvages a damaged one.

    topics: name to message type. empty: topics without a message. seconds: from the first to the last message.
    damage: what is wrong with the bag, '' as long as nothing is known; complete once all messages were read.
    """

    def __init__(self, path: Path) -> None:
        """Open a directory with metadata.yaml, or a single file. Raises BagError when nothing can be read."""
        self._path = path
        self._salvage: Salvage | None = None
        self._reader: Reader | None = None
        self.damage = ''
        if not path.exists():
            raise BagError(f"There is no bag '{path}'; expected the directory of a ROS 2 bag, or an mcap or db3 file.")
        try:
            self._reader = Reader(path)
            self._reader.open()
            self.topics = {connection.topic: connection.msgtype for connection in self._reader.connections}
            self.empty = {name for name, topic in self._reader.topics.items() if not topic.msgcount}
            self.seconds = max(0.0, self._reader.duration / 1e9)
        except Exception as error:  # rosbags raises nearly anything on a damaged file
            self._reader = None
            self._salvage_from(error)

    def messages(self, names: set[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield topic, time of recording and bytes, by time.

        Where a bag that could be opened turns out to be damaged, what can still be read follows.
        """
        last_ns = -1
        if self._reader:
            try:
                wanted = [connection for connection in self._reader.connections if connection.topic in names]
                for connection, time_ns, data in self._reader.messages(wanted):
                    last_ns = time_ns
                    yield connection.topic, time_ns, data
                return
            except Exception as error:  # likewise
                self.damage = one_line(error)
        yield from (self._salvage or Salvage(self._path)).messages(names, last_ns)

    def close(self) -> None:
        """Close the files."""
        if self._reader:
            self._reader.close()

    def _salvage_from(self, error: Exception) -> None:
        self.damage = one_line(error)
        salvage = Salvage(self._path)
        if not salvage.files:
            raise BagError(
                f"'{self._path}' is no ROS 2 bag: {self.damage} Expected a directory with metadata.yaml, or "
                'an mcap or db3 file.'
            )
        if not salvage.topics:
            raise BagError(
                f"The bag '{self._path}' is damaged, and nothing in it can be read: {self.damage} Record or "
                'copy it again.'
            )
        self._salvage = salvage
        self.topics = salvage.topics
        self.empty = salvage.empty
        self.seconds = salvage.seconds


def expected_messages(path: Path, names: set[str]) -> int:
    """Return how many messages of these topics metadata.yaml promises; 0 where it does not say."""
    try:
        content = yaml.safe_load((path / 'metadata.yaml').read_text(encoding='utf-8'))
        topics = content['rosbag2_bagfile_information']['topics_with_message_count']
        return sum(topic['message_count'] for topic in topics if topic['topic_metadata']['name'] in names)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return 0
