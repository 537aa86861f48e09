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

"""What can still be read of a damaged bag: its records one after the other, without an index, until they end."""

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

LARGEST_RECORD_BYTES = 2**31
FileReader = Callable[[Path], Iterator[tuple[str, str, int, bytes]]]  # topic, type, time of recording, bytes


class Salvage:
    """Reads every mcap and sqlite3 file of a bag as far as it goes.

    files: of the bag. topics: name to message type, as far as can be read. empty: topics without a message; none here,
    as a topic is known by its messages. seconds: between the first and the last message that can be read.
    """

    def __init__(self, path: Path) -> None:
        """Look through the files once."""
        candidates = [path] if path.is_file() else sorted(path.iterdir(), key=_natural)
        self.files = [file for file in candidates if file.suffix in _READERS]
        self.topics: dict[str, str] = {}
        self.empty: set[str] = set()
        times = [time_ns for _, time_ns, _ in self.messages(None, -1)]
        self.seconds = (max(times) - min(times)) / 1e9 if times else 0.0

    def messages(self, names: set[str] | None, after_ns: int) -> Iterator[tuple[str, int, bytes]]:
        """Topic, time of recording (after `after_ns`) and bytes, in the order of the files. names: None for all."""
        for file in self.files:
            for topic, kind, time_ns, data in _READERS[file.suffix](file):
                self.topics[topic] = kind
                if (names is None or topic in names) and time_ns > after_ns:
                    yield topic, time_ns, data


def one_line(error: Exception) -> str:
    """Return an error's message as one sentence."""
    text = ' '.join(f'{error}'.split()) or type(error).__name__
    return text if text.endswith('.') else f'{text}.'


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts bag_9 before bag_10, as they were recorded."""
    return [(int(part), '') if part.isdigit() else (-1, part) for part in re.split(r'([0-9]+)', file.name)]


def _mcap_messages(file: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """Messages of an mcap file; a broken chunk is left out, and a record that was cut off is the end."""
    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str]] = {}
    with file.open('rb') as stream:
        reader = StreamReader(stream, emit_chunks=True, record_size_limit=LARGEST_RECORD_BYTES)
        for record in _until_broken(reader.records):
            for inner in _unpacked(record):
                if isinstance(inner, Schema):
                    schemas[inner.id] = inner.name
                elif isinstance(inner, Channel):
                    channels[inner.id] = (inner.topic, schemas.get(inner.schema_id, ''))
                elif isinstance(inner, Message) and inner.channel_id in channels:
                    topic, kind = channels[inner.channel_id]
                    yield topic, kind, inner.log_time, inner.data


def _unpacked(record: Any) -> Iterable[Any]:
    """The records in a chunk; any other record alone."""
    if not isinstance(record, Chunk):
        return [record]
    try:
        return breakup_chunk(record, validate_crc=True)
    except Exception:  # broken bytes make a decompressor raise nearly anything
        return []


def _until_broken(records: Iterable[Any]) -> Iterator[Any]:
    """Records up to the first that cannot be read."""
    iterator = iter(records)
    while True:
        try:
            record = next(iterator)
        except Exception:  # the end, or broken bytes
            return
        yield record


def _sqlite_messages(file: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """Messages of a sqlite3 file in the order they were written, up to the first page that is broken."""
    connection = sqlite3.connect(f'{file.resolve().as_uri()}?mode=ro&immutable=1', uri=True)
    try:
        connection.execute('PRAGMA writable_schema=ON')  # else SQLite refuses a file that is shorter than it was
        topics = {
            number: (name, kind) for number, name, kind in connection.execute('SELECT id, name, type FROM topics')
        }
        for number, time_ns, data in connection.execute('SELECT topic_id, timestamp, data FROM messages ORDER BY id'):
            if number in topics:
                topic, kind = topics[number]
                yield topic, kind, time_ns, data
    except sqlite3.Error:
        return
    finally:
        connection.close()


_READERS: dict[str, FileReader] = {'.mcap': _mcap_messages, '.db3': _sqlite_messages}
