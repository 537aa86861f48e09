"""What can be asked about the tabletop, in several wordings, with the true answer.

Only what a person could answer without hesitation is asked: an object near the middle line has no side, two objects
about as far from a place have no nearest. The margins are below, in scene units.
"""

from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.demo.tabletop import COLOURS, HEIGHT, SHAPES, WIDTH, Thing

MIDDLE_MARGIN = 14
RELATION_MARGIN = 24
NEAREST_MARGIN = 28
LIST_MARGIN = 14
STAYED_MARGIN = 20

SINGLE_KINDS = ('colour', 'shape', 'count', 'exists', 'where', 'relation', 'nearest', 'list', 'missing', 'unknown')
WINDOW_KINDS = ('appeared', 'left', 'moved', 'direction')
NOTHING, NONE, UNKNOWN, STAYED = 'nothing', 'there is none', 'sorry i do not know that word', 'it did not move'
YES_NO = ('yes', 'no')
COUNTS = tuple(str(number) for number in range(6))
PLACES = {
    'top left corner': (0, 0),
    'top right corner': (WIDTH, 0),
    'bottom left corner': (0, HEIGHT),
    'bottom right corner': (WIDTH, HEIGHT),
    'center': (WIDTH / 2, HEIGHT / 2),
    'middle': (WIDTH / 2, HEIGHT / 2),
}
SIDES = tuple(f'{row} {column}' for row in ('top', 'bottom') for column in ('left', 'right'))
DIRECTIONS = ('left', 'right', 'up', 'down')
_ANY = ('object', 'thing')
_RELATIONS = {'left of': ('x', 1), 'right of': ('x', -1), 'above': ('y', 1), 'below': ('y', -1)}

WORDINGS = {
    'colour': (
        'what color is the {0}',
        'which color is the {0}',
        'what is the color of the {0}',
        'tell me the color of the {0}',
        'the {0} has what color',
        'which color does the {0} have',
    ),
    'shape': (
        'what shape is the {0} {any}',
        'what is the shape of the {0} {any}',
        'which shape is the {0} {any}',
        'what is the {0} {any}',
        'which shape does the {0} {any} have',
        'tell me the shape of the {0} {any}',
    ),
    'count all': (
        'how many {any}s are there',
        'count the {any}s',
        'how many {any}s do you see',
        'how many {any}s are on the table',
        'what is the number of {any}s',
        'how many {any}s can you see',
    ),
    'count colour': (
        'how many {0} {any}s are there',
        'count the {0} {any}s',
        'how many {0} {any}s do you see',
        'how many {any}s are {0}',
        'what is the number of {0} {any}s',
        'how many {0} {any}s are on the table',
    ),
    'count shape': (
        'how many {0}s are there',
        'count the {0}s',
        'how many {0}s do you see',
        'what is the number of {0}s',
        'how many {0}s are on the table',
        'how many {0}s can you see',
    ),
    'exists': (
        'is there a {0}',
        'is there a {0} on the table',
        'do you see a {0}',
        'can you see a {0}',
        'is a {0} there',
        'are there any {0}s',
    ),
    'where': (
        'where is the {0}',
        'where do you see the {0}',
        'what is the position of the {0}',
        'in which corner is the {0}',
        'where on the table is the {0}',
        'tell me where the {0} is',
    ),
    'side column': (
        'is the {0} on the left or on the right',
        'is the {0} left or right',
        'on which side is the {0} left or right',
    ),
    'side row': (
        'is the {0} at the top or at the bottom',
        'is the {0} top or bottom',
        'on which side is the {0} top or bottom',
    ),
    'left of': ('is the {0} left of the {1}', 'is the {0} to the left of the {1}', 'is the {0} on the left of the {1}'),
    'right of': (
        'is the {0} right of the {1}',
        'is the {0} to the right of the {1}',
        'is the {0} on the right of the {1}',
    ),
    'above': ('is the {0} above the {1}', 'is the {0} over the {1}', 'is the {0} higher than the {1}'),
    'below': ('is the {0} below the {1}', 'is the {0} under the {1}', 'is the {0} underneath the {1}'),
    'nearest': (
        'what is nearest to the {0}',
        'what is closest to the {0}',
        'which {any} is nearest to the {0}',
        'which {any} is closest to the {0}',
        'what is the nearest {any} to the {0}',
        'what {any} is near the {0}',
    ),
    'list': (
        'what do you see',
        'what {any}s are there',
        'list the {any}s',
        'what is on the table',
        'which {any}s are on the table',
        'describe the table',
    ),
    'appeared': (
        'what appeared',
        'which {any} appeared',
        'what is new',
        'what came',
        'what was added',
        'which {any} is new',
    ),
    'left': (
        'what left',
        'which {any} left',
        'what disappeared',
        'what is gone',
        'what was removed',
        'which {any} is gone',
    ),
    'moved': (
        'what moved',
        'which {any} moved',
        'what has moved',
        'which {any} has moved',
        'what was moved',
        'which {any} was moved',
    ),
    'direction': (
        'which way did the {0} move',
        'in which direction did the {0} move',
        'where did the {0} move',
        'in what direction did the {0} move',
        'which direction did the {0} move',
        'how did the {0} move',
    ),
}
_FOREIGN = ('zebra', 'spoon', 'pyramid', 'turquoise', 'quickly', 'banana')


@dataclass(frozen=True)
class Asked:
    """One question: its kind, its wording, the true answer, and what the answer could have been (empty: free text).

    topic and parts say what is asked, whatever the wording: `truth(topic, parts, things)` answers it for other scenes.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    topic: str = ''
    parts: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """Every thing there can be, as 'colour shape'."""
    return tuple(f'{colour} {shape}' for colour in COLOURS for shape in SHAPES)


def vocabulary() -> list[str]:
    """Every word of the wordings and the answers, sorted."""
    texts = [*names(), *COUNTS, *SIDES, *PLACES, *DIRECTIONS, *YES_NO, NOTHING, NONE, UNKNOWN, STAYED, 'and', *_ANY]
    texts += [wording.replace('{any}s', '').replace('{0}s', '') for group in WORDINGS.values() for wording in group]
    return sorted({word for text in texts for word in text.split() if '{' not in word})


# --- the truth --------------------------------------------------------------------------------------------------------


def truth(topic: str, parts: tuple[str, ...], things: tuple[Thing, ...]) -> str | None:
    """The right answer about one picture, or None where nobody should be asked (ambiguous, or too close to call)."""
    if topic.startswith('count'):
        return str(sum(_fits(thing, parts[0]) if parts else True for thing in things))
    if topic == 'exists':
        return 'yes' if any(_fits(thing, parts[0]) for thing in things) else 'no'
    if topic == 'list':
        return _row_of_names(things)
    if topic == 'nearest':
        return _nearest_name(parts[0], things)
    if topic in _RELATIONS:
        return _relation(topic, *(find(part, things) for part in parts))
    found = [thing for thing in things if _fits(thing, parts[0])]
    if len(found) != 1:
        return None if found else NONE
    return _ATTRIBUTES[topic](found[0]) or None


def window_truth(topic: str, parts: tuple[str, ...], first: tuple[Thing, ...], last: tuple[Thing, ...]) -> str | None:
    """The right answer about what changed from the first picture to the last, or None where nobody should be asked."""
    places = {(thing.x, thing.y, thing.shape): thing.colour for thing in first}
    if any(places.get((thing.x, thing.y, thing.shape), thing.colour) != thing.colour for thing in last):
        return None  # something changed its colour: did it leave and another come?
    before, after = {thing.name: thing for thing in first}, {thing.name: thing for thing in last}
    if topic == 'direction':
        name = find(parts[0], tuple({**before, **after}.values()))
        both = name and name.name in before and name.name in after
        return (direction(before[name.name], after[name.name]) or STAYED) if both else None
    changed = {
        'appeared': [name for name in after if name not in before],
        'left': [name for name in before if name not in after],
        'moved': [name for name in after if name in before and direction(before[name], after[name])],
    }[topic]
    return None if len(changed) > 1 else changed[0] if changed else NOTHING


def direction(before: Thing, after: Thing) -> str:
    """left, right, up or down; '' for a thing that stayed."""
    right, down = after.x - before.x, after.y - before.y
    if max(abs(right), abs(down)) < STAYED_MARGIN:
        return ''
    if abs(right) > abs(down):
        return 'right' if right > 0 else 'left'
    return 'down' if down > 0 else 'up'


def _fits(thing: Thing, what: str) -> bool:
    return set(what.split()) <= {thing.colour, thing.shape}


def find(what: str, things) -> Thing | None:
    """The only thing that fits, or None."""
    found = [thing for thing in things if _fits(thing, what)]
    return found[0] if len(found) == 1 else None


def _row(thing: Thing) -> str:
    off = thing.y - HEIGHT / 2
    return '' if abs(off) < MIDDLE_MARGIN else 'top' if off < 0 else 'bottom'


def _column(thing: Thing) -> str:
    off = thing.x - WIDTH / 2
    return '' if abs(off) < MIDDLE_MARGIN else 'left' if off < 0 else 'right'


def _corner(thing: Thing) -> str:
    return f'{_row(thing)} {_column(thing)}' if _row(thing) and _column(thing) else ''


_ATTRIBUTES = {
    'colour': lambda thing: thing.colour,
    'shape': lambda thing: thing.shape,
    'where': _corner,
    'side row': _row,
    'side column': _column,
}


def _relation(topic, one, other):
    axis, sign = _RELATIONS[topic]
    if one is None or other is None or one == other:
        return None
    ahead = sign * (getattr(other, axis) - getattr(one, axis))
    return None if abs(ahead) < RELATION_MARGIN else 'yes' if ahead > 0 else 'no'


def _nearest_name(place, things):
    x, y = PLACES[place]
    near = sorted((float(np.hypot(thing.x - x, thing.y - y)), thing.name) for thing in things)
    if not near or len(near) > 1 and near[1][0] - near[0][0] < NEAREST_MARGIN:
        return None
    return near[0][1]


def _row_of_names(things):
    """All things, from left to right."""
    row = sorted(things, key=lambda thing: thing.x)
    if any(right.x - left.x < LIST_MARGIN for left, right in zip(row, row[1:])):
        return None
    return ' and '.join(thing.name for thing in row) or NOTHING


# --- asking -----------------------------------------------------------------------------------------------------------


def single_question(rng: np.random.Generator, things: tuple[Thing, ...], kind: str) -> Asked | None:
    """A question of this kind about one picture, or None where the picture does not allow one."""
    proposed = _PROPOSALS[kind](rng, things)
    if proposed is None:
        return None
    topic, *parts = proposed
    answer = UNKNOWN if kind == 'unknown' else truth(topic, tuple(parts), things)
    if answer is None or (answer == NONE) != (kind == 'missing'):
        return None
    return Asked(kind, _say(rng, topic, *parts), answer, _choices(topic, answer, things), topic, tuple(parts))


def window_question(
    rng: np.random.Generator, first: tuple[Thing, ...], last: tuple[Thing, ...], kind: str
) -> Asked | None:
    """A question of this kind about what changed between two pictures, or None where there is none to ask."""
    parts = ()
    if kind == 'direction':
        before = {thing.name: thing for thing in first}
        both = [thing for thing in last if thing.name in before]
        went = [thing for thing in both if direction(before[thing.name], thing)]
        if not both:
            return None
        everything = tuple({**before, **{thing.name: thing for thing in last}}.values())
        parts = (_reference(rng, everything, _pick(rng, went if went and rng.random() < 0.85 else both)),)
    answer = window_truth(kind, parts, first, last)
    choices = (*DIRECTIONS, STAYED) if kind == 'direction' else (*names(), NOTHING)
    return answer and Asked(kind, _say(rng, kind, *parts), answer, choices, kind, parts)


def _choices(topic, answer, things):
    """What a planner would offer as choices."""
    if answer in (NONE, UNKNOWN) or topic == 'list':
        return ()
    if topic == 'nearest':
        return tuple(thing.name for thing in things)
    return COUNTS if topic.startswith('count') else YES_NO if topic in _RELATIONS else _CHOICES[topic]


def _say(rng, topic: str, *parts: str) -> str:
    template = WORDINGS[topic][rng.integers(len(WORDINGS[topic]))]
    if topic == 'exists' and parts[0] in COLOURS:
        parts = (f'{parts[0]} {_pick(rng, _ANY)}',)
    return template.format(*parts, any=_pick(rng, _ANY))


def _pick(rng, items):
    return items[rng.integers(len(items))]


def _only(things, attribute: str) -> list[str]:
    """Values of the attribute that exactly one thing has."""
    values = [getattr(thing, attribute) for thing in things]
    return [value for value in values if values.count(value) == 1]


def _reference(rng, things, thing: Thing) -> str:
    """A name that means this thing alone: its shape where that is enough (half of the time), else colour and shape."""
    return thing.shape if thing.shape in _only(things, 'shape') and rng.random() < 0.5 else thing.name


def _propose_attribute(topic: str, attribute: str):
    def propose(rng, things):
        values = _only(things, attribute)
        return (topic, _pick(rng, values)) if values else None

    return propose


def _propose_count(rng, things):
    topic = _pick(rng, ('count all', 'count colour', 'count shape'))
    if topic == 'count all':
        return (topic,)
    attribute = topic.split()[1]
    there = sorted({getattr(thing, attribute) for thing in things})
    anything = tuple(COLOURS) if attribute == 'colour' else SHAPES
    return topic, _pick(rng, there if there and rng.random() < 0.7 else anything)


def _propose_exists(rng, things):
    what = _described(rng, things, wanted=rng.random() < 0.5)
    return what and ('exists', what)


def _described(rng, things, wanted: bool) -> str | None:
    """A colour, a shape or both that is (or is not) on the table; a missing one is built from what is there."""
    which = _pick(rng, ('name', 'name', 'shape', 'colour'))
    options = {'name': names(), 'shape': SHAPES, 'colour': tuple(COLOURS)}[which]
    fitting = [what for what in options if any(_fits(thing, what) for thing in things) == wanted]
    seen = {word for thing in things for word in thing.name.split()}
    alike = [what for what in fitting if all(word in seen for word in what.split())]
    alike = alike or [what for what in fitting if any(word in seen for word in what.split())]
    if alike and rng.random() < 0.7:
        return _pick(rng, alike)
    return _pick(rng, fitting) if fitting else None


def _propose_where(rng, things):
    topic = 'where' if rng.random() < 0.6 else _pick(rng, ('side row', 'side column'))
    clear = [thing for thing in things if _ATTRIBUTES[topic](thing)]
    return (topic, _reference(rng, things, _pick(rng, clear))) if clear else None


def _propose_relation(rng, things):
    if len(things) < 2:
        return None
    one, other = (things[index] for index in rng.permutation(len(things))[:2])
    return _pick(rng, tuple(_RELATIONS)), _reference(rng, things, one), _reference(rng, things, other)


def _propose_missing(rng, things):
    topic = _pick(rng, ('colour', 'shape', 'where'))
    if topic == 'where':
        what = _described(rng, things, wanted=False)
        return None if what in COLOURS else what and (topic, what)
    return topic, _pick(rng, SHAPES if topic == 'colour' else tuple(COLOURS))


def _propose_unknown(rng, things):
    topic, strange = _pick(rng, ('colour', 'where', 'exists', 'count shape', 'shape', 'left of')), _pick(rng, _FOREIGN)
    return (topic, strange, _pick(rng, SHAPES)) if topic == 'left of' else (topic, strange)


_PROPOSALS = {
    'colour': _propose_attribute('colour', 'shape'),
    'shape': _propose_attribute('shape', 'colour'),
    'count': _propose_count,
    'exists': _propose_exists,
    'where': _propose_where,
    'relation': _propose_relation,
    'nearest': lambda rng, things: ('nearest', _pick(rng, tuple(PLACES))),
    'list': lambda rng, things: ('list',),
    'missing': _propose_missing,
    'unknown': _propose_unknown,
}
_CHOICES = {
    'colour': tuple(COLOURS),
    'shape': SHAPES,
    'exists': YES_NO,
    'where': SIDES,
    'side row': ('top', 'bottom'),
    'side column': ('left', 'right'),
}
