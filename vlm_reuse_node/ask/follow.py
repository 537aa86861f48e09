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

"""Shows an answer's text while it grows."""

from typing import TextIO

from vlm_reuse_node.plain_text import printable


class Follower:
    """Writes what has been added to a text, on a terminal."""

    def __init__(self, output: TextIO | None) -> None:
        """Write to `output`; None: nowhere."""
        self._output, self._shown = output, ''

    def show(self, text: str) -> None:
        """Show the text so far. One that begins anew, such as one that is given again, is shown anew."""
        if self._output is None or not text:
            return
        plain = printable(text)
        if not plain.startswith(self._shown):
            self._output.write('\n')
            self._shown = ''
        self._output.write(plain[len(self._shown) :])
        self._output.flush()
        self._shown = plain

    def end(self) -> None:
        """End the line."""
        if self._shown:
            self._output.write('\n')
