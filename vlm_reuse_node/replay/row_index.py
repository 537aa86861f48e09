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

"""The rows of all bags, found by what they are about."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from vlm_reuse_node.replay.arms import REFERENCE
from vlm_reuse_node.replay.rows import is_pair
from vlm_reuse_node.scene.refresh import Level

_LEVELS = [str(level) for level in Level]
Key = tuple[str, str, int]


class AnswerPair(NamedTuple):
    """Rows of one question, of an arm's answer to it, and of the answer it is compared with."""

    question: dict
    answer: dict
    reference: dict


class RowIndex:
    """The rows of all bags; each names its bag.

    questions, pictures, upkeep, bags, answers: the rows of each kind, in their order.
    of: answers by arm, and by bag, camera and question number.
    """

    def __init__(self, rows: Iterable[dict]) -> None:
        """Sort the rows by kind and by arm."""
        kinds: dict[str, list[dict]] = defaultdict(list)
        for row in rows:
            kinds[row['row']].append(row)
        self.questions = kinds['question']
        self.pictures = kinds['picture']
        self.upkeep = kinds['upkeep']
        self.bags = kinds['bag']
        self.answers = kinds['answer']
        self.of: dict[str, dict[Key, dict]] = {}
        for row in self.answers:
            self.of.setdefault(row['arm'], {})[_key(row)] = row
        self._question_of = {_key(row): row for row in self.questions}

    @property
    def arms(self) -> list[str]:
        """Arms that answered anything, in the order of the table."""
        return list(self.of)

    def pairs(self, arm: str, reference: str = REFERENCE) -> list[AnswerPair]:
        """Return the questions that both arms answered, with both answers."""
        references = self.of.get(reference, {})
        return [
            AnswerPair(self._question_of[key], answer, references[key])
            for key, answer in self.of.get(arm, {}).items()
            if key in references and is_pair(answer, references[key])
        ]

    def looks(self, arm: str) -> list[dict]:
        """Return the looks and refreshes of an arm that takes every picture."""
        return [row for row in self.pictures if row['arm'] == arm]

    def seen(self, arm: str) -> list[dict]:
        """Return each picture once: its first look, with the dearest level and all tokens of its refreshes."""
        seen: dict[tuple[str, str, float], dict] = {}
        for row in self.looks(arm):
            key = row['bag'], row['camera'], row['picture_s']
            first = seen.setdefault(key, {**row, 'visual_tokens_refreshed': 0})
            first['visual_tokens_refreshed'] += row['visual_tokens_refreshed']
            first['level'] = max(first['level'], row['level'], key=_LEVELS.index)
        return list(seen.values())


def _key(row: dict) -> Key:
    return row['bag'], row['camera'], row['question']
