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

"""Random questions about the tabletop, in several wordings, with the true answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlm_reuse_node.demo.scene_truth import ATTRIBUTES, RELATIONS, direction, fits, single_truth, window_truth
from vlm_reuse_node.demo.tabletop import COLOURS, SHAPES, Thing
from vlm_reuse_node.demo.words import (
    ANY,
    COUNTS,
    DIRECTIONS,
    NONE,
    NOTHING,
    PLACES,
    SIDES,
    STAYED,
    UNKNOWN,
    WORDINGS,
    YES_NO,
    names,
)

T = TypeVar('T')
Things = tuple[Thing, ...]
Topic = tuple[str, ...]  # the topic, and what is asked about
_FOREIGN = ('zebra', 'spoon', 'pyramid', 'turquoise', 'quickly', 'banana')
_CHOICES = {
    'colour': tuple(COLOURS),
    'shape': SHAPES,
    'exists': YES_NO,
    'where': SIDES,
    'side row': ('top', 'bottom'),
    'side column': ('left', 'right'),
}


@dataclass(frozen=True)
class TabletopQuestion:
    """One question: its kind, its wording, the true answer, and what the answer could have been (empty: free text).

    topic and parts say what is asked, whatever the wording: `single_truth(topic, parts, things)` answers it for other
    scenes.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    topic: str = ''
    parts: tuple[str, ...] = ()


def single_question(rng: np.random.Generator, things: Things, kind: str) -> TabletopQuestion | None:
    """Return a question of this kind about one picture, or None where the picture does not allow one.

    kind: one of `words.SINGLE_KINDS`.
    """
    proposal = _PROPOSALS[kind](rng, things)
    if proposal is None:
        return None
    topic, *rest = proposal
    parts = tuple(rest)
    answer = UNKNOWN if kind == 'unknown' else single_truth(topic, parts, things)
    if answer is None or (answer == NONE) != (kind == 'missing'):
        return None
    return TabletopQuestion(kind, _wording(rng, topic, parts), answer, _choices(topic, answer, things), topic, parts)


def window_question(rng: np.random.Generator, first: Things, last: Things, kind: str) -> TabletopQuestion | None:
    """Return a question of this kind about what changed between two pictures, or None where there is none to ask.

    kind: one of `words.WINDOW_KINDS`.
    """
    parts: tuple[str, ...] = ()
    if kind == 'direction':
        what = _moving(rng, first, last)
        if what is None:
            return None
        parts = (what,)
    answer = window_truth(kind, parts, first, last)
    if answer is None:
        return None
    choices = (*DIRECTIONS, STAYED) if kind == 'direction' else (*names(), NOTHING)
    return TabletopQuestion(kind, _wording(rng, kind, parts), answer, choices, kind, parts)


def _moving(rng: np.random.Generator, first: Things, last: Things) -> str | None:
    """A thing that is in both pictures, mostly one that moved."""
    before = {thing.name: thing for thing in first}
    both = [thing for thing in last if thing.name in before]
    if not both:
        return None
    moved = [thing for thing in both if direction(before[thing.name], thing)]
    candidates = moved if moved and rng.random() < 0.85 else both
    everything = tuple({**before, **{thing.name: thing for thing in last}}.values())
    return _reference(rng, everything, _pick(rng, candidates))


def _choices(topic: str, answer: str, things: Things) -> tuple[str, ...]:
    """What a planner would offer as choices; () where there would be less than two."""
    if answer in (NONE, UNKNOWN) or topic == 'list':
        return ()
    if topic == 'nearest':
        return tuple(thing.name for thing in things) if len(things) > 1 else ()
    if topic.startswith('count'):
        return COUNTS
    return YES_NO if topic in RELATIONS else _CHOICES[topic]


def _wording(rng: np.random.Generator, topic: str, parts: tuple[str, ...]) -> str:
    template = _pick(rng, WORDINGS[topic])
    if topic == 'exists' and parts[0] in COLOURS:
        parts = (f'{parts[0]} {_pick(rng, ANY)}',)
    return template.format(*parts, any=_pick(rng, ANY))


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _single(things: Things, attribute: str) -> list[str]:
    """Values of the attribute that exactly one thing has."""
    values = [getattr(thing, attribute) for thing in things]
    return [value for value in values if values.count(value) == 1]


def _reference(rng: np.random.Generator, things: Things, thing: Thing) -> str:
    """A name that means this thing alone: its shape where that is enough (half of the time), else colour and shape."""
    return thing.shape if thing.shape in _single(things, 'shape') and rng.random() < 0.5 else thing.name


def _described(rng: np.random.Generator, things: Things, wanted: bool) -> str | None:
    """A colour, a shape or both that is (or is not) on the table; a missing one is built from what is there."""
    which = _pick(rng, ('name', 'name', 'shape', 'colour'))
    options = {'name': names(), 'shape': SHAPES, 'colour': tuple(COLOURS)}[which]
    fitting = [what for what in options if any(fits(thing, what) for thing in things) == wanted]
    seen = {word for thing in things for word in thing.name.split()}
    alike = [what for what in fitting if all(word in seen for word in what.split())]
    alike = alike or [what for what in fitting if any(word in seen for word in what.split())]
    if alike and rng.random() < 0.7:
        return _pick(rng, alike)
    return _pick(rng, fitting) if fitting else None


def _propose_colour(rng: np.random.Generator, things: Things) -> Topic | None:
    shapes = _single(things, 'shape')
    return ('colour', _pick(rng, shapes)) if shapes else None


def _propose_shape(rng: np.random.Generator, things: Things) -> Topic | None:
    colours = _single(things, 'colour')
    return ('shape', _pick(rng, colours)) if colours else None


def _propose_count(rng: np.random.Generator, things: Things) -> Topic | None:
    topic = _pick(rng, ('count all', 'count colour', 'count shape'))
    if topic == 'count all':
        return (topic,)
    attribute = topic.split()[1]
    there = sorted({getattr(thing, attribute) for thing in things})
    anything = tuple(COLOURS) if attribute == 'colour' else SHAPES
    return topic, _pick(rng, there if there and rng.random() < 0.7 else anything)


def _propose_exists(rng: np.random.Generator, things: Things) -> Topic | None:
    is_there = rng.random() < 0.5
    what = _described(rng, things, is_there)
    return ('exists', what) if what else None


def _propose_where(rng: np.random.Generator, things: Things) -> Topic | None:
    topic = 'where' if rng.random() < 0.6 else _pick(rng, ('side row', 'side column'))
    clear = [thing for thing in things if ATTRIBUTES[topic](thing)]
    return (topic, _reference(rng, things, _pick(rng, clear))) if clear else None


def _propose_relation(rng: np.random.Generator, things: Things) -> Topic | None:
    if len(things) < 2:
        return None
    one, other = (things[index] for index in rng.permutation(len(things))[:2])
    topic = _pick(rng, tuple(RELATIONS))
    first = _reference(rng, things, one)
    second = _reference(rng, things, other)
    return topic, first, second


def _propose_nearest(rng: np.random.Generator, things: Things) -> Topic | None:
    return 'nearest', _pick(rng, tuple(PLACES))


def _propose_list(rng: np.random.Generator, things: Things) -> Topic | None:
    return ('list',)


def _propose_missing(rng: np.random.Generator, things: Things) -> Topic | None:
    topic = _pick(rng, ('colour', 'shape', 'where'))
    if topic == 'where':
        what = _described(rng, things, wanted=False)
        return (topic, what) if what and what not in COLOURS else None
    return topic, _pick(rng, SHAPES if topic == 'colour' else tuple(COLOURS))


def _propose_unknown(rng: np.random.Generator, things: Things) -> Topic | None:
    topic = _pick(rng, ('colour', 'where', 'exists', 'count shape', 'shape', 'left of'))
    strange = _pick(rng, _FOREIGN)
    return (topic, strange, _pick(rng, SHAPES)) if topic == 'left of' else (topic, strange)


_PROPOSALS: dict[str, Callable[[np.random.Generator, Things], Topic | None]] = {
    'colour': _propose_colour,
    'shape': _propose_shape,
    'count': _propose_count,
    'exists': _propose_exists,
    'where': _propose_where,
    'relation': _propose_relation,
    'nearest': _propose_nearest,
    'list': _propose_list,
    'missing': _propose_missing,
    'unknown': _propose_unknown,
}
