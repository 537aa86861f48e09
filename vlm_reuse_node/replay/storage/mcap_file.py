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

"""mcap files of any profile: by their index, and without one record after record as far as they go."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mcap.reader import SeekingReader
from mcap.records import Channel as McapChannel
from mcap.records import Chunk, Footer, Schema
from mcap.records import Message as McapMessage
from mcap.stream_reader import StreamReader, breakup_chunk

from vlm_reuse_node.replay.storage.channel import CDR, PROTOBUF, ROS1, BagError, Channel, Message, long_type, one_line

# A broken length must not make a reader ask for more memory than a chunk of pictures needs.
LARGEST_RECORD_BYTES = 2**29
# Encodings of definitions that a message can be decoded with.
ROS_DEFINITIONS = ('ros2msg', 'ros1msg')


class McapFile:
    """One mcap file, see `StoredFile`."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises BagError when it is no mcap file."""
        self._stream = path.open('rb')
        self.damage = ''
        self.channels: dict[str, Channel] = {}
        self.full: set[str] = set()
        self.span_ns = 0
        self._has_index = False
        try:
            self._reader = SeekingReader(self._stream, validate_crcs=True, record_size_limit=LARGEST_RECORD_BYTES)
        except Exception as error:  # broken bytes raise nearly anything
            self.close()
            raise BagError(one_line(error)) from error
        self._ros = ROS1 if self._profile() == ROS1 else CDR
        try:
            self._has_index = self._read_index()
        except Exception:  # a file that was cut off has no index; reading all of it tells
            self._has_index = False
        if not self._has_index:
            self._look_through()

    def messages(self, topic: str) -> Iterator[Message]:
        """Yield a topic's messages; where the index turns out to be wrong, what is found without it follows."""
        given = 0
        if self._has_index:
            try:
                for schema, channel, message in self._reader.iter_messages([topic], log_time_order=False):
                    yield Message(self._channel(schema, channel), message.log_time, message.data)
                    given += 1
                return
            except Exception as error:  # broken bytes raise nearly anything
                self.damage = one_line(error)
        for number, found in enumerate(each for each in self._in_a_row() if each.channel.topic == topic):
            if number >= given:
                yield found

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _profile(self) -> str:
        try:
            return self._reader.get_header().profile
        except Exception:  # likewise
            return ''

    def _read_index(self) -> bool:
        """Take channels and times from the index; return False where the file has none."""
        summary = self._reader.get_summary()
        if summary is None or not summary.chunk_indexes or not summary.channels or not summary.statistics:
            return False
        statistics = summary.statistics
        for number, channel in summary.channels.items():
            found = self._channel(summary.schemas.get(channel.schema_id), channel)
            self.channels.setdefault(found.topic, found)
            if statistics.channel_message_counts.get(number):
                self.full.add(found.topic)
        self.span_ns = max(0, statistics.message_end_time - statistics.message_start_time)
        return True

    def _look_through(self) -> None:
        """Find channels and times by reading everything once."""
        first_ns = last_ns = None
        self.channels, self.full = {}, set()
        for channel, time_ns, _ in self._in_a_row():
            self.full.add(channel.topic)
            first_ns = time_ns if first_ns is None else min(first_ns, time_ns)
            last_ns = time_ns if last_ns is None else max(last_ns, time_ns)
        self.span_ns = last_ns - first_ns if first_ns is not None and last_ns is not None else 0

    def _in_a_row(self) -> Iterator[Message]:
        """All messages, without the index; a broken chunk is left out, and a record that was cut off is the end."""
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        for record in self._records():
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, McapChannel):
                channel = self._channel(schemas.get(record.schema_id), record)
                channels[record.id] = channel
                self.channels.setdefault(channel.topic, channel)
            elif isinstance(record, McapMessage) and record.channel_id in channels:
                yield Message(channels[record.channel_id], record.log_time, record.data)

    def _records(self) -> Iterator[Any]:
        """All records in and outside of chunks, up to the footer or to the first that cannot be read."""
        self._stream.seek(0, io.SEEK_SET)
        records = iter(StreamReader(self._stream, emit_chunks=True, record_size_limit=LARGEST_RECORD_BYTES).records)
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # likewise
                self.damage = self.damage or f'it ends in the middle: {one_line(error)}'
                return
            yield from self._unpacked(record)
            if isinstance(record, Footer):
                return

    def _unpacked(self, record: Any) -> Iterable[Any]:
        """The records in a chunk; any other record alone."""
        if not isinstance(record, Chunk):
            return [record]
        try:
            if record.uncompressed_size > LARGEST_RECORD_BYTES:
                raise ValueError(f'a chunk says that it has {record.uncompressed_size} bytes')
            return breakup_chunk(record, validate_crc=True)
        except Exception as error:  # broken bytes make a decompressor raise nearly anything
            self.damage = self.damage or one_line(error)
            return []

    def _channel(self, schema: Schema | None, channel: McapChannel) -> Channel:
        encoding = channel.message_encoding or self._ros
        is_used = schema and (encoding == PROTOBUF or schema.encoding in ROS_DEFINITIONS)
        return Channel(
            channel.topic, long_type(schema.name if schema else ''), encoding, schema.data if is_used else b''
        )
