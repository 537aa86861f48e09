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

"""How the texts of answers are compared and judged."""

OUTER = ' .,;:!?"\''


def plain(text: str) -> str:
    """Return a text as answers are compared with the truth: without case, outer punctuation and double spaces."""
    return ' '.join(text.lower().split()).strip(OUTER)


def is_degenerate(text: str) -> bool:
    """Whether free text is empty, or says the same four words or fewer four times in a row."""
    words = text.lower().split()
    if not words:
        return True
    return any(
        words[start : start + size] * 4 == words[start : start + 4 * size]
        for size in range(1, 5)
        for start in range(len(words) - 4 * size + 1)
    )
