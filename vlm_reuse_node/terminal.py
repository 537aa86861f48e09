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

"""What the command lines share: help that tells defaults, and progress as a bar or, where nobody looks, as lines."""

import argparse
import sys
from typing import Any, Self

from vlm_reuse_node.plain_text import one_line


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default to the help of every option that has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ''
        if 'default' in told or action.nargs == 0 or action.default in (None, '', [], argparse.SUPPRESS):
            return told
        return f'{told}; default: %(default)s' if told else 'default: %(default)s'


class Parser(argparse.ArgumentParser):
    """The parser of a command line. Its help tells defaults, and an option is only taken by its whole name."""

    def __init__(self, **given: Any) -> None:
        """given: as for `argparse.ArgumentParser`."""
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **given)


def progress(total: float, name: str, unit: str = '') -> Any:
    """Return a progress bar on stderr, with `update` and `set_description`; use it as a context.

    Where stderr is no terminal, such as a file that somebody follows, it writes a line for every part that has a
    description, else for every tenth.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm  # most command lines end without one

        return tqdm(total=total, unit=unit or 'it', file=sys.stderr, smoothing=0.1, desc=one_line(name), leave=False)
    return ProgressLines(total, one_line(name), unit)


class ProgressLines:
    """Progress as lines that are written at once."""

    def __init__(self, total: float, name: str, unit: str) -> None:
        """total: the last value that `update` adds up to."""
        self._total, self._name, self._unit = total, name, unit
        self._done, self._told = 0.0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def set_description(self, part: str) -> None:
        """Tell what is done next."""
        self._write(part)

    def update(self, step: float = 1) -> None:
        """Add a step."""
        self._done += step
        tenths = int(10 * self._done / self._total) if self._total else 0
        if tenths > self._told:
            self._told = tenths
            self._write(f'{self._done:.4g} of {self._total:.4g} {self._unit}'.rstrip())

    def _write(self, text: str) -> None:
        print(f'{self._name}: {text}', file=sys.stderr, flush=True)
