"""What is asked along a bag: read from a questions file (docs/replay.md), or a general set; and when each is due.

Times are seconds from the bag's first picture. The questions file that `make_bag` writes is one of these files.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from vlm_reuse_node.demo.sidecar import Truth
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.replay.salvage import one_line
from vlm_reuse_node.scene.frame import Frame

GENERAL = Path(__file__).with_name('general_questions.yaml')
GRID = 16, 12
OUTER = ' .,;:!?"\''
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
_CHANGE_KEYS = {'share', 'threshold', 'settle_s', 'pause_s'}


class QuestionsError(VlmReuseError):
    """A questions file that cannot be used."""


@dataclass(frozen=True)
class OnChange:
    """Ask when the picture differs from the one of the last asking.

    share: of the cells of a grid of 16 x 12. threshold: largest absolute difference of a cell's mean colour, of 255.
    settle_s: the change must have stopped for so long. pause_s: least time between two askings.
    """

    share: float = 0.02
    threshold: float = 16.0
    settle_s: float = 0.3
    pause_s: float = 1.0


@dataclass(frozen=True)
class Item:
    """One entry of a questions file.

    at_s: moments. every_s: an interval, from from_s on, before to_s; 0: none. tags: the first one is the question's
    type in the report. truths: true answers over time. camera: '' asks each.
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

    def times(self, begin_s: float, end_s: float) -> list[float]:
        """When it is asked from `begin_s` on, before `end_s`, as far as that does not depend on the pictures."""
        times = [time for time in self.at_s if begin_s <= time < end_s]
        if self.every_s:
            begin_s, end_s = max(begin_s, self.from_s), min(end_s, self.to_s)
            number = math.ceil((begin_s - self.from_s) / self.every_s - 1e-9)
            while (time := round(self.from_s + number * self.every_s, 6)) < end_s:
                times.append(time)
                number += 1
        return times


@dataclass(frozen=True)
class Due:
    """An item that is to be asked at a moment."""

    item: Item
    at_s: float


class Schedule:
    """When one camera's questions are due. Call `before` with each picture's time, then `at` with the picture."""

    def __init__(self, items: tuple[Item, ...], camera: str):
        """Start before the bag's first picture."""
        items = tuple(item for item in items if item.camera in ('', camera))
        self._timed = tuple(item for item in items if item.on_change is None)
        self._changes = [_Change(item) for item in items if item.on_change]
        self._now_s = 0.0

    def before(self, time_s: float) -> list[Due]:
        """Those due since the last call and before `time_s`, in order; they are about the picture before."""
        due = [Due(item, at_s) for item in self._timed for at_s in item.times(self._now_s, time_s)]
        self._now_s = time_s
        return sorted(due, key=lambda each: each.at_s)

    def at(self, time_s: float, frame: Frame) -> list[Due]:
        """Those due because of this picture."""
        grid = cv2.resize(frame.rgb, GRID, interpolation=cv2.INTER_AREA).astype(np.int16) if self._changes else None
        return [Due(change.item, time_s) for change in self._changes if change.is_due(time_s, grid)]


class _Change:
    """Compares pictures with the one of the last asking, whatever the engine itself holds for a change."""

    def __init__(self, item: Item):
        self.item = item
        self._asked_s, self._asked, self._last, self._moved_s = -math.inf, None, None, -math.inf

    def is_due(self, time_s, grid) -> bool:
        rule, last, self._last = self.item.on_change, self._last, grid
        if not self.item.from_s <= time_s < self.item.to_s:
            return False
        if self._asked is None:  # the first picture is what changes are counted from
            self._asked = grid
            return False
        if self._share(last, grid) > 0:
            self._moved_s = time_s
        if (
            time_s - self._moved_s < rule.settle_s
            or time_s - self._asked_s < rule.pause_s
            or self._share(self._asked, grid) < rule.share
        ):
            return False
        self._asked_s, self._asked = time_s, grid
        return True

    def _share(self, before, after):
        return float((abs(before - after).max(axis=2) >= self.item.on_change.threshold).mean())


# --- reading ----------------------------------------------------------------------------------------------------------


def read_questions(path: Path | None, cameras: tuple[str, ...]) -> tuple[Item, ...]:
    """Read a questions file; None: the general set.

    Raises QuestionsError that names the file, the entry and what is wrong with it.
    """
    path = path or GENERAL
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise QuestionsError(
            f"The questions file '{path}' cannot be read: {one_line(err)} Expected YAML with a list named questions."
        ) from err
    entries = content.get('questions') if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise QuestionsError(
            f"The questions file '{path}' has no questions; expected a list of that name with at least one entry."
        )
    items = tuple(
        _item(f"Question {number} in '{path}'", entry, content.get('camera', ''))
        for number, entry in enumerate(entries, start=1)
    )
    if unknown := sorted({item.camera for item in items} - {'', *cameras}):
        raise QuestionsError(
            f"The questions file '{path}' asks the camera {', '.join(unknown)}; the bag is replayed "
            f'with {", ".join(cameras)}. Name its topic with --topic, or leave camera out.'
        )
    return items


def _item(where: str, entry: dict, camera: str) -> Item:
    if not isinstance(entry, dict) or not isinstance(entry.get('question'), str) or not entry['question'].strip():
        raise QuestionsError(f'{where} has no text; expected an entry with question and when to ask it.')
    if unknown := sorted(set(entry) - _KEYS, key=str):
        raise QuestionsError(f'{where} has {", ".join(map(str, unknown))}; known are {", ".join(sorted(_KEYS))}.')
    when = [key for key in ('at_s', 'every_s', 'on_change') if _is_given(entry.get(key))]
    if len(when) != 1:
        raise QuestionsError(
            f'{where} has {" and ".join(when) or "no time to ask it"}; expected one of at_s (seconds, '
            'or a list of them), every_s (seconds) or on_change (true).'
        )
    if when == ['every_s'] and entry['every_s'] == 0:
        raise QuestionsError(f'{where} has every_s 0; expected more than 0 seconds.')
    given = entry.get('at_s')
    times = given if isinstance(given, list) else [] if given is None else [given]
    item = Item(
        entry['question'],
        _texts(where, entry, 'choices'),
        tuple(_number(where, 'at_s', time) for time in times),
        _number(where, 'every_s', entry.get('every_s', 0)),
        _number(where, 'from_s', entry.get('from_s', 0)),
        _number(where, 'to_s', entry.get('to_s', math.inf)),
        _on_change(where, entry.get('on_change')),
        (*_texts(where, entry, 'kind'), *_texts(where, entry, 'tags')),
        _truths(where, entry),
        str(entry.get('camera', camera) or ''),
        int(_number(where, 'max_tokens', entry.get('max_tokens', 0))),
    )
    if item.choices and (strange := sorted({truth.answer for truth in item.truths} - set(item.choices))):
        raise QuestionsError(f'{where} expects {", ".join(strange)}, which is none of its choices.')
    return item


def _is_given(value) -> bool:
    """Whether a key has a value; 0 is one, an empty list is none."""
    return value is not None and value is not False and value != []


def _texts(where, entry, key) -> tuple[str, ...]:
    """A list of texts, or a single one."""
    value = entry.get(key)
    values = [] if value in (None, '') else value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool):
            raise QuestionsError(
                f'{where} has {each} in {key}: YAML reads yes, no, on and off as that. Put it in quotes.'
            )
        if not isinstance(each, (str, int, float)) or not str(each).strip():
            raise QuestionsError(f'{where} has {each!r} in {key}; expected texts.')
    return tuple(str(each) for each in values)


def _number(where, key, value) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not value >= 0 or value == math.inf and key != 'to_s':
        raise QuestionsError(f'{where} has {key} {value!r}; expected a number from 0 on.')
    return float(value)


def _on_change(where, value) -> OnChange | None:
    if value is None or value is False:
        return None
    if value is True:
        return OnChange()
    if not isinstance(value, dict) or set(value) - _CHANGE_KEYS:
        raise QuestionsError(f'{where} has on_change {value!r}; expected true, or some of {", ".join(_CHANGE_KEYS)}.')
    return OnChange(**{key: _number(where, key, number) for key, number in value.items()})


def _truths(where, entry) -> tuple[Truth, ...]:
    """The true answers over time: `expected` all the time, or `answers` with spans."""
    if expected := _texts(where, entry, 'expected'):
        return (Truth(-math.inf, math.inf, expected[0]),) if len(expected) == 1 else _several(where)
    spans = entry.get('answers') or []
    try:
        said = [_texts(where, span, 'answer') for span in spans]
        return tuple(Truth(float(span['from_s']), float(span['to_s']), text) for span, (text,) in zip(spans, said))
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise QuestionsError(f'{where} has answers {spans!r}; expected a list of from_s, to_s and answer.') from err


def _several(where):
    raise QuestionsError(
        f'{where} has several texts in expected; expected one, or answers with from_s, to_s and answer.'
    )


def truth_at(item: Item, picture_s: float) -> str | None:
    """The true answer about a picture taken then; None: nobody can judge."""
    return next((truth.answer for truth in item.truths if truth.from_s <= picture_s < truth.to_s), None)


def plain(text: str) -> str:
    """A text as answers are compared with the truth: without case, outer punctuation and double spaces."""
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


def kind_of(item: Item) -> str:
    """The type of a question in the report."""
    return item.tags[0] if item.tags else 'with choices' if item.choices else 'free text'
