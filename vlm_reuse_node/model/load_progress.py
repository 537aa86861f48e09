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

"""How far the loading of a model is, for people who wait for it."""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

# Seconds between two lines about one download or one set of weights.
EVERY_S = 5.0
GB, MB = 1_000_000_000, 1_000_000

_log = logging.getLogger(__name__)


class Amount(NamedTuple):
    """Bytes so far, and of all; all is 0 while it is not known."""

    done: int
    total: int

    def __str__(self) -> str:
        if not self.total:
            return sized(self.done)
        whole = sized(self.total)
        unit = GB if whole.endswith('GB') else MB
        return f'{min(self.done, self.total) / unit:.1f} of {whole}'


class LoadProgress:
    """What is being loaded, and how much of it is there. The loading thread writes it, and any thread may read it."""

    def __init__(self, say: Callable[[str], None] = _log.info) -> None:
        """Start with nothing. say: takes lines for people."""
        self._say = say
        self._part: tuple[str, Callable[[], Amount]] | None = None
        self._said_s = 0.0

    def tell(self, line: str) -> None:
        """Say a line at once."""
        self._say(line)

    def begin(self, what: str, amount: Callable[[], Amount]) -> None:
        """Begin a part, such as 'loading weights'. amount: called from any thread until the part ends."""
        self._said_s = time.monotonic()
        self._part = what, amount

    def end(self) -> None:
        """End the part."""
        self._part = None

    @property
    def text(self) -> str:
        """The running part and how far it is, such as 'loading weights: 3.1 of 8.2 GB'; '' between two parts."""
        if (part := self._part) is None:
            return ''
        what, amount = part
        return f'{what}: {amount()}'

    def tell_when_due(self) -> None:
        """Say the text, at most every EVERY_S seconds. Whoever waits for the model calls this again and again."""
        now_s = time.monotonic()
        if now_s - self._said_s >= EVERY_S and (text := self.text):
            self._said_s = now_s
            self._say(f'{text[0].upper()}{text[1:]}.')


def sized(size: float) -> str:
    """Return bytes in the unit that suits them."""
    return f'{size / GB:.1f} GB' if size >= GB else f'{size / MB:.1f} MB'
