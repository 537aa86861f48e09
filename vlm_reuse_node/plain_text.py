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

"""Text from outside, and errors, as one harmless line.

Every text that people read goes through here where it leaves the program: logs, diagnostics, messages of answers, what
a command line prints, and pages.
"""

import logging
import sys
from collections.abc import Iterable

# Most characters of a line that people read. A text from outside may be as long as it likes.
LONGEST_LINE = 1000


def printable(text: str) -> str:
    """Replace every character that is no letter, sign or blank, such as a line's end, by a blank."""
    if text.isprintable():
        return text
    return ''.join(letter if letter.isprintable() else ' ' for letter in text)


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Return a text from outside as one line without control characters, of at most so many characters."""
    start = text[: 4 * longest]  # a text of megabytes is not looked at to its end
    plain = ' '.join(printable(start).split())
    return plain if len(plain) <= longest and len(start) == len(text) else plain[: longest - 1] + '…'


def error_line(error: Exception, longest: int = 300) -> str:
    """The type and the text of an error in one line of at most so many characters."""
    return one_line(f'{type(error).__name__}: {error}', longest)


def log_lines(record: logging.LogRecord) -> list[str]:
    """The lines of a log record: its message, and those of a traceback."""
    lines = [record.getMessage()]
    if record.exc_info:
        lines += logging.Formatter().formatException(record.exc_info).splitlines()
    return [one_line(line) if number == 0 else plain_row(line) for number, line in enumerate(lines)]


def plain_row(row: str) -> str:
    """Return a row of a table or a traceback without control characters. Its columns stay."""
    return printable(row[:LONGEST_LINE]).rstrip()


def print_rows(rows: Iterable[str]) -> None:
    """Print rows of a table, or sentences. A row that holds a line's end stays one row."""
    for row in rows:
        print(plain_row(row))


def print_error(program: str, text: object) -> None:
    """Print on stderr why a program ends, or what it warns of."""
    print(f'{program}: {one_line(str(text))}', file=sys.stderr, flush=True)


def log_to_stderr(level: int) -> None:
    """Log to stderr, each record from this level on as harmless lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logging.basicConfig(level=level, handlers=[handler])


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return '\n'.join(log_lines(record))
