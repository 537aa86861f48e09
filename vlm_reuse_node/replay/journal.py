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

"""One bag's rows on disk, written as they come, one JSON object a line; a resumed run starts from them."""

import json
from collections import defaultdict
from hashlib import blake2b
from pathlib import Path
from sys import intern
from typing import Any, TextIO

from vlm_reuse_node.errors import VlmReuseError

NAME = 'rows.jsonl'


class JournalError(VlmReuseError):
    """Rows of another run than the one to be resumed."""


class Journal:
    """Writes one bag's rows. With `resume` the rows of an earlier run can be looked up while all are written anew.

    Every row of an arm says in which session its times were measured: 1 for the first run, one more for each that
    resumed it. What an earlier session did, and this one does again to get its state back, keeps the times of the
    earlier one; so the times of all arms on one question are of the same session.

    is_complete: whether the earlier run reached the bag's end.
    """

    def __init__(self, folder: Path, settings: dict, resume: bool) -> None:
        """Open the folder's rows; the folder is made where it is missing.

        Raises JournalError when the rows to resume are of a run with other settings.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / NAME
        self._settings = settings
        earlier = read_rows(self._path) if resume else []
        if earlier and earlier[0] != settings:
            other = sorted(key for key in settings if earlier[0].get(key) != settings[key])
            raise JournalError(
                f"'{self._path}' is of a run with another {', '.join(other)}; --resume goes on only "
                'with the same. Give another --out, or --overwrite in its place to start anew.'
            )
        self.is_complete = bool(earlier) and earlier[-1]['row'] == 'bag'
        self._earlier = {_key(row, row['arm']): row for row in earlier if row['row'] == 'answer'}
        self._earlier_times: dict[bytes, list[dict]] = defaultdict(list)
        for row in (row for row in earlier if 'arm' in row):
            self._earlier_times[_digest(row)].append(row['times'])
        self._session = 1 + max((row['times']['session'] for row in earlier if 'arm' in row), default=0)
        self._written = self._path
        self._file: TextIO | None = None

    def start(self) -> None:
        """Begin to write: to a file beside the earlier rows until the first question that they do not have."""
        if self._earlier:
            self._written = self._path.with_suffix('.new')
        self._file = self._written.open('w', encoding='utf-8')
        self.write(self._settings)

    def earlier(self, question: dict, arm: str) -> dict | None:
        """Return the earlier run's answer, once; None where there is none."""
        return self._earlier.pop(_key(question, arm), None)

    def write(self, row: dict) -> None:
        """Add a row to the file; it is on disk when this returns. To be called after `start`."""
        if self._file is None:
            raise RuntimeError('The journal is not open; call start first.')
        if 'arm' in row:
            row = row | {'times': self._times(row)}
        self._file.write(json.dumps(row, ensure_ascii=False) + '\n')
        self._file.flush()
        has_all_earlier = not self._earlier or row['row'] == 'bag'
        if has_all_earlier and self._written != self._path:
            self._written = self._written.replace(self._path)

    def _times(self, row: dict) -> dict:
        """The times that the earlier run measured for the same row, else the row's own; with their session."""
        earlier = self._earlier_times.get(_digest(row))
        return earlier.pop(0) if earlier else row['times'] | {'session': self._session}

    def close(self) -> None:
        """Stop writing. An earlier run's rows stay as long as this run has fewer."""
        if self._file:
            self._file.close()


def read_rows(path: Path) -> list[dict]:
    """Return the rows of a file without a last line that was cut off; none where there is no file."""
    rows = []
    try:
        with path.open(encoding='utf-8') as file:
            for line in file:
                rows.append(json.loads(line, object_pairs_hook=_shared))
    except FileNotFoundError:
        return []
    except ValueError:
        pass  # the process was killed while it wrote
    return rows


def _shared(members: list[tuple[str, Any]]) -> dict:
    """A JSON object whose names, and values that are texts, are in memory once for all rows: a long run has many."""
    return {intern(name): intern(value) if isinstance(value, str) else value for name, value in members}


def _digest(row: dict) -> bytes:
    """What tells a row from others, but for its times."""
    rest = {name: value for name, value in row.items() if name != 'times'}
    return blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).digest()


def _key(row: dict, arm: str) -> tuple[str, int, str]:
    return row['camera'], row['question'], arm
