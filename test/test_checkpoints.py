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

"""Patches of a recurrent model: back to a checkpoint before the first changed cell, and everything behind it anew.

The reference is mlx-vlm alone: its own model, without our layers around its recurrent ones, prefills all pictures'
features from nothing, mixed as they are, in calls of the same chunks.
"""

from functools import partial

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.models.cache import ArraysCache
from rounding import WIDE
from stopping import stopping_at
from tiny_model import picture

from vlm_reuse_node.model import kv_cache, noise
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.live_slot import MOST_CHECKPOINTS
from vlm_reuse_node.session.turn import Halt

CELLS, COLUMNS = 12, 4  # of a picture of 640 x 480: three rows
TALL = (1280, 320)  # eight rows of two cells


@pytest.fixture(scope='module')
def vlm(recurrent):
    return recurrent


@pytest.fixture(scope='module')
def upstream(recurrent_dir):
    """The model as mlx-vlm loads it."""
    return mlx_vlm.load(str(recurrent_dir))[0]


def seen(vlm, seed, size=(480, 640), keep=True):
    return EncodedFrame.see(vlm, picture(seed, size=size), keep=keep)


def built(vlm, *frames, later=False):
    """A state of these pictures, whose last one can be patched."""
    return states.build(vlm, partial(vlm.template, ''), frames, later=later)


def patch(vlm, state, seed, cells, **given):
    """Replace these cells by those of another picture. Returns the tokens computed."""
    cells = np.array(cells)
    newer = state.live.with_cells(vlm, picture(seed, size=state.live.frame.size), cells)
    return state.rewrite(newer, cells, **given)


def arrays_of(cache, tokens=None):
    """Recurrent states, and the rows of attention layers."""
    return [
        np.array(array)
        for part in cache
        for array in (
            part.cache
            if isinstance(part, ArraysCache)
            else (kept[..., : tokens or part.offset, :] for kept in (part.keys, part.values))
        )
    ]


def bits(state):
    """All that a state holds: its cache, and what it can go back to."""
    points = [state._snapshot[0], state._before_live[0], *state._slot.checkpoints]
    return [*arrays_of(state.cache), *(np.array(each) for point in points for each in kv_cache._arrays(point.parts))]


def same(one, other):
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def from_nothing(upstream, vlm, state, features=None):
    """The arrays of mlx-vlm's own model behind these features, chunk by chunk as a state is prefilled."""
    language, grids = upstream.language_model, [each.grid for each in state.frames]
    ids = vlm.family.expand(state.template.prefix, grids)
    patches = mx.array([[1, 2 * grid.rows, 2 * grid.columns] for grid in grids])
    positions, _ = language.get_rope_index(mx.array([ids]), image_grid_thw=patches)
    embeddings = language.model.embed_tokens(mx.array([ids]))
    is_cell = np.array(ids) == upstream.config.image_token_id
    given = mx.concatenate([each.features for each in state.frames] if features is None else features)
    embeddings[0, mx.array(np.flatnonzero(is_cell))] = given
    cache, ends = language.make_cache(), vlm.family.slots(ids)
    for start, end in zip([0, *ends], ends):
        for first in range(start, end, vlms.PREFILL_CHUNK):
            part = slice(first, min(end, first + vlms.PREFILL_CHUNK))
            language.model(None, inputs_embeds=embeddings[:, part], cache=cache, position_ids=positions[:, :, part])
            mx.eval([each.state for each in cache])
    return arrays_of(cache)


def difference(upstream, vlm, state):
    """How far a state is from the reference, and where noise ends."""
    given = [each.features for each in state.frames]
    bound = noise.bound(given, lambda features: from_nothing(upstream, vlm, state, features))
    return noise.apart(arrays_of(state.cache), from_nothing(upstream, vlm, state)), bound


def equals_cold(upstream, vlm, state):
    apart, bound = difference(upstream, vlm, state)
    return apart < bound


def question(state):
    template = state.template
    choices = template.choices(['red', 'yes it is'])
    return [Block(template.question('what is it ?')), *(Block(choice, 0, True) for choice in choices)]


@pytest.mark.parametrize('cells', [[0], [3], [4], [7, 8], [11], [2, 5, 9], list(range(12))])
def test_a_patched_state_is_a_cold_prefill_of_the_mixed_features(vlm, upstream, cells):
    state = built(vlm, seen(vlm, 1), seen(vlm, 2))
    before = arrays_of(state.cache)
    patch(vlm, state, 3, cells)
    apart, bound = difference(upstream, vlm, state)
    assert apart < bound and not state.exact
    assert noise.apart(arrays_of(state.cache), before) > WIDE * bound  # the cells are others


def test_only_what_is_behind_the_last_checkpoint_before_the_first_changed_cell_is_computed(vlm):
    for cells in ([0], [3, 11], [4, 11], [7], [8], [11]):
        state = built(vlm, seen(vlm, 1), seen(vlm, 2))
        rows, prefilled = state._slot.rows, vlm.meter.done.prefill_tokens
        kept = arrays_of(state.cache, tokens=rows[COLUMNS * (cells[0] // COLUMNS)])
        paid = patch(vlm, state, 3, cells)
        start = rows[cells[0] // COLUMNS * COLUMNS] if cells[0] >= COLUMNS else state._before_live[1]
        assert paid == vlm.meter.done.prefill_tokens - prefilled == state.tokens - start
        for old, new in zip(kept, arrays_of(state.cache, tokens=start)):
            assert old.ndim < 4 or old.shape[2] < start or np.array_equal(old[:, :, :start], new[:, :, :start])


@pytest.mark.parametrize('frames', [1, 3])
def test_all_cells_changed_are_the_picture_appended_bit_for_bit(vlm, frames):
    history = [seen(vlm, 10 + number) for number in range(frames - 1)]
    state, newer = built(vlm, *history, seen(vlm, 2)), seen(vlm, 3)
    patch(vlm, state, 4, [6])
    assert state.rewrite(newer, np.arange(CELLS)) == state.tokens - state._before_live[1] and state.exact
    assert same(bits(state), bits(built(vlm, *history, newer)))


def test_a_patched_state_can_be_patched_again_from_every_point(vlm, upstream):
    state = built(vlm, seen(vlm, 1, TALL))
    count = state.live.grid.rows - 1
    points = [point.tokens for point in state._slot.checkpoints]
    assert len(points) == min(count, MOST_CHECKPOINTS)
    for seed, cell in enumerate((9, 3, 14, 0, 12, 15)):
        patch(vlm, state, seed + 2, [cell])
        assert [point.tokens for point in state._slot.checkpoints] == points  # taken again
        assert equals_cold(upstream, vlm, state)


def test_checkpoints_are_the_states_on_the_way(vlm, upstream):
    """Each holds what the tokens before it come to."""
    state = built(vlm, seen(vlm, 1), seen(vlm, 2))
    patch(vlm, state, 3, [5, 10])
    given = [each.features for each in state.frames]
    for point in state._slot.checkpoints:
        ids = vlm.family.expand(state.template.prefix, [each.grid for each in state.frames])[: point.tokens]
        cells = len(vlm.family.cells(ids))

        def compute(features):
            cache, joined = vlm.new_cache(), mx.concatenate(features)
            positions = state._slot.positions[:, : point.tokens]
            vlm.run(cache, ids, positions, embeddings=vlm.family.embed(ids, joined[:cells]))
            return [np.array(array) for part in cache if isinstance(part, ArraysCache) for array in part.cache]

        kept = [np.array(array) for part in point.parts if isinstance(part, dict) for array in part['cache']]
        assert noise.apart(kept, compute(given)) < noise.bound(given, compute)


@pytest.mark.parametrize('joined', [False, True])
@pytest.mark.parametrize('at', [1, 2, 4])
def test_a_patch_that_was_stopped_waits_on_and_loses_nothing(vlm, upstream, monkeypatch, joined, at):
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 5)
    state = built(vlm, seen(vlm, 1), seen(vlm, 2))
    patch(vlm, state, 3, [4], later=True)
    waiting, held = state.waiting, state.held_bytes
    assert waiting == 9  # of the picture's second and third row, and its end
    for _ in range(2):
        try:
            state.read(question(state), check=stopping_at(at)) if joined else state.settle(stopping_at(at))
        except Halt:
            assert state.waiting in (waiting, 0)  # 0: the question was stopped behind it
        state.restore()
    state.settle()
    assert state.waiting == 0 and state.held_bytes == held and equals_cold(upstream, vlm, state)


def test_what_waits_is_replaced_by_a_newer_patch_without_having_been_computed(vlm, upstream):
    for first, second in (([5], [10]), ([10], [5]), ([9], [0])):
        state, before = built(vlm, seen(vlm, 1), seen(vlm, 2)), vlm.meter.done
        patch(vlm, state, 3, first, later=True)
        patch(vlm, state, 4, second, later=True)
        assert vlm.meter.done.prefill_tokens == before.prefill_tokens
        state.settle()
        assert equals_cold(upstream, vlm, state)
    state = built(vlm, seen(vlm, 1), seen(vlm, 2), later=True)  # a whole slot waits
    assert patch(vlm, state, 3, [9], later=True) == state.tokens - state._before_live[1]
    state.settle()
    assert equals_cold(upstream, vlm, state) and len(state._slot.checkpoints) == 2


def test_a_patch_and_a_question_are_one_pass_and_leave_the_patched_state(vlm, upstream):
    state = built(vlm, seen(vlm, 1), seen(vlm, 2))
    patch(vlm, state, 3, [6], later=True)
    passes = vlm.meter.done.passes
    state.read(question(state))
    assert vlm.meter.done.passes == passes + 1 and equals_cold(upstream, vlm, state)
    before = bits(state)
    for _ in range(2):
        (logits,) = state.read(question(state)[:1], stay=1).logits
        vlm.decode(state.cache, logits, state.next_position + len(question(state)[0].ids), 5)
        state.restore()
        assert same(bits(state), before)
    patch(vlm, state, 4, [9])
    assert equals_cold(upstream, vlm, state)


def test_only_the_live_picture_has_checkpoints_and_only_if_it_can_be_patched(vlm):
    state = built(vlm, seen(vlm, 1), seen(vlm, 2))
    assert len(state._slot.checkpoints) == 2 and state.can_rewrite
    assert all(point.tokens > state._before_live[1] for point in state._slot.checkpoints)
    held = state.held_bytes - state.checkpoint_bytes
    assert state.checkpoint_bytes == 2 * kv_cache.snapshot_bytes(state.cache) > 0
    state.drop_live()
    assert not state._slot.checkpoints and not state.can_rewrite and state.restart(0) is None
    state.append(seen(vlm, 2, keep=False))
    assert not state._slot.checkpoints and state.held_bytes < held  # the vision tower's state is not kept either


def test_the_bytes_of_checkpoints_are_told_before_and_after_they_are_taken(vlm):
    state = built(vlm, seen(vlm, 1), seen(vlm, 2), later=True)
    held = state.held_bytes
    state.settle()
    assert state.held_bytes == held
    state.read(question(state))
    patch(vlm, state, 3, [9], later=True)
    held = state.held_bytes
    state.settle()
    assert state.held_bytes == held
    arrays = {id(each): each.nbytes for point in state._slot.checkpoints for each in kv_cache._arrays(point.parts)}
    assert sum(arrays.values()) == state.checkpoint_bytes


@pytest.mark.parametrize('fitting', [0, 1, 2, 3, 100])
def test_fewer_checkpoints_are_kept_where_memory_is_short_and_patches_are_right(vlm, upstream, fitting):
    state = built(vlm, seen(vlm, 1), seen(vlm, 2, TALL))
    most, size = len(state._slot.checkpoints), kv_cache.snapshot_bytes(state.cache)
    assert most == MOST_CHECKPOINTS
    state.limit_checkpoints(fitting * size)
    kept = min(fitting, most)
    assert state.checkpoint_bytes <= kept * size and bool(state._slot.checkpoints) == bool(kept)
    for seed, cell in enumerate((13, 2, 15)):
        patch(vlm, state, 3 + seed, [cell])
        assert state.checkpoint_bytes <= kept * size and equals_cold(upstream, vlm, state)
    state.drop_live()
    state.append(seen(vlm, 3, TALL))
    assert len(state._slot.checkpoints) == kept


def test_chunks_are_cut_at_the_same_places(vlm, upstream, monkeypatch):
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 7)
    state = built(vlm, seen(vlm, 1, TALL), seen(vlm, 2, TALL))
    assert equals_cold(upstream, vlm, state)
    for seed, cell in enumerate((14, 6)):
        patch(vlm, state, 3 + seed, [cell], later=bool(seed))
        state.read(question(state))
        assert equals_cold(upstream, vlm, state)


class Walk:
    """Does anything to a state, in any order."""

    def __init__(self, vlm, seed):
        self.vlm, self.chance = vlm, np.random.default_rng(seed)
        self.state = built(vlm, seen(vlm, 1))
        self.seed = 100

    def step(self):
        state, self.seed = self.state, self.seed + 1
        actions = ['patch'] * 5 + ['append', 'replace', 'ask', 'stop', 'limit', 'twin']
        getattr(self, self.chance.choice(actions))(state if state.has_live else self.live())

    def live(self):
        self.state.append(seen(self.vlm, self.seed))
        return self.state

    def patch(self, state, **given):
        if state.live.vision is None:
            return
        cells = np.sort(self.chance.choice(state.live.grid.cells, self.chance.integers(1, 4), replace=False))
        patch(self.vlm, state, self.seed, cells, later=bool(self.chance.integers(2)), **given)

    def append(self, state):
        if len(state.frames) < 3:
            state.append(self.picture(), later=bool(self.chance.integers(2)))

    def replace(self, state):
        state.drop_live()
        state.append(self.picture(), later=bool(self.chance.integers(2)))

    def ask(self, state):
        state.read(question(state), stay=int(self.chance.integers(2)))
        state.restore()

    def stop(self, state):
        check = stopping_at(self.chance.integers(1, 6))
        for act in (partial(self.patch, state, check=check), partial(state.read, question(state), check=check)):
            try:
                act()
            except Halt:
                pass
            if not state.has_live:
                return

    def limit(self, state):
        state.limit_checkpoints(self.chance.integers(0, 9) * kv_cache.snapshot_bytes(state.cache))

    def twin(self, state):
        """A rollover: a second state of the newer frames takes the place of this one."""
        self.state = states.build(self.vlm, state.template_for, state.frames[-2:])

    def picture(self):
        return seen(self.vlm, self.seed, [(480, 640), TALL][self.chance.integers(2)], keep=self.chance.random() < 0.9)


@pytest.mark.parametrize('seed', range(2))
def test_whatever_happens_to_a_state_it_is_what_its_features_make_it(vlm, upstream, monkeypatch, seed):
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', int(np.random.default_rng(seed).choice([7, 12, 512])))
    walk = Walk(vlm, seed)
    for number in range(60):
        walk.step()
        if number % 6 == 5 and walk.state.has_live:
            walk.state.settle()
            apart, bound = difference(upstream, vlm, walk.state)
            assert apart < bound, number
