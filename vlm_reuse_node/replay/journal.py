"""Rows on disk as they come, one JSON object a line: what an interrupted run leaves, and goes on from."""

import json
from pathlib import Path

from vlm_reuse_node.errors import VlmReuseError

NAME = 'rows.jsonl'


class JournalError(VlmReuseError):
    """Rows that are not of the run that is to go on."""


class Journal:
    """Writes one bag's rows. With `resume` the rows of an earlier run are at hand while they are written anew."""

    def __init__(self, folder: Path, settings: dict, resume: bool):
        """Open the folder's rows, made where missing.

        Raises JournalError when the rows to go on from are of a run with other settings.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._settings = folder / NAME, settings
        kept = read_rows(self._path) if resume else []
        if kept and kept[0] != settings:
            other = sorted(key for key in settings if kept[0].get(key) != settings[key])
            raise JournalError(
                f"'{self._path}' is of a run with another {', '.join(other)}; --resume goes on only "
                'with the same. Give another --out, or leave --resume out to start anew.'
            )
        self.is_complete = bool(kept) and kept[-1]['row'] == 'bag'
        self._known = {_key(row, row['arm']): row for row in kept if row['row'] == 'answer'}
        self._file = None

    def start(self) -> None:
        """Write anew, beside the kept rows until the first question that they do not have."""
        self._new = self._path.with_suffix('.new') if self._known else self._path
        self._file = self._new.open('w', encoding='utf-8')
        self.write(self._settings)

    def known(self, question: dict, arm: str) -> dict | None:
        """An earlier run's answer."""
        return self._known.pop(_key(question, arm), None)

    def write(self, row: dict) -> None:
        """Add a row; with a question's last answer it is on disk."""
        self._file.write(json.dumps(row, ensure_ascii=False) + '\n')
        self._file.flush()
        is_ahead = not self._known or row['row'] == 'bag'  # the new rows have all that the old ones had
        if is_ahead and self._new != self._path:
            self._new = self._new.replace(self._path)

    def close(self) -> None:
        """Stop writing. An earlier run's rows stay where they are more than those of this one."""
        if self._file:
            self._file.close()


def read_rows(path: Path) -> list[dict]:
    """The rows of a file; a last line that was cut is left out. No file, no rows."""
    rows = []
    try:
        for line in path.read_text(encoding='utf-8').splitlines():
            rows.append(json.loads(line))
    except FileNotFoundError:
        return []
    except ValueError:
        pass  # the process was killed while it wrote
    return rows


def _key(row, arm):
    return row['camera'], row['question'], arm
