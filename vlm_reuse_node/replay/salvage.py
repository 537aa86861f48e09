"""What can still be read of a damaged bag: records one after the other, without index, up to where they end."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

LARGEST_RECORD_BYTES = 2**31


class Salvage:
    """Reads every mcap and sqlite3 file of a bag as far as it goes.

    files: of the bag. topics: name to message type, as far as can be read. seconds: between the first and the last
    message that can be read.
    """

    def __init__(self, path: Path):
        """Look through the files once."""
        kinds = {'.mcap': _mcap_messages, '.db3': _sqlite_messages}
        found = [path] if path.is_file() else sorted(path.iterdir(), key=_natural)
        self.files = [file for file in found if file.suffix in kinds]
        self._read = {file: kinds[file.suffix] for file in self.files}
        self.topics: dict[str, str] = {}
        self.empty: set[str] = set()  # a topic is known by its messages here
        times = []
        for _, time_ns, _ in self.messages(None, -1):
            times.append(time_ns)
        self.seconds = (max(times) - min(times)) / 1e9 if times else 0.0

    def messages(self, names: set[str] | None, after_ns: int) -> Iterator[tuple[str, int, bytes]]:
        """Topic, time of recording (after `after_ns`) and bytes, in the order of the files. names: None for all."""
        for file in self.files:
            for topic, kind, time_ns, data in self._read[file](file):
                self.topics[topic] = kind
                if (names is None or topic in names) and time_ns > after_ns:
                    yield topic, time_ns, data


def _natural(file: Path) -> list:
    """Sorts bag_9 before bag_10, as they were recorded."""
    return [(int(part), '') if part.isdigit() else (-1, part) for part in re.split(r'([0-9]+)', file.name)]


def one_line(error: Exception) -> str:
    """An error's message as one sentence."""
    text = ' '.join(f'{error}'.split()) or type(error).__name__
    return text if text.endswith('.') else f'{text}.'


def _mcap_messages(file: Path):
    """Messages of an mcap file; a chunk that is broken is left out, a record that is cut is the end."""
    schemas, channels = {}, {}
    with file.open('rb') as stream:
        reader = StreamReader(stream, emit_chunks=True, record_size_limit=LARGEST_RECORD_BYTES)
        for record in _until_broken(reader.records):
            for inner in _unpacked(record):
                if isinstance(inner, Schema):
                    schemas[inner.id] = inner.name
                elif isinstance(inner, Channel):
                    channels[inner.id] = inner.topic, schemas.get(inner.schema_id, '')
                elif isinstance(inner, Message) and inner.channel_id in channels:
                    yield *channels[inner.channel_id], inner.log_time, inner.data


def _unpacked(record):
    if not isinstance(record, Chunk):
        return [record]
    try:
        return breakup_chunk(record, validate_crc=True)
    except Exception:  # whatever broken bytes lead a decompressor to
        return []


def _until_broken(records):
    """Records up to the first that cannot be read."""
    records = iter(records)
    while True:
        try:
            record = next(records)
        except Exception:  # the end, or whatever broken bytes lead to
            return
        yield record


def _sqlite_messages(file: Path):
    """Messages of a sqlite3 file in the order they were written, up to the first page that is broken."""
    connection = sqlite3.connect(f'{file.resolve().as_uri()}?mode=ro&immutable=1', uri=True)
    try:
        connection.execute('PRAGMA writable_schema=ON')  # else SQLite refuses a file that is shorter than it was
        topics = {
            number: (name, kind) for number, name, kind in connection.execute('SELECT id, name, type FROM topics')
        }
        for topic, time_ns, data in connection.execute('SELECT topic_id, timestamp, data FROM messages ORDER BY id'):
            if topic in topics:
                yield *topics[topic], time_ns, data
    except sqlite3.Error:
        return
    finally:
        connection.close()
