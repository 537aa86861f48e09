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

"""sqlite3 files of rosbag2, those that a killed recorder left behind included."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from vlm_reuse_node.replay.storage.channel import CDR, BagError, Channel, Message, long_type, one_line

# What a recorder that was killed has not moved into the file yet, or has to take back.
BESIDE = ('-wal', '-journal')


class SqliteFile:
    """One sqlite3 file, see `StoredFile`."""

    def __init__(self, path: Path) -> None:
        """Open it; the file itself is never written to. Raises BagError when it is no recording."""
        self.damage = ''
        self.channels: dict[str, Channel] = {}
        self.full: set[str] = set()
        self.span_ns = 0
        self._numbers: dict[str, list[int]] = {}  # by topic; a topic can be listed more than once
        self._copy: TemporaryDirectory[str] | None = None
        try:
            self._connection = self._connect(path)
            self._read_topics()
        except (sqlite3.Error, ValueError) as error:
            self.close()
            raise BagError(one_line(error)) from error
        self._look_through()

    def messages(self, topic: str) -> Iterator[Message]:
        """Yield a topic's messages in the order they were written, up to the first page that is broken."""
        numbers = self._numbers[topic]
        query = f'SELECT timestamp, data FROM messages WHERE topic_id IN ({",".join("?" * len(numbers))}) ORDER BY id'
        channel = self.channels[topic]
        try:
            for time_ns, data in self._connection.execute(query, numbers):
                if isinstance(time_ns, int) and isinstance(data, bytes):
                    yield Message(channel, time_ns, data)
                else:
                    self.damage = self.damage or 'Some messages have no time or no bytes.'
        except sqlite3.Error as error:
            self.damage = one_line(error)

    def close(self) -> None:
        """Close the file, and remove the copy of it."""
        if hasattr(self, '_connection'):
            self._connection.close()
        if self._copy:
            self._copy.cleanup()

    def _connect(self, path: Path) -> sqlite3.Connection:
        """Open the file as it is; or a copy, where SQLite has to complete it from the file beside it."""
        beside = [Path(f'{path}{ending}') for ending in BESIDE]
        beside = [file for file in beside if file.exists() and file.stat().st_size]
        options = '?mode=ro&immutable=1'
        if beside:
            self._copy = TemporaryDirectory()
            for file in (path, *beside):
                shutil.copyfile(file, Path(self._copy.name, file.name))
            path, options = Path(self._copy.name, path.name), '?mode=rw'
        connection = sqlite3.connect(f'{path.resolve().as_uri()}{options}', uri=True)
        connection.execute('PRAGMA trusted_schema=OFF')
        connection.execute('PRAGMA query_only=ON')
        connection.execute('PRAGMA writable_schema=ON')  # else SQLite refuses a file that is shorter than it was
        return connection

    def _read_topics(self) -> None:
        """Find the topics. Raises sqlite3.Error or ValueError where there are none."""
        tables = "SELECT count(*) FROM sqlite_master WHERE type='table' AND name IN ('topics', 'messages')"
        if self._connection.execute(tables).fetchone() != (2,):
            raise ValueError('It has no tables topics and messages.')
        rows = self._connection.execute('SELECT id, name, type, serialization_format FROM topics').fetchall()
        definitions = self._definitions()
        for number, name, kind, encoding in rows:
            if isinstance(name, str) and isinstance(kind, str):
                definition = definitions.get(kind, b'')
                self.channels.setdefault(name, Channel(name, long_type(kind), str(encoding or CDR), definition))
                self._numbers.setdefault(name, []).append(number)

    def _definitions(self) -> dict[str, bytes]:
        """The definitions of types, by name, as far as the file holds them: recorders before 2023 wrote none."""
        query = "SELECT topic_type, encoded_message_definition FROM message_definitions WHERE encoding = 'ros2msg'"
        try:
            rows = self._connection.execute(query).fetchall()
        except sqlite3.Error:
            return {}
        return {kind: text.encode() for kind, text in rows if isinstance(kind, str) and isinstance(text, str)}

    def _look_through(self) -> None:
        """Find out which topics have messages, and how long it took to record them."""
        names = {number: name for name, numbers in self._numbers.items() for number in numbers}
        first_ns = last_ns = None
        try:
            for number, time_ns in self._connection.execute('SELECT topic_id, timestamp FROM messages ORDER BY id'):
                if number in names and isinstance(time_ns, int):
                    self.full.add(names[number])
                    first_ns = time_ns if first_ns is None else min(first_ns, time_ns)
                    last_ns = time_ns if last_ns is None else max(last_ns, time_ns)
        except sqlite3.Error as error:
            self.damage = one_line(error)
        self.span_ns = last_ns - first_ns if first_ns is not None and last_ns is not None else 0
