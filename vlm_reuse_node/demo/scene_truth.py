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

"""The true answers to questions about the tabletop.

Only what a person could answer without hesitation has one: an object near the middle line has no side, two objects
about as far from a place have no nearest. The margins are in scene units.
"""

from collections.abc import Callable, Sequence

import numpy as np

from vlm_reuse_node.demo.tabletop import HEIGHT, WIDTH, Thing
from vlm_reuse_node.demo.words import NONE, NOTHING, PLACES, STAYED

MIDDLE_MARGIN = 14
RELATION_MARGIN = 24
NEAREST_MARGIN = 28
LIST_MARGIN = 14
STAYED_MARGIN = 20
# The axis, and 1 where the first thing has the smaller coordinate.
RELATIONS = {'left of': ('x', 1), 'right of': ('x', -1), 'above': ('y', 1), 'below': ('y', -1)}


def single_truth(topic: str, parts: tuple[str, ...], things: tuple[Thing, ...]) -> str | None:
    """Return the true answer about one picture, or None where there is none: ambiguous, or too close to call.

    topic: a key of `words.WORDINGS` for single pictures. parts: what is asked about.
    """
    if topic.startswith('count'):
        return str(sum(fits(thing, parts[0]) if parts else True for thing in things))
    if topic == 'exists':
        return 'yes' if any(fits(thing, parts[0]) for thing in things) else 'no'
    if topic == 'list':
        return _row_of_names(things)
    if topic == 'nearest':
        return _nearest_name(parts[0], things)
    if topic in RELATIONS:
        first, second = parts
        return _relation(topic, find(first, things), find(second, things))
    found = [thing for thing in things if fits(thing, parts[0])]
    if len(found) != 1:
        return None if found else NONE
    return ATTRIBUTES[topic](found[0]) or None


def window_truth(topic: str, parts: tuple[str, ...], first: tuple[Thing, ...], last: tuple[Thing, ...]) -> str | None:
    """Return the true answer about what changed from the first picture to the last, or None where there is none.

    topic: one of `words.WINDOW_KINDS`.
    """
    places = {(thing.x, thing.y, thing.shape): thing.colour for thing in first}
    if any(places.get((thing.x, thing.y, thing.shape), thing.colour) != thing.colour for thing in last):
        return None  # something changed its colour: did it leave and another come?
    before = {thing.name: thing for thing in first}
    after = {thing.name: thing for thing in last}
    if topic == 'direction':
        return _direction_of(parts[0], before, after)
    changed = {
        'appeared': [name for name in after if name not in before],
        'left': [name for name in before if name not in after],
        'moved': [name for name in after if name in before and direction(before[name], after[name])],
    }[topic]
    return None if len(changed) > 1 else changed[0] if changed else NOTHING


def direction(before: Thing, after: Thing) -> str:
    """Return left, right, up or down; '' for a thing that stayed."""
    right = after.x - before.x
    down = after.y - before.y
    if max(abs(right), abs(down)) < STAYED_MARGIN:
        return ''
    if abs(right) > abs(down):
        return 'right' if right > 0 else 'left'
    return 'down' if down > 0 else 'up'


def fits(thing: Thing, what: str) -> bool:
    """Whether a thing is meant by a colour, a shape, or both."""
    return set(what.split()) <= {thing.colour, thing.shape}


def find(what: str, things: Sequence[Thing]) -> Thing | None:
    """Return the only thing that is meant, or None."""
    found = [thing for thing in things if fits(thing, what)]
    return found[0] if len(found) == 1 else None


def _direction_of(what: str, before: dict[str, Thing], after: dict[str, Thing]) -> str | None:
    """Where the thing went that is in both pictures; it must be the only one of that description in either."""
    thing = find(what, tuple({**before, **after}.values()))
    if thing is None or thing.name not in before or thing.name not in after:
        return None
    return direction(before[thing.name], after[thing.name]) or STAYED


def _row(thing: Thing) -> str:
    off = thing.y - HEIGHT / 2
    return '' if abs(off) < MIDDLE_MARGIN else 'top' if off < 0 else 'bottom'


def _column(thing: Thing) -> str:
    off = thing.x - WIDTH / 2
    return '' if abs(off) < MIDDLE_MARGIN else 'left' if off < 0 else 'right'


def _corner(thing: Thing) -> str:
    row = _row(thing)
    column = _column(thing)
    return f'{row} {column}' if row and column else ''


def _relation(topic: str, one: Thing | None, other: Thing | None) -> str | None:
    if one is None or other is None or one == other:
        return None
    axis, sign = RELATIONS[topic]
    ahead = sign * (getattr(other, axis) - getattr(one, axis))
    return None if abs(ahead) < RELATION_MARGIN else 'yes' if ahead > 0 else 'no'


def _nearest_name(place: str, things: Sequence[Thing]) -> str | None:
    x, y = PLACES[place]
    near = sorted((float(np.hypot(thing.x - x, thing.y - y)), thing.name) for thing in things)
    if not near or (len(near) > 1 and near[1][0] - near[0][0] < NEAREST_MARGIN):
        return None
    return near[0][1]


def _row_of_names(things: Sequence[Thing]) -> str | None:
    """All things, from left to right."""
    row = sorted(things, key=lambda thing: thing.x)
    if any(right.x - left.x < LIST_MARGIN for left, right in zip(row, row[1:])):
        return None
    return ' and '.join(thing.name for thing in row) or NOTHING


# What can be said of a thing; '' where it is too close to call.
ATTRIBUTES: dict[str, Callable[[Thing], str]] = {
    'colour': lambda thing: thing.colour,
    'shape': lambda thing: thing.shape,
    'where': _corner,
    'side row': _row,
    'side column': _column,
}
