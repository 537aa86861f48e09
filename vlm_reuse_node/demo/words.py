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

"""The words of questions and answers about the tabletop: what can be asked in which wordings, and what is answered."""

from vlm_reuse_node.demo.tabletop import COLOURS, HEIGHT, SHAPES, WIDTH

SINGLE_KINDS = ('colour', 'shape', 'count', 'exists', 'where', 'relation', 'nearest', 'list', 'missing', 'unknown')
WINDOW_KINDS = ('appeared', 'left', 'moved', 'direction')
NOTHING = 'nothing'
NONE = 'there is none'
UNKNOWN = 'sorry i do not know that word'
STAYED = 'it did not move'
YES_NO = ('yes', 'no')
COUNTS = tuple(str(number) for number in range(6))
PLACES: dict[str, tuple[float, float]] = {
    'top left corner': (0, 0),
    'top right corner': (WIDTH, 0),
    'bottom left corner': (0, HEIGHT),
    'bottom right corner': (WIDTH, HEIGHT),
    'center': (WIDTH / 2, HEIGHT / 2),
    'middle': (WIDTH / 2, HEIGHT / 2),
}
SIDES = tuple(f'{row} {column}' for row in ('top', 'bottom') for column in ('left', 'right'))
DIRECTIONS = ('left', 'right', 'up', 'down')
ANY = ('object', 'thing')
# By topic. {0} and {1} are what is asked about, {any} is one of ANY.
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


def names() -> tuple[str, ...]:
    """Return every thing there can be, as 'colour shape'."""
    return tuple(f'{colour} {shape}' for colour in COLOURS for shape in SHAPES)


def vocabulary() -> list[str]:
    """Return every word of the wordings and the answers, sorted."""
    texts = [*names(), *COUNTS, *SIDES, *PLACES, *DIRECTIONS, *YES_NO, NOTHING, NONE, UNKNOWN, STAYED, 'and', *ANY]
    texts += [wording.replace('{any}s', '').replace('{0}s', '') for group in WORDINGS.values() for wording in group]
    return sorted({word for text in texts for word in text.split() if '{' not in word})
