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

"""One step of decoding, on every family: it is a forward call of one token, and it does not wait for that token."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from samplers import Script
from tiny_gemma4 import write_tiny_gemma4
from tiny_generic import SPECIAL, write_tiny_generic
from tiny_model import write_tiny_model
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.model import kv_cache
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.sampling import ConfidenceSampler, sampler

MODELS = {
    'qwen2_5_vl': write_tiny_model,
    'qwen3_vl': partial(write_tiny_qwen3, model_type='qwen3_vl'),
    'qwen3_5': partial(write_tiny_qwen3, model_type='qwen3_5'),
    'gemma4': partial(write_tiny_gemma4, window=7),
    'gemma4 with layer inputs': partial(
        write_tiny_gemma4, shape='layer_inputs', window=7, use_bidirectional_attention='vision'
    ),
    **{kind: partial(write_tiny_generic, model_type=kind) for kind in SPECIAL},
}
TEXT = 'what is the color of the square on the left ?'


@pytest.fixture(scope='module', params=MODELS)
def vlm(request, tmp_path_factory):
    """A tiny model of every family."""
    return load(str(MODELS[request.param](tmp_path_factory.mktemp('models') / 'tiny')))


def read(vlm):
    """A cache that holds a question, and the logits behind it; and the question's tokens."""
    cache, ids = vlm.new_cache(), vlm.template('', 1).question(TEXT)
    return cache, vlm.read(cache, ids, 0), len(ids)


def arrays(cache):
    """Everything that a cache holds, up to where it ends."""
    found = []
    for part in kv_cache._parts(cache):
        state = part.state
        found += [np.array(array) for array in (state if isinstance(state, (list, tuple)) else [state])]
    return found


def test_a_step_is_a_forward_call_of_its_token(vlm):
    """Also of the token that stands for a picture, should the model ever generate it."""
    family, (cache, _, start) = vlm.family, read(vlm)
    other, *_ = read(vlm)
    tokens = [*vlm.template('', 1).question('no')[:2], family._image_token, 9, 10, 11, 12]
    for position, token in enumerate(tokens, start):
        logits = family.step(mx.array([token]), position, cache)
        expected = family.forward([token], family.embed([token]), family.text_positions(position, 1), other)
        assert logits.shape == expected.shape and logits.dtype == mx.float32
        assert np.array_equal(logits, expected)
    assert all(np.array_equal(*pair) for pair in zip(arrays(cache), arrays(other), strict=True))


def test_a_step_does_not_wait_for_its_token(vlm):
    """MLX refuses to read an array while it traces a function."""
    cache, _, start = read(vlm)
    logits = mx.compile(lambda token: vlm.family.step(token, start, cache))(mx.array([9]))
    other, *_ = read(vlm)
    assert logits.shape == vlm.family.step(mx.array([9]), start, other).shape


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_decoding_ahead_gives_the_same_answer_and_cache(vlm, monkeypatch, temperature):
    """At the limit no step is wasted; behind a stop token the snapshot removes the one that is."""
    decoded = []
    for ahead in (False, True):
        monkeypatch.setattr(vlm, 'decodes_ahead', ahead)
        cache, logits, start = read(vlm)
        sample, before = ConfidenceSampler(sampler(temperature, 4)), vlm.meter.done
        ids = vlm.decode(cache, logits, start, 12, sample=sample)
        decoded.append((ids, sample.least, vlm.meter.done.decode_tokens - before.decode_tokens, arrays(cache)))
    (ids, *told, held), (others, *told_ahead, held_ahead) = decoded
    assert ids == others and told[0] == told_ahead[0] and 0 <= told_ahead[1] - told[1] <= 1
    if len(ids) == 12:
        assert told == told_ahead and all(map(np.array_equal, held, held_ahead))


@pytest.mark.parametrize('ahead', [False, True])
def test_a_wasted_step_leaves_no_trace_in_a_restored_state(vlm, monkeypatch, ahead):
    monkeypatch.setattr(vlm, 'decodes_ahead', ahead)
    cache, logits, start = read(vlm)
    snapshot, expected = kv_cache.take(cache), arrays(cache)
    before = vlm.meter.done.decode_tokens
    assert vlm.decode(cache, logits, start, 40, sample=Script([9, 10, 11, vlm.stop_ids[0]])) == [9, 10, 11]
    assert vlm.meter.done.decode_tokens - before == 3 + ahead
    kv_cache.restore(cache, snapshot)
    assert all(np.array_equal(*pair) for pair in zip(arrays(cache), expected, strict=True))
    assert vlm.decode(cache, logits, start, 8) == vlm.decode(*read(vlm), 8)


@pytest.mark.parametrize('right', range(7))
def test_a_draft_in_the_cache_is_as_good_as_its_tokens(vlm, right):
    """Computed in one call, and cut back to what the answer has of it; where a cache cannot be cut, read anew."""
    cache, logits, start = read(vlm)
    snapshot = kv_cache.take(cache)
    expected = vlm.decode(cache, logits, start, 10)
    kv_cache.restore(cache, snapshot)
    draft = [*expected[:right], *(token + 1 for token in expected[right : right + 1]), 9]
    later = vlm.run(cache, draft, vlm.family.text_positions(start, len(draft)), keep=len(draft))

    def keep(tokens):
        kv_cache.restore(cache, snapshot)
        if tokens:
            vlm.read(cache, draft[:tokens], start)

    before = vlm.meter.done.decode_tokens
    ids = vlm.decode(cache, logits=mx.concatenate([logits, later]), start=start, max_tokens=10, draft=draft, keep=keep)
    assert ids == expected and vlm.meter.done.decode_tokens - before <= max(len(ids) - right, 0)
