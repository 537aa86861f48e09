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

"""Bags of ROS 1."""

from collections.abc import Iterator
from pathlib import Path

from rosbags.rosbag1 import Reader

from vlm_reuse_node.replay.storage.channel import ROS1, BagError, Channel, Message, one_line


class Ros1File:
    """One ROS 1 bag with its index, see `StoredFile`."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises BagError when it cannot be read, or has no index."""
        self.damage = ''
        self._reader: Reader | None = None
        try:
            reader = Reader(path)
            reader.open()
        except Exception as error:  # rosbags raises nearly anything on a damaged file
            raise BagError(f'{one_line(error)} Repair it with rosbag reindex.') from error
        self._reader = reader
        self.channels: dict[str, Channel] = {}
        for connection in reader.connections:
            channel = Channel(connection.topic, connection.msgtype, ROS1, connection.msgdef.data.encode())
            self.channels.setdefault(channel.topic, channel)
        self.full = {name for name, topic in reader.topics.items() if topic.msgcount}
        self.span_ns = max(0, reader.duration)

    def messages(self, topic: str) -> Iterator[Message]:
        """Yield the messages of a topic by time, up to the first that is broken."""
        assert self._reader
        wanted = [connection for connection in self._reader.connections if connection.topic == topic]
        try:
            for _, time_ns, data in self._reader.messages(wanted):
                yield Message(self.channels[topic], time_ns, bytes(data))
        except Exception as error:  # likewise
            self.damage = one_line(error)

    def close(self) -> None:
        """Close the file."""
        if self._reader:
            self._reader.close()
            self._reader = None
