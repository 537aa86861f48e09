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

"""Stand-ins for caches, on rows that are numbers: what they hand to a layer, and what they leave behind."""

import copy

import mlx.core as mx
import numpy as np
import pytest
from flat_rows import in_order
from mlx_vlm.models.cache import KVCache, RotatingKVCache

pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_reuse_node.model import kv_cache, pass_cache
from vlm_reuse_node.model.token_tree import NO_ROWS, Block, TokenTree

WIDTH = 2


def rows(numbers):
    """Keys and values of tokens with these numbers, mx (1, 2, tokens, WIDTH) each."""
    keys = mx.broadcast_to(mx.array(np.array(numbers, np.float32))[None, None, :, None], (1, 2, len(numbers), WIDTH))
    return keys, -keys


def numbers(pair):
    """The numbers of rows; keys and values are of the same ones."""
    keys, values = (np.array(each) for each in pair)
    assert keys.shape == values.shape and (keys == -values).all() and (keys == keys[:, :1, :, :1]).all()
    return keys[0, 0, :, 0].tolist()


@st.composite
def caches(draw):
    """A flat cache and rings, filled by the same calls; and what they were before the last ones, the live picture's."""
    cache = [
        KVCache(),
        *(RotatingKVCache(max_size=draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16]))) for _ in range(2)),
    ]
    held = 0

    def fill(most):
        nonlocal held
        for count in draw(st.lists(st.integers(1, 5), max_size=most)):
            for part in cache:
                part.update_and_fetch(*rows(range(held, held + count)))
            held += count

    fill(5)
    before = kv_cache.take(cache).parts
    start = held
    fill(3)
    if held:
        kv_cache.take(cache)
    return cache, before, start, held


@settings(max_examples=200)
@given(caches(), st.data())
def test_a_layer_gets_all_rows_in_order_and_the_cache_keeps_those_that_follow(given_caches, data):
    cache, before, start, held = given_caches
    slot = held - start
    may_rewrite = slot and pass_cache.can_rewrite(cache, slot)
    chosen = data.draw(st.lists(st.integers(start, held - 1), min_size=1, max_size=4)) if may_rewrite else []
    chosen = data.draw(st.sampled_from([chosen, []]))
    written = np.array(sorted(chosen), np.int64) if chosen else NO_ROWS
    added = data.draw(st.sampled_from([0, 1, 2, 5] if len(written) else [1, 2, 5]))
    tree = TokenTree.of(held, [Block([0] * added)] if added else [], written)
    kept, digests = data.draw(st.integers(0, added)), [copy.deepcopy(vars(part)) for part in cache]
    parts = pass_cache.stand_ins(cache, tree, list(before) if data.draw(st.booleans()) or len(written) else None)
    new = [100 + row for row in written.tolist()] + list(range(held, held + added))
    expected = [100 + row if row in written else row for row in range(held)] + list(range(held, held + added))
    for part, stand_in in zip(cache, parts):
        window = part.max_size if type(part) is RotatingKVCache else None
        mask = np.array(stand_in.make_mask(len(new), window_size=window))
        found = numbers(stand_in.update_and_fetch(*rows(new)))
        assert found == expected[len(expected) - len(found) :]
        assert mask.shape == (len(new), len(found)) and stand_in.offset.tolist() == tree.places.tolist()
        # Every token finds in the rows all that its window shows.
        assert mask.sum(axis=1).tolist() == [min(place + 1, window or place + 1) for place in tree.places.tolist()]
        assert np.array_equal(np.array(stand_in.make_mask(len(new))), mask)  # a ring knows its window
    for count in (data.draw(st.integers(0, added)), kept):
        pass_cache.keep(parts, count)
    for part, was in zip(cache, digests):
        assert part.offset == held + kept
        left = numbers(in_order(part)) if part.offset else []
        assert left == expected[: held + kept][-len(left) :] and len(left) == min(
            part.offset, getattr(part, 'max_size', part.offset)
        )
        if type(part) is RotatingKVCache and not added and not len(written):
            assert vars(part).keys() == was.keys()
        part.update_and_fetch(*rows([7.5]))  # and it goes on
        left = numbers(in_order(part))
        assert left == [*expected[: held + kept], 7.5][-len(left) :]


def test_a_ring_that_nothing_was_kept_in_is_the_object_that_it_was():
    ring = RotatingKVCache(max_size=4)
    for number in range(6):
        ring.update_and_fetch(*rows([number]))
    keys, index = ring.keys, ring._idx
    (part,) = pass_cache.stand_ins([ring], TokenTree.of(6, [Block([0, 0])]))
    part.update_and_fetch(*rows([6, 7]))
    part.keep(0)
    assert ring.keys is keys and ring._idx == index
    part.keep(2)
    part.keep(0)
    assert numbers(in_order(ring)) == [2, 3, 4, 5] and ring.offset == 6


@pytest.mark.parametrize('tokens', [1, 300])
def test_arrays_of_a_call_are_all_that_it_wrote(tokens):
    cache = [KVCache(), RotatingKVCache(max_size=4)]
    parts = pass_cache.stand_ins(cache, TokenTree.of(0, [Block([0] * tokens)]))
    for part in parts:
        part.update_and_fetch(*rows(range(tokens)))
        assert all(array.shape[2] >= tokens for array in part.arrays) and len(part.arrays) == 2
