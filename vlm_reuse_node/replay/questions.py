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

"""What is asked along a bag: read from a questions file (docs/replay.md), or a general set.

Times are seconds from the bag's first picture. The questions file that `make_bag` writes is one of these files.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.replay.storage.channel import one_line
from vlm_reuse_node.replay.truth import Truth

GENERAL = Path(__file__).with_name('general_questions.yaml')
_KEYS = {
    'question',
    'choices',
    'at_s',
    'every_s',
    'from_s',
    'to_s',
    'on_change',
    'kind',
    'tags',
    'expected',
    'answers',
    'camera',
    'max_tokens',
}
# Of an interval.
SHORTEST_S = 0.001
_CHANGE_KEYS = {'share', 'threshold', 'settle_s', 'pause_s'}


class QuestionsError(VlmReuseError):
    """A questions file that cannot be used."""


@dataclass(frozen=True)
class OnChange:
    """Ask when the picture differs from the one of the last asking.

    share: least share of the cells of a 16 x 12 grid that differ.
    threshold: least difference of a cell's mean colour that counts, of 255, in the colour channel that differs most.
    settle_s: the change must have stopped for so long. pause_s: least time between two askings.
    """

    share: float = 0.02
    threshold: float = 16.0
    settle_s: float = 0.3
    pause_s: float = 1.0


@dataclass(frozen=True)
class QuestionEntry:
    """One entry of a questions file.

    at_s: moments. every_s: an interval, from from_s on, before to_s; 0: none.
    tags: the first one is the question's type in the report. truths: true answers over time.
    camera: '' asks each. max_tokens: 0 takes the configured default.
    """

    text: str
    choices: tuple[str, ...] = ()
    at_s: tuple[float, ...] = ()
    every_s: float = 0.0
    from_s: float = 0.0
    to_s: float = math.inf
    on_change: OnChange | None = None
    tags: tuple[str, ...] = ()
    truths: tuple[Truth, ...] = ()
    camera: str = ''
    max_tokens: int = 0

    @property
    def kind(self) -> str:
        """The type of the question in the report."""
        return self.tags[0] if self.tags else 'with choices' if self.choices else 'free text'

    def times(self, begin_s: float, end_s: float) -> Iterator[float]:
        """Yield when it is asked from `begin_s` on, before `end_s`, as far as that does not depend on the pictures."""
        yield from sorted(time for time in self.at_s if begin_s <= time < end_s)
        for number in self._numbers(begin_s, end_s):
            yield round(self.from_s + number * self.every_s, 6)

    def count(self, begin_s: float, end_s: float) -> int:
        """Count these times without listing them."""
        return sum(begin_s <= time < end_s for time in self.at_s) + len(self._numbers(begin_s, end_s))

    def _numbers(self, begin_s: float, end_s: float) -> range:
        """Which of the moments from_s, from_s + every_s and so on are in a span. end_s: finite."""
        begin_s, end_s = max(begin_s, self.from_s), min(end_s, self.to_s)
        if not self.every_s or end_s <= begin_s:
            return range(0)
        first, after = (math.ceil((time_s - self.from_s) / self.every_s - 1e-9) for time_s in (begin_s, end_s))
        return range(first, after)


def read_questions(path: Path | None, cameras: tuple[str, ...]) -> tuple[QuestionEntry, ...]:
    """Read a questions file; None: the general set.

    Raises QuestionsError that names the file, the entry and what is wrong with it.
    """
    path = path or GENERAL
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise QuestionsError(
            f"The questions file '{path}' cannot be read: {one_line(error)} Expected YAML with a list named questions."
        ) from error
    given = content.get('questions') if isinstance(content, dict) else None
    if not isinstance(given, list) or not given:
        raise QuestionsError(
            f"The questions file '{path}' has no questions; expected a list of that name with at least one entry."
        )
    entries = tuple(
        _entry(f"Question {number} in '{path}'", entry, content.get('camera', ''))
        for number, entry in enumerate(given, start=1)
    )
    if unknown := sorted({entry.camera for entry in entries} - {'', *cameras}):
        raise QuestionsError(
            f"The questions file '{path}' asks the camera {', '.join(unknown)}; the bag is replayed "
            f'with {", ".join(cameras)}. Name its topic with --topic, or leave camera out.'
        )
    return entries


def _entry(where: str, given: Any, camera: str) -> QuestionEntry:
    """One entry; `where` names it in errors. camera: of the file."""
    if not isinstance(given, dict) or not isinstance(given.get('question'), str) or not given['question'].strip():
        raise QuestionsError(f'{where} has no text; expected an entry with question and when to ask it.')
    if unknown := sorted(set(given) - _KEYS, key=str):
        raise QuestionsError(f'{where} has {", ".join(map(str, unknown))}; known are {", ".join(sorted(_KEYS))}.')
    _check_when(where, given)
    times = given.get('at_s')
    times = times if isinstance(times, list) else [] if times is None else [times]
    entry = QuestionEntry(
        text=given['question'],
        choices=_texts(where, given, 'choices'),
        at_s=tuple(_number(where, 'at_s', time) for time in times),
        every_s=_number(where, 'every_s', given.get('every_s', 0)),
        from_s=_number(where, 'from_s', given.get('from_s', 0)),
        to_s=_number(where, 'to_s', given.get('to_s', math.inf)),
        on_change=_on_change(where, given.get('on_change')),
        tags=(*_texts(where, given, 'kind'), *_texts(where, given, 'tags')),
        truths=_truths(where, given),
        camera=str(given.get('camera', camera) or ''),
        max_tokens=int(_number(where, 'max_tokens', given.get('max_tokens', 0))),
    )
    if entry.choices and (strange := sorted({truth.answer for truth in entry.truths} - set(entry.choices))):
        raise QuestionsError(f'{where} expects {", ".join(strange)}, which is none of its choices.')
    return entry


def _check_when(where: str, given: dict) -> None:
    """Refuse an entry that does not say in exactly one way when to ask it."""
    when = [key for key in ('at_s', 'every_s', 'on_change') if _is_given(given.get(key))]
    if len(when) != 1:
        raise QuestionsError(
            f'{where} has {" and ".join(when) or "no time to ask it"}; expected one of at_s (seconds, '
            'or a list of them), every_s (seconds) or on_change (true).'
        )
    if when == ['every_s'] and _number(where, 'every_s', given['every_s']) < SHORTEST_S:
        raise QuestionsError(f'{where} has every_s {given["every_s"]}; expected at least {SHORTEST_S} seconds.')


def _is_given(value: Any) -> bool:
    """Whether a key has a value; 0 is one, an empty list is none."""
    return value is not None and value is not False and value != []


def _texts(where: str, given: dict, key: str) -> tuple[str, ...]:
    """A list of texts, or a single one."""
    value = given.get(key)
    values = [] if value in (None, '') else value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool):
            raise QuestionsError(
                f'{where} has {each} in {key}: YAML reads yes, no, on and off as that. Put it in quotes.'
            )
        if not isinstance(each, (str, int, float)) or not str(each).strip():
            raise QuestionsError(f'{where} has {each!r} in {key}; expected texts.')
    return tuple(str(each) for each in values)


def _number(where: str, key: str, value: Any) -> float:
    """A number from 0 on; only to_s may be infinite."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not value >= 0 or value == math.inf and key != 'to_s':
        raise QuestionsError(f'{where} has {key} {value!r}; expected a number from 0 on.')
    return float(value)


def _on_change(where: str, value: Any) -> OnChange | None:
    if value is None or value is False:
        return None
    if value is True:
        return OnChange()
    if not isinstance(value, dict) or set(value) - _CHANGE_KEYS:
        raise QuestionsError(f'{where} has on_change {value!r}; expected true, or some of {", ".join(_CHANGE_KEYS)}.')
    return OnChange(**{key: _number(where, key, number) for key, number in value.items()})


def _truths(where: str, given: dict) -> tuple[Truth, ...]:
    """The true answers over time: `expected` all the time, or `answers` with spans."""
    if expected := _texts(where, given, 'expected'):
        if len(expected) > 1:
            raise QuestionsError(
                f'{where} has several texts in expected; expected one, or answers with from_s, to_s and answer.'
            )
        return (Truth(-math.inf, math.inf, expected[0]),)
    spans = given.get('answers') or []
    try:
        return tuple(_truth(where, span) for span in spans)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise QuestionsError(f'{where} has answers {spans!r}; expected a list of from_s, to_s and answer.') from error


def _truth(where: str, span: dict) -> Truth:
    (answer,) = _texts(where, span, 'answer')
    return Truth(float(span['from_s']), float(span['to_s']), answer)
