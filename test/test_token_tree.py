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

"""Which tokens of one call see which, against the definition: one question for each pair of a token and a row."""

import numpy as np
import pytest

pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from hypothesis import given
from hypothesis import strategies as st

from vlm_reuse_node.model.token_tree import Block, TokenTree


@st.composite
def calls(draw):
    """Tokens in the cache, blocks behind them, rows written over, cells that see both ways, a first row, a window."""
    held = draw(st.integers(0, 12))
    blocks = []
    for number in range(draw(st.integers(0, 5))):
        ids = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
        blocks.append(Block(ids, draw(st.integers(-1, number - 1))))
    rows = sorted(draw(st.lists(st.integers(0, held - 1), max_size=6))) if held else []  # a row may come twice
    first = draw(st.integers(0, held))
    last = held + sum(len(block.ids) for block in blocks)
    picture = range(*sorted((draw(st.integers(0, last)), draw(st.integers(0, last)))))
    two_way = np.array(picture if draw(st.booleans()) else [], np.int64)
    window = draw(st.none() | st.integers(1, 15))
    return held, blocks, np.array(rows, np.int64), two_way, first, window


class Definition:
    """The sequence that each token of a call is the last one of: the rows of the cache and of the call, in order."""

    def __init__(self, held, blocks, rows):
        ends, added = [], []
        for ids, parent, _ in blocks:
            before = ends[parent] if parent >= 0 else list(range(held))
            for _ in ids:
                before = [*before, held + len(added)]
                added.append(before)
            ends.append(before)
        self.sequences = [list(range(row + 1)) for row in rows] + added

    def sees(self, token, row, two_way, window):
        sequence = self.sequences[token]
        inside = row in sequence and (window is None or len(sequence) - 1 - sequence.index(row) < window)
        return inside or (sequence[-1] in two_way and row in two_way)


@given(calls())
def test_a_token_sees_its_own_sequence_inside_the_window_and_all_cells_of_its_picture(call):
    held, blocks, rows, two_way, first, window = call
    tree, definition = TokenTree.of(held, blocks, rows, two_way), Definition(held, blocks, rows)
    added = sum(len(block.ids) for block in blocks)
    expected = [
        [definition.sees(token, row, two_way, window) for row in range(first, held + added)]
        for token in range(len(rows) + added)
    ]
    mask = tree.mask(first, window)
    assert mask.dtype == bool and mask.shape == (len(rows) + added, held - first + added)
    assert mask.tolist() == expected


@given(calls())
def test_the_place_of_a_token_is_how_many_precede_it(call):
    held, blocks, rows, *_ = call
    tree, definition = TokenTree.of(held, blocks, rows), Definition(held, blocks, rows)
    assert tree.places.tolist() == [len(sequence) - 1 for sequence in definition.sequences]
    assert tree.places.dtype == np.int32  # as the models' own positions


def test_a_whole_cache_without_a_window_is_what_a_call_sees_unless_it_is_told():
    blocks = [Block([1, 2]), Block([3], 0), Block([4], 0)]
    tree = TokenTree.of(3, blocks)
    assert np.array_equal(tree.mask(), tree.mask(0, None)) and not len(tree.rows) and not len(tree.two_way)
    assert tree.mask()[2:, 5:].tolist() == [[True, False], [False, True]]


@given(calls(), st.data())
def test_what_a_block_sees_does_not_depend_on_the_blocks_that_come_later(call, data):
    held, blocks, rows, _, first, window = call
    fewer = blocks[: data.draw(st.integers(0, len(blocks)))]
    alone, tree = TokenTree.of(held, fewer, rows), TokenTree.of(held, blocks, rows)
    tokens, columns = alone.mask(first, window).shape
    together = tree.mask(first, window)
    assert np.array_equal(together[:tokens, :columns], alone.mask(first, window))
    assert not together[:tokens, columns:].any()
