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

"""A state is what its frames make it, whatever was appended, stopped, taken out or rewritten on the way."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from rounding import state_bound
from stopping import stopping_at
from tiny_model import picture

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import noise
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.session import encoded_frame as encoded_frames
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.state import State, build, twin
from vlm_reuse_node.session.turn import Halt

CELLS = 12
ALL_CELLS = np.arange(CELLS)


def empty(vlm):
    return State(vlm, partial(vlm.template, ''))


def built(vlm, *seeds, keep=False):
    return build(vlm, partial(vlm.template, ''), [EncodedFrame.see(vlm, picture(seed), keep=keep) for seed in seeds])


def rows(state):
    """Keys and values of every layer up to the snapshot, and no more of them."""
    assert all(layer.offset == state.tokens for layer in state.cache)
    return [np.array(kept[:, :, : state.tokens]) for layer in state.cache for kept in (layer.keys, layer.values)]


def equal(one, other):
    return (
        (one.tokens, one.next_position, one.has_live, one.identity)
        == (other.tokens, other.next_position, other.has_live, other.identity)
    ) and all(map(np.array_equal, rows(one), rows(other)))


def test_nothing_is_in_a_new_state(vlm):
    state = empty(vlm)
    assert (state.frames, state.has_live, state.tokens, state.next_position, state.held_bytes) == ((), False, 0, 0, 0)
    state.drop_live()
    assert not state.can_rewrite and state.tokens == 0


def test_a_frame_pays_for_its_slot_and_the_question_goes_right_behind_it(vlm):
    state, paid = empty(vlm), []
    for count in (1, 2, 3):
        paid.append(state.append(EncodedFrame.see(vlm, picture(count))))
        grids = [each.grid for each in state.frames]
        prompt = vlm.family.expand(vlm.template('', count).prefix, grids)
        assert state.tokens == len(prompt) == sum(paid) and len(state.frames) == count
        assert state.next_position == vlm.family.positions(prompt, grids).max() + 1
        assert np.array_equal(state.live.frame.rgb, picture(count).rgb)
        assert list(state.identity.prefix) == vlm.template('', count).prefix
    assert equal(state, built(vlm, 1, 2, 3))


@pytest.mark.parametrize('at', [1, 2, 3])
def test_a_frame_that_was_stopped_half_way_leaves_the_state(vlm, monkeypatch, at):
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 5)
    state = built(vlm, 1)
    with pytest.raises(Halt):
        state.append(EncodedFrame.see(vlm, picture(2)), stopping_at(at))
    assert equal(state, built(vlm, 1))
    state.append(EncodedFrame.see(vlm, picture(3)))
    assert equal(state, built(vlm, 1, 3))


def blocks(state):
    """A question, and two choices behind it."""
    template = state.template
    return [
        Block(template.question('what is it ?')),
        *(Block(ids, 0) for ids in template.choices(['red', 'yes it is'])),
    ]


def test_a_frame_that_waits_is_in_the_state_and_in_no_cache_until_it_is_computed(vlm):
    state, first, expected = built(vlm, 1), built(vlm, 1).tokens, built(vlm, 1, 2)
    encoded, before, held = EncodedFrame.see(vlm, picture(2)), vlm.meter.done, state.held_bytes
    assert state.append(encoded, later=True) == expected.tokens - first
    assert vlm.meter.done == before and {layer.offset for layer in state.cache} == {first}
    assert (state.tokens, state.next_position, state.identity) == (
        expected.tokens,
        expected.next_position,
        expected.identity,
    )
    assert (
        state.held_bytes == held + encoded.nbytes + encoded.frame.rgb.nbytes
    )  # its rows fit into what the cache has allocated
    state.settle()
    assert (vlm.meter.done - before).passes == 1 and equal(state, expected)
    state.settle()
    assert (vlm.meter.done - before).passes == 1


def test_a_frame_that_waits_is_computed_before_another_one_comes_behind_it(vlm):
    state = built(vlm, 1)
    for seed in (2, 3):
        state.append(EncodedFrame.see(vlm, picture(seed)), later=True)
    state.settle()
    assert equal(state, built(vlm, 1, 2, 3))
    state = built(vlm, 1)
    state.append(EncodedFrame.see(vlm, picture(2), keep=True), later=True)
    state.rewrite(EncodedFrame.see(vlm, picture(3), keep=True), np.array([3, 4]), later=True)
    eager = built(vlm, 1, 2, keep=True)
    eager.rewrite(EncodedFrame.see(vlm, picture(3), keep=True), np.array([3, 4]))
    state.settle()
    assert equal(state, eager)


def test_a_frame_that_waits_is_dropped_without_having_been_computed(vlm):
    state, before = built(vlm, 1), vlm.meter.done
    for seed in (2, 3):
        state.append(EncodedFrame.see(vlm, picture(seed)), later=True)
        state.drop_live()
    assert (vlm.meter.done - before).passes == 0 and not state.has_live
    assert all(map(np.array_equal, rows(state), rows(built(vlm, 1))))


@pytest.mark.parametrize('what', ['slot', 'cells', 'nothing'])
@pytest.mark.parametrize('at', [1, 2, 3])
def test_a_reading_that_was_stopped_loses_nothing(vlm, monkeypatch, what, at):
    state, expected, cells = built(vlm, 1, keep=True), built(vlm, 1, keep=True), np.array([2, 3, 7, 8])
    newer = EncodedFrame.see(vlm, picture(2), keep=True)
    for each, later in ((state, True), (expected, False)):
        if what == 'slot':
            each.append(newer, later=later)
        elif what == 'cells':
            each.rewrite(newer, cells, later=later)
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 5)
    with pytest.raises(Halt):
        state.read(blocks(state), check=stopping_at(at))
    with pytest.raises(Halt):
        state.read(blocks(state), stay=1, check=stopping_at(at))
    monkeypatch.undo()
    state.settle()
    assert state.identity == expected.identity and state.tokens == expected.tokens
    assert noise.apart(rows(state), rows(expected)) < state_bound(vlm, [picture(1), picture(2)], rows)


@pytest.mark.parametrize('stay', [0, 1])
def test_what_waits_is_computed_with_the_question_and_stays_without_it(vlm, monkeypatch, stay):
    state, expected = built(vlm, 1), built(vlm, 1, 2)
    state.append(EncodedFrame.see(vlm, picture(2)), later=True)
    asked = blocks(state)
    state.read(asked, stay=stay)
    assert {layer.offset for layer in state.cache} == {state.tokens + (len(asked[0].ids) if stay else 0)}
    state.restore()
    assert noise.apart(rows(state), rows(expected)) < state_bound(vlm, [picture(1), picture(2)], rows)
    before = vlm.meter.done
    state.settle()
    assert vlm.meter.done == before and state.can_branch
    monkeypatch.setattr(vlm.family, 'branches', False)
    assert not state.can_branch


def test_every_change_before_the_snapshot_makes_another_version_and_nothing_else_does(vlm):
    state, other = built(vlm, 1, keep=True), empty(vlm)
    versions = [state.version, other.version]
    for change in (
        lambda: state.append(EncodedFrame.see(vlm, picture(2), keep=True), later=True),
        lambda: state.rewrite(EncodedFrame.see(vlm, picture(3), keep=True), np.array([1]), later=True),
        state.drop_live,
        state.clear,
    ):
        change()
        versions.append(state.version)
        state.settle()
        if state.frames:
            state.read(blocks(state))
            state.restore()
        assert state.version == versions[-1]
    assert len(set(versions)) == len(versions)


def test_the_live_frame_is_taken_out_once_and_another_goes_in_its_place(vlm):
    state, history = built(vlm, 1, 2, keep=True), built(vlm, 1, keep=True)
    for _ in range(2):
        state.drop_live()
        assert not state.has_live and not state.can_rewrite
        assert state.tokens == history.tokens and len(state.frames) == 1
        assert all(map(np.array_equal, rows(state), rows(history)))
    state.append(EncodedFrame.see(vlm, picture(3), keep=True))
    assert equal(state, built(vlm, 1, 3, keep=True)) and state.can_rewrite
    alone = built(vlm, 1)
    alone.drop_live()
    assert alone.tokens == 0 and alone.frames == () and all(layer.offset == 0 for layer in alone.cache)


def test_a_state_that_was_cleared_is_a_new_one(vlm):
    state = built(vlm, 1, 2, keep=True)
    state.clear()
    assert (state.frames, state.has_live, state.tokens, state.held_bytes) == ((), False, 0, 0) and not state.can_rewrite
    state.append(EncodedFrame.see(vlm, picture(3)))
    assert equal(state, built(vlm, 3))


def test_what_came_behind_the_snapshot_is_forgotten(vlm):
    state, before = built(vlm, 1), rows(built(vlm, 1))
    vlm.read(state.cache, state.template.question('what is it ?'), state.next_position)
    assert state.cache[0].offset > state.tokens
    state.restore()
    assert all(map(np.array_equal, rows(state), before))


def test_the_held_bytes_are_those_of_the_cache_and_of_what_was_seen(vlm):
    for keep in (False, True):
        state = built(vlm, 1, 2, keep=keep)
        cache = sum(each.nbytes for layer in state.cache for each in (layer.keys, layer.values))
        old, live = state.frames
        assert old.nbytes == old.features.nbytes and (live.nbytes > live.features.nbytes) == keep
        pixels = old.frame.rgb.nbytes + live.frame.rgb.nbytes
        assert state.held_bytes == cache + old.nbytes + live.nbytes + pixels


def test_only_the_live_frame_keeps_what_patches_it(vlm):
    assert [each.vision is not None for each in built(vlm, 1, 2, 3, keep=True).frames] == [False, False, True]
    assert EncodedFrame.see(vlm, picture(1)).vision is None


def test_only_a_family_that_encodes_cells_is_rewritten(vlm, monkeypatch):
    state = built(vlm, 1, keep=True)
    assert state.can_rewrite
    monkeypatch.setattr(vlm.family, 'encodes_cells', False)
    assert not state.can_rewrite


@pytest.mark.parametrize('seen, cells, exact', [(12, 12, True), (12, 11, False), (1, 12, False), (12, 1, False)])
def test_a_rewritten_state_is_exact_when_all_was_seen_and_all_was_computed(vlm, seen, cells, exact):
    state = built(vlm, 1, 2, keep=True)
    newer = EncodedFrame.see(vlm, picture(3), keep=True)
    if seen < CELLS:
        newer = state.live.with_cells(vlm, picture(3), np.arange(seen))
        assert not newer.exact
    assert state.exact and state.rewrite(newer, np.arange(cells)) == cells + 1  # with the end of the picture
    assert state.exact == state.live.exact == state.identity.exact == exact
    assert [each.frame for each in state.frames][1] is newer.frame and len(state.frames) == 2
    assert state.frames[0].exact
    if exact:
        bound = state_bound(vlm, [picture(1), picture(3)], rows)
        assert noise.apart(rows(state), rows(built(vlm, 1, 3))) < bound


@pytest.mark.parametrize('at', [1, 2])
def test_a_rewrite_that_was_stopped_half_way_leaves_no_live_frame(vlm, monkeypatch, at):
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 5)
    state = built(vlm, 1, 2, keep=True)
    with pytest.raises(Halt):
        state.rewrite(EncodedFrame.see(vlm, picture(3), keep=True), ALL_CELLS, stopping_at(at))
    assert not state.has_live and len(state.frames) == 1
    assert all(map(np.array_equal, rows(state), rows(built(vlm, 1, keep=True))))
    state.append(EncodedFrame.see(vlm, picture(3), keep=True))
    assert equal(state, built(vlm, 1, 3, keep=True))


def test_a_rewritten_state_is_what_it_was_behind_every_question(vlm):
    state = built(vlm, 1, 2, keep=True)
    state.rewrite(state.live.with_cells(vlm, picture(3), np.array([2, 3])), np.array([2, 3]))
    before = rows(state)
    for text in ('what is it ?', 'how many objects are there ?'):
        vlm.read(state.cache, state.template.question(text), state.next_position)
        state.restore()
        assert all(map(np.array_equal, rows(state), before))


def test_every_change_gives_a_version_that_no_state_had_before(vlm):
    one, other = built(vlm, 1, 2, keep=True), built(vlm, 1, 2, keep=True)
    versions = [empty(vlm).version, one.version, other.version]
    for change in (
        lambda: one.rewrite(one.live.with_cells(vlm, picture(3), np.array([2])), np.array([2])),
        lambda: other.clear(),
        lambda: one.drop_live(),
        lambda: one.append(EncodedFrame.see(vlm, picture(3))),
        lambda: other.append(EncodedFrame.see(vlm, picture(1))),
        lambda: one.clear(),
    ):
        before = one.version, other.version
        change()
        assert sum(map(int.__ne__, before, (one.version, other.version))) == 1
        versions.append(max(one.version, other.version))
    assert len(set(versions)) == len(versions)


def test_what_leaves_the_cache_leaves_the_version(vlm):
    state = built(vlm, 1)
    version = state.version
    vlm.read(state.cache, state.template.question('what is it ?'), state.next_position)
    state.restore()
    with pytest.raises(Halt):
        state.append(EncodedFrame.see(vlm, picture(2)), stopping_at(1))
    assert state.version == version
    state.drop_live()
    version = state.version
    state.drop_live()  # there is none any more
    assert state.version == version


def test_a_rewrite_that_was_stopped_has_another_version(vlm):
    state = built(vlm, 1, keep=True)
    version = state.version
    with pytest.raises(Halt):
        state.rewrite(EncodedFrame.see(vlm, picture(3), keep=True), ALL_CELLS, stopping_at(1))
    assert state.version != version


def test_frames_are_hashed_once_and_only_for_an_identity(vlm, monkeypatch):
    hashed, real = [], encoded_frames.blake2b
    monkeypatch.setattr(encoded_frames, 'blake2b', lambda data, **options: hashed.append(data) or real(data, **options))
    state = built(vlm, 1, 2, keep=True)
    state.rewrite(state.live.with_cells(vlm, picture(3), np.array([2, 3])), np.array([2, 3]))
    assert not hashed
    assert state.identity == state.identity and len(hashed) == len(state.frames)


def test_a_twin_is_the_state_of_the_same_frames(vlm):
    kept, same, other = built(vlm, 1, 2), built(vlm, 1, 2), built(vlm, 1, 3)
    assert twin(same, kept.identity) is same
    assert twin(same, replace(kept.identity, exact=False)) is same  # what was patched is compared with these frames
    with pytest.raises(ModelError, match='modified in place'):
        twin(other, kept.identity)
