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

"""Text from outside, and errors, as one harmless line."""


def printable(text: str) -> str:
    """Replace every character that is no letter, sign or blank, such as a line's end, by a blank."""
    return ''.join(letter if letter.isprintable() else ' ' for letter in text)


def error_line(error: Exception, longest: int = 300) -> str:
    """The type and the text of an error in one line of at most so many characters."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:longest]
