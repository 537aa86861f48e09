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

"""Some tokens of the live slot computed anew in their place."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.cache import ArraysCache, KVCache, QuantizedKVCache, RotatingKVCache
from rounding import WIDE, state_bound
from tiny_gemma4 import write_tiny_gemma4
from tiny_model import picture, write_tiny_model
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.model import loading, pass_cache
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.noise import apart
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.turn import Halt

CELLS = 12

# The window of the Gemma 4 models holds the longest prompt here: no ring wraps.
WRITERS = {
    'qwen2_5_vl': write_tiny_model,
    'qwen3_vl': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl'),
    'qwen3_vl_moe': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl_moe'),
    'gemma4 two-way': lambda folder: write_tiny_gemma4(folder, 'dense', window=64),
    'gemma4 layer inputs': lambda folder: write_tiny_gemma4(folder, 'layer_inputs', window=64),
}


@pytest.fixture(scope='module', params=WRITERS)
def vlm(request, tmp_path_factory):
    """A tiny model of each kind whose tokens can be rewritten."""
    return loading.load(str(WRITERS[request.param](tmp_path_factory.mktemp('models') / 'tiny')))


def built(vlm, *frames):
    """A state of these pictures, whose last one can be refreshed cell by cell."""
    seen = [EncodedFrame.see(vlm, frame, keep=frame is frames[-1]) for frame in frames]
    return states.build(vlm, partial(vlm.template, ''), seen)


def kept(state):
    """Keys and values of every layer before the snapshot."""
    return [np.array(rows[:, :, : state.tokens]) for layer in state.cache for rows in (layer.keys, layer.values)]


def logits(vlm, state):
    """Behind a question, which is taken back."""
    ids = state.template.question('what color is the square ?')
    result = np.array(vlm.run(state.cache, ids, vlm.family.text_positions(state.next_position, len(ids)), keep=4))
    state.restore()
    return result


def kept_bound(vlm, *frames):
    """How far rounding may move the keys and values of a state of these pictures."""
    return state_bound(vlm, frames, kept)


def logits_bound(vlm, *frames):
    """How far rounding may move the logits behind them."""
    return state_bound(vlm, frames, partial(logits, vlm))


@pytest.mark.numeric
def test_all_tokens_rewritten_are_the_slot_prefilled_again(vlm):
    state, fresh = built(vlm, picture(1), picture(2)), built(vlm, picture(1), picture(3))
    newer = EncodedFrame.see(vlm, picture(3))
    assert state.rewrite(newer, np.arange(CELLS)) == CELLS + 1  # and the end of the picture
    assert state.live.features is newer.features and state.exact
    assert apart(kept(state), kept(fresh)) < kept_bound(vlm, picture(1), picture(3))
    assert apart(logits(vlm, state), logits(vlm, fresh)) < logits_bound(vlm, picture(1), picture(3))


@pytest.mark.parametrize('cells', [[0], [3, 4], [1, 2, 6, 7, 11]])
def test_tokens_whose_features_did_not_change_stay_what_they_were(vlm, cells):
    state = built(vlm, picture(1), picture(2))
    before = kept(state)
    state.rewrite(state.live, np.array(cells))
    assert apart(kept(state), before) < kept_bound(vlm, picture(1), picture(2))


def test_only_the_rows_of_these_tokens_change_and_a_question_behind_them_leaves_them_alone(vlm):
    state = built(vlm, picture(1), picture(2))
    before, answered = kept(state), logits(vlm, state)
    cells = np.array([2, 3, 9])
    state.rewrite(state.live.with_cells(vlm, picture(3), cells), cells)
    after = kept(state)
    live = vlm.family.cells(ids := prompt_ids(vlm, state))[-CELLS:]
    rows = np.append(live[cells], len(ids) - 1)
    changed = np.flatnonzero(np.abs(after[-1] - before[-1]).max(axis=(0, 1, 3)) > 0)  # of the last layer
    assert changed.tolist() == sorted(rows) and not state.exact
    assert apart(logits(vlm, state), answered) > WIDE * logits_bound(vlm, picture(1), picture(2))
    assert all(map(np.array_equal, kept(state), after))


def prompt_ids(vlm, state):
    return vlm.family.expand(state.template.prefix, [each.grid for each in state.frames])


def test_some_tokens_rewritten_are_what_a_forward_with_the_old_rows_around_them_computes(vlm):
    """The reference: one token after the other, each on a cache of the rows before it, old and new."""
    if vlm.family.two_way:
        pytest.skip('tokens of one picture that see each other cannot come one after the other')
    state, cells = built(vlm, picture(1)), np.array([1, 2, 7])
    newer = state.live.with_cells(vlm, picture(2), cells)
    ids, cache = prompt_ids(vlm, state), vlm.new_cache()
    positions, live = vlm.family.positions(ids, [newer.grid]), vlm.family.cells(ids)
    for layer, old in zip(cache, state.cache):
        layer.keys, layer.values = (mx.array(np.array(rows)) for rows in (old.keys, old.values))
    for row, cell in [(live[cell], cell) for cell in cells] + [(len(ids) - 1, None)]:
        for layer in cache:
            layer.offset = layer._idx = int(row)  # the second is a ring's
        features = None if cell is None else newer.features[cell : cell + 1]
        vlm.run(cache, [ids[row]], positions[:, row : row + 1], embeddings=vlm.family.embed([ids[row]], features))
    state.rewrite(newer, cells)
    expected = [np.array(rows[:, :, : len(ids)]) for layer in cache for rows in (layer.keys, layer.values)]
    assert apart(kept(state), expected) < kept_bound(vlm, picture(1))


def test_a_slot_of_which_some_tokens_are_old_is_not_exact_whatever_its_features_are(vlm):
    state = built(vlm, picture(1))
    state.rewrite(EncodedFrame.see(vlm, picture(2), keep=True), np.arange(1, CELLS))
    assert not state.exact


def test_chunks_see_those_before_them(vlm, monkeypatch):
    state, chunked = built(vlm, picture(1)), built(vlm, picture(1))
    state.rewrite(EncodedFrame.see(vlm, picture(2)), np.arange(CELLS))
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 5)
    chunked.rewrite(EncodedFrame.see(vlm, picture(2)), np.arange(CELLS))
    assert apart(kept(chunked), kept(state)) < kept_bound(vlm, picture(2))


def test_a_rewrite_that_was_stopped_leaves_the_history_and_no_live_picture(vlm, monkeypatch):
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 5)
    state, history = built(vlm, picture(1), picture(2)), built(vlm, picture(1))
    calls = iter(range(1))

    def check():
        if next(calls, None) is None:
            raise Halt('CANCELLED', 'enough')

    with pytest.raises(Halt):
        state.rewrite(EncodedFrame.see(vlm, picture(3)), np.arange(CELLS), check)
    assert not state.has_live and not state.can_rewrite and len(state.frames) == 1
    assert apart(kept(state), kept(history)) < kept_bound(vlm, picture(1))
    state.append(EncodedFrame.see(vlm, picture(3)))
    assert apart(kept(state), kept(built(vlm, picture(1), picture(3)))) < kept_bound(vlm, picture(1), picture(3))


def test_fifty_rewrites_do_not_grow_what_is_held(vlm):
    state, cells = built(vlm, picture(1)), np.array([3, 8])
    held = state.held_bytes
    for seed in range(50):
        state.rewrite(state.live.with_cells(vlm, picture(seed), cells), cells)
    assert state.held_bytes == held
    state.rewrite(EncodedFrame.see(vlm, picture(60), keep=True), np.arange(CELLS))
    assert apart(kept(state), kept(built(vlm, picture(60)))) < kept_bound(vlm, picture(60))


def test_an_approximate_state_has_another_identity(vlm):
    state, cells = built(vlm, picture(1)), np.array([0])
    before = state.identity
    state.rewrite(state.live.with_cells(vlm, picture(1), cells), cells)
    assert state.identity != before and before.exact and not state.identity.exact


def test_a_cache_that_has_not_the_rows_cannot_be_rewritten():
    ring = RotatingKVCache(max_size=8)
    ring.update_and_fetch(*mx.zeros((2, 1, 1, 20, 4)))
    assert pass_cache.can_rewrite([KVCache(), ring], 8) and not pass_cache.can_rewrite([KVCache(), ring], 9)
    assert pass_cache.can_rewrite([KVCache()], 9)
    for part in (QuantizedKVCache(), ArraysCache(size=1), RotatingKVCache(max_size=8, keep=2)):
        assert not pass_cache.can_rewrite([KVCache(), part], 1)


@pytest.mark.parametrize('short', [0, 1])
def test_a_slot_is_rewritten_where_every_ring_keeps_all_of_it(tmp_path, short):
    whole = loading.load(str(write_tiny_gemma4(tmp_path / 'whole', window=64)))
    first, both = (built(whole, *map(picture, seeds)).tokens for seeds in ([1], [1, 2]))
    vlm = loading.load(str(write_tiny_gemma4(tmp_path / 'gemma4', window=both - first - short)))
    assert built(vlm, picture(1), picture(2)).can_rewrite == (not short)
    assert not built(vlm, picture(1)).can_rewrite  # its slot has the begin of the chat, too
