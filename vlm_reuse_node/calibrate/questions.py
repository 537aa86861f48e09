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

"""What is asked to calibrate: a file's questions, or the general ones and some about what the model sees."""

import re
from collections.abc import Iterable, Iterator, Sequence

from vlm_reuse_node.calibrate.arm import Reference
from vlm_reuse_node.replay.questions import QuestionEntry
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question

# Questions about one picture: those with choices go through the model in one pass, texts are decoded one by one.
CHOICES_A_PICTURE, TEXTS_A_PICTURE = 12, 4
LISTING = Question('What objects are there?', max_tokens=32)
MOST_THINGS = 8
LONGEST_THING_WORDS = 3
_ARTICLE = re.compile(r'^(a|an|the|some|one|two|three|several|many)\s+')


class Asked:
    """The questions, in turn: a few about each picture, and each of them about as often as the others."""

    def __init__(self, questions: Iterable[Question]) -> None:
        """Ask each of them once in a turn."""
        unique = dict.fromkeys(questions)
        self.choices = tuple(question for question in unique if question.choices)
        self.texts = tuple(question for question in unique if not question.choices)

    def __len__(self) -> int:
        """Number of different questions."""
        return len(self.choices) + len(self.texts)

    def about(self, moment: int) -> tuple[list[Question], list[Question]]:
        """The questions with choices and those without about one picture. moment: its number."""
        return _turn(self.choices, moment, CHOICES_A_PICTURE), _turn(self.texts, moment, TEXTS_A_PICTURE)


def _turn(questions: Sequence[Question], moment: int, count: int) -> list[Question]:
    count = min(count, len(questions))
    return [questions[(moment * count + number) % len(questions)] for number in range(count)]


def questions_of(entries: Iterable[QuestionEntry], camera: str) -> list[Question]:
    """The questions of a file about a camera, without the times at which a replay asks them."""
    return [
        Question(entry.text, entry.choices, max_tokens=entry.max_tokens)
        for entry in entries
        if entry.camera in ('', camera)
    ]


def questions_about(reference: Reference, frames: Iterable[Frame]) -> Iterator[Question]:
    """Yield questions about the things that the model names in these pictures."""
    things: dict[str, None] = {}
    for frame in frames:
        (answer,) = reference.ask([frame], [LISTING])
        if answer.status is Status.OK:
            things |= dict.fromkeys(named(answer.text))
    for thing in list(things)[:MOST_THINGS]:
        yield Question(f'Is there a {thing} in the picture?', ('yes', 'no'))
        yield Question(f'Where is the {thing}?', ('left', 'middle', 'right'))


def named(text: str) -> list[str]:
    """The things that a list in words names."""
    found = []
    for part in re.split(r'[,;.:\n]|\band\b|\d+\)', text.lower()):
        words = _ARTICLE.sub('', re.sub(r'[^\w\s-]', ' ', part).strip()).split()
        if 0 < len(words) <= LONGEST_THING_WORDS and not all(word.isdigit() for word in words):
            found.append(' '.join(words))
    return found
