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

"""Snapshot and restore of every kind of cache: what follows a restored snapshot equals a run that never left it."""

import gc
from hashlib import blake2b
from importlib import import_module
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten
from mlx_vlm.models.cache import (
    ArraysCache,
    BufferedRotatingKVCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    PoolingCache,
    QuantizedKVCache,
    RotatingKVCache,
    SimpleKVCache,
)

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import kv_cache

WINDOW = 8
WIDTH = 32
# Prefixes around the window, and chunks of one and of many tokens.
LENGTHS = sorted({1, 2, *range(WINDOW - 2, WINDOW + 3), *range(2 * WINDOW - 1, 2 * WINDOW + 2), 3 * WINDOW + 1})

KINDS = {
    'flat': lambda: [KVCache(), KVCache()],
    'concatenated': lambda: [ConcatenateKVCache()],
    'quantised': lambda: [QuantizedKVCache(group_size=32, bits=8), QuantizedKVCache(group_size=32, bits=4), KVCache()],
    'ring': lambda: [RotatingKVCache(max_size=WINDOW), KVCache(), RotatingKVCache(max_size=2 * WINDOW)],
    'ring that keeps its start': lambda: [RotatingKVCache(max_size=WINDOW, keep=2)],
    'chunked': lambda: [ChunkedKVCache(WINDOW), KVCache()],
    'recurrent': lambda: [ArraysCache(size=2), KVCache(), ArraysCache(size=2)],
    'padded recurrent': lambda: [ArraysCache(size=2, left_padding=[3]), KVCache()],
    'pooling': lambda: [CacheList(RotatingKVCache(max_size=WINDOW), PoolingCache(3))],
    'nested': lambda: [
        CacheList(ArraysCache(size=2), CacheList(RotatingKVCache(max_size=WINDOW), KVCache())),
        CacheList(QuantizedKVCache(group_size=32), ChunkedKVCache(WINDOW)),
    ],
}
every_kind = pytest.mark.parametrize('make', KINDS.values(), ids=KINDS)
small_chunks = st.lists(st.sampled_from([1, 1, 2, 3, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 1]), max_size=4)


def rows(tokens, seed, heads=2):
    """Random (1, heads, tokens, width)."""
    return mx.random.normal((1, heads, tokens, WIDTH), key=mx.random.key(seed))


def feed(part, tokens, seed):
    """Add tokens as an attention, gated-delta or pooling layer does; return what the layer then computes with."""
    if isinstance(part, CacheList):
        return [array for child in part.caches for array in feed(child, tokens, seed + 1)]
    if isinstance(part, ArraysCache):
        return feed_recurrent(part, tokens, seed)
    if isinstance(part, PoolingCache):
        new = rows(tokens, seed)[:, 0]
        windows, gates, _ = part.accumulate_windows(new, -new, 0)
        pooled = (windows * gates).reshape(1, -1, 3, WIDTH).sum(axis=2) if windows.shape[1] else windows
        return [mx.array(part.update_and_fetch(pooled)), mx.array(part.buf_kv[:, : part.remainder])]
    if isinstance(part, ChunkedKVCache):
        part.maybe_trim_front()
        mask = None
    else:
        mask = part.make_mask(tokens, window_size=getattr(part, 'max_size', None), return_array=True)
    keys, values = part.update_and_fetch(rows(tokens, seed), -rows(tokens, seed))
    seen = [*keys, *values] if isinstance(part, QuantizedKVCache) else [keys, values]
    return [array + 0 for array in seen] + ([mask] if isinstance(mask, mx.array) else [])


def feed_recurrent(part, tokens, seed):
    mask = part.make_mask(tokens)
    new = rows(tokens, seed)[:, 0]
    window = mx.zeros((1, 3, WIDTH)) if part[0] is None else part[0]
    source = mx.concatenate([window, new], axis=1)
    part.update_window(0, source, 3)

    def decay(state, _):
        state = mx.zeros((1, WIDTH)) if state is None else state
        for token in range(tokens):
            state = 0.9 * state + new[:, token]
        return state * 1, state

    output, _ = part.update_recurrent(1, tokens, decay)
    part.advance(tokens)
    return [output, source] + ([] if mask is None else [mask])


def forward(cache, tokens, seed):
    """One call of a model: every layer gets the tokens. Returns what the layers saw, as bytes."""
    seen = [array for layer, part in enumerate(cache) for array in feed(part, tokens, 1000 * seed + 10 * layer)]
    mx.eval(seen)
    return [(array.shape, np.array(array).tobytes()) for array in seen]


def run(cache, calls):
    return [forward(cache, tokens, seed) for tokens, seed in calls]


def hashed(snapshot):
    """Digest of the bytes a snapshot keeps, and of the numbers beside them."""
    digest = blake2b(
        repr(
            [
                {name: value for name, value in part.items() if isinstance(value, int)}
                if isinstance(part, dict)
                else part
                for part in snapshot.parts
            ]
        ).encode()
    )
    for array in kv_cache._arrays(snapshot.parts):
        digest.update(np.array(array).tobytes())
    return digest.hexdigest()


@every_kind
@pytest.mark.parametrize('prefix', LENGTHS)
def test_every_question_behind_one_snapshot_equals_a_cold_run(make, prefix):
    cache = make()
    run(cache, [(prefix, 1)])
    snapshot = kv_cache.take(cache)
    before = hashed(snapshot)
    for seed, calls in enumerate(([1], [WINDOW - 1, 1, 1, 1], [1] * (WINDOW + 2), [2 * WINDOW + 1, 1], [2, 3]), 2):
        question = [(tokens, seed) for tokens in calls]
        cold = run(make(), [(prefix, 1), *question])[1:]
        assert run(cache, question) == cold
        kv_cache.restore(cache, snapshot)
        assert hashed(snapshot) == before
        assert kv_cache.take(cache).lengths == snapshot.lengths


@every_kind
@settings(max_examples=15)
@given(data=st.data())
def test_any_order_of_calls_snapshots_and_returns_equals_a_cold_run_of_what_is_left(make, data):
    cache, history, stack = make(), [], []  # stack: (snapshot, calls made before it)
    for step in range(data.draw(st.integers(3, 8), label='steps')):
        action = data.draw(st.sampled_from(['call', 'call', 'take', 'return']), label='action')
        if action == 'call' or not history:
            calls = [(tokens, step) for tokens in data.draw(small_chunks.filter(bool), label='chunks')]
            assert run(cache, calls) == run(make(), history + calls)[len(history) :]
            history = history + calls
        elif action == 'take':
            stack.append((kv_cache.take(cache), history))
        elif stack:
            index = data.draw(st.integers(0, len(stack) - 1), label='snapshot')
            snapshot, history = stack[index]
            kv_cache.restore(cache, snapshot)
            for given_up, longer in stack[index + 1 :]:
                if longer != history:
                    with pytest.raises(ModelError, match='built again'):
                        kv_cache.restore(cache, given_up)
            stack = stack[: index + 1]
            assert snapshot.tokens == sum(tokens for tokens, _ in history)
    assert run(cache, [(1, 99)]) == run(make(), [*history, (1, 99)])[-1:]


@every_kind
def test_three_hundred_questions_leave_the_bytes_of_a_snapshot_as_they_were(make):
    cache, prefix = make(), 2 * WINDOW - 1
    run(cache, [(prefix, 1)])
    snapshot = kv_cache.take(cache)
    before = hashed(snapshot)
    questions = [[(1, 2)] * 2, [(3, 3), (1, 4)], [(WINDOW, 5)]]
    cold = [run(make(), [(prefix, 1), *question])[1:] for question in questions]
    for turn in range(300):
        assert run(cache, questions[turn % 3]) == cold[turn % 3]
        kv_cache.restore(cache, snapshot)
    assert hashed(snapshot) == before


@every_kind
def test_a_new_picture_behind_the_older_snapshot_takes_the_newer_ones_place(make):
    cache, question = make(), [(2, 9), (1, 9)]
    run(cache, [(WINDOW + 3, 1)])
    history = kv_cache.take(cache)
    for picture in range(2, 6):
        slot = (2 * WINDOW + picture % 2, picture)
        run(cache, [slot])
        state = kv_cache.take(cache)
        cold = run(make(), [(WINDOW + 3, 1), slot, *question])[2:]
        for _ in range(3):
            assert run(cache, question) == cold
            kv_cache.restore(cache, state)
        kv_cache.restore(cache, history)
        run(cache, [(3 * WINDOW, 7)])  # at least as long as the slot was
        with pytest.raises(ModelError, match='built again'):
            kv_cache.restore(cache, state)
        kv_cache.restore(cache, history)


@every_kind
def test_two_caches_do_not_disturb_each_other(make):
    caches = [make(), make()]
    for seed, cache in enumerate(caches):
        run(cache, [(WINDOW + seed, seed)])
    snapshots = [kv_cache.take(cache) for cache in caches]
    for turn in range(6):
        seed = turn % 2
        question = [(1, 5), (turn + 1, 6), (1, 7)]
        assert run(caches[seed], question) == run(make(), [(WINDOW + seed, seed), *question])[1:]
        with pytest.raises(ModelError, match='built again'):
            kv_cache.restore(caches[seed], snapshots[1 - seed])
        kv_cache.restore(caches[seed], snapshots[seed])


@every_kind
@pytest.mark.parametrize('tokens', [1, 3, 2 * WINDOW])
def test_layers_that_a_failed_call_did_not_reach_are_restored_too(make, tokens):
    cache, question = make(), [(3, 5), (1, 6)]
    run(cache, [(WINDOW + 1, 1)])
    snapshot = kv_cache.take(cache)
    for reached in range(len(cache) + 1):
        for part in cache[:reached]:
            feed(part, tokens, seed=3)  # and never evaluated
        kv_cache.restore(cache, snapshot)
        assert kv_cache.take(cache).lengths == snapshot.lengths
        assert run(cache, question) == run(make(), [(WINDOW + 1, 1), *question])[1:]
        kv_cache.restore(cache, snapshot)


@every_kind
def test_a_snapshot_of_an_empty_cache_empties_it_again(make):
    cache = make()
    empty = kv_cache.take(cache)
    for seed in (1, 2):
        calls = [(WINDOW + 2, seed), (1, seed)]
        assert run(cache, calls) == run(make(), calls)
        kv_cache.restore(cache, empty)
    assert empty.tokens == 0


def test_what_is_wrong_in_one_layer_leaves_the_others_as_they_are():
    cache = [RotatingKVCache(max_size=WINDOW), KVCache()]
    run(cache, [(5, 1)])
    snapshot = kv_cache.take(cache)
    run(cache, [(3, 2)])
    cache[1].trim(4)
    with pytest.raises(ModelError, match=r'\[8, 4\].*\[5, 5\].*built again'):
        kv_cache.restore(cache, snapshot)
    assert cache[0].offset == 8
    cache[1] = QuantizedKVCache()
    with pytest.raises(ModelError, match='built again'):
        kv_cache.restore(cache, snapshot)


def test_a_snapshot_in_a_message_is_its_lengths():
    cache = KINDS['ring']()
    run(cache, [(5, 1)])
    assert repr(kv_cache.take(cache)) == 'Snapshot(lengths=(5, 5, 5))'


def test_a_speculation_that_was_broken_off_is_forgotten():
    cache = KINDS['recurrent']()
    run(cache, [(5, 1)])
    snapshot = kv_cache.take(cache)
    cache[0].start_speculation(4)
    cache[0].some_models_note = 'stale'
    feed(cache[0], 1, seed=3)
    kv_cache.restore(cache, snapshot)
    assert not cache[0].is_speculating
    assert not hasattr(cache[0], 'some_models_note')
    assert run(cache, [(2, 4)]) == run(KINDS['recurrent'](), [(5, 1), (2, 4)])[1:]


def test_a_snapshot_inside_a_speculation_can_be_committed_after_every_return():
    def states(accepted):
        cache = [ArraysCache(size=1), KVCache()]
        run(cache[1:], [(5, 1)])
        cache[0][0] = mx.ones((1, 3, WIDTH))
        cache[0].start_speculation(2)
        snapshot = kv_cache.take(cache)
        for _ in range(2):
            kv_cache.restore(cache, snapshot)
            cache[0].update_window(0, mx.concatenate([cache[0][0], rows(2, 5)[:, 0]], axis=1), 3)
        cache[0].commit_speculation([accepted])
        return cache[0][0]

    expected = mx.concatenate([mx.ones((1, 3, WIDTH)), rows(2, 5)[:, 0]], axis=1)
    assert mx.array_equal(states(1), expected[:, 1:4])
    assert mx.array_equal(states(0), expected[:, :3])


def test_tokens_are_those_that_attention_has_seen_wherever_its_layers_are():
    for make in KINDS.values():
        cache = make()
        run(cache, [(WINDOW, 1), (1, 1), (2 * WINDOW, 1)])
        assert kv_cache.take(cache).tokens == 3 * WINDOW + 1
    cache = KINDS['recurrent']()
    run(cache, [(3, 1)])
    assert kv_cache.take(cache).lengths == (0, 3, 0)


def model(*cache):
    return SimpleNamespace(make_cache=lambda: list(cache))


def test_every_kind_that_can_be_restored_makes_a_cache():
    for make in KINDS.values():
        cache = make()
        assert kv_cache.new_cache(model(*cache)) == cache


@pytest.mark.parametrize(
    'unknown',
    [SimpleKVCache(), BufferedRotatingKVCache(max_size=8), type('PagedKVCache', (KVCache,), {})()],
    ids=lambda part: type(part).__name__,
)
def test_other_kinds_of_cache_are_refused_by_name(unknown):
    with pytest.raises(ModelError, match=f'{type(unknown).__name__}, which cannot be restored'):
        kv_cache.new_cache(model(KVCache(), unknown))
    with pytest.raises(ModelError, match=type(unknown).__name__):
        kv_cache.new_cache(model(CacheList(KVCache(), CacheList(unknown))))


def test_a_model_where_no_layer_counts_tokens_is_refused():
    with pytest.raises(ModelError, match='No layer .* counts'):
        kv_cache.new_cache(model(ArraysCache(size=2), CacheList(PoolingCache(4))))


@pytest.mark.parametrize('kind', ['flat', 'quantised'])
def test_a_flat_cache_is_never_copied(kind):
    cache = KINDS[kind]()
    run(cache, [(100, 1)])
    snapshot = kv_cache.take(cache)
    arrays = list(kv_cache._arrays([vars(part) for part in cache]))
    before = mx.get_active_memory()
    for _ in range(5):
        run(cache, [(50, 2)])
        kv_cache.restore(cache, snapshot)
    assert mx.get_active_memory() == before
    assert all(now is then for now, then in zip(kv_cache._arrays([vars(part) for part in cache]), arrays))


def used(work):
    """Bytes of MLX's memory that a piece of work leaves in use."""
    gc.collect()
    mx.clear_cache()  # a buffer that is used again may be larger than what is asked for
    before = mx.get_active_memory()
    result = work()
    gc.collect()
    return mx.get_active_memory() - before, result


@pytest.mark.parametrize(
    'make',
    [
        lambda: [RotatingKVCache(max_size=2048), KVCache()],
        lambda: [ChunkedKVCache(2048), ConcatenateKVCache(), QuantizedKVCache(group_size=32)],
        lambda: [CacheList(KVCache(), RotatingKVCache(max_size=1024))],
    ],
    ids=['ring', 'chunked', 'list'],
)
def test_held_bytes_are_the_memory_that_cache_and_snapshots_use(make):
    def work():
        cache = make()
        run(cache, [(1000, 1), (100, 2)])
        older = kv_cache.take(cache)
        run(cache, [(1, 3), (100, 4)])
        return cache, older, kv_cache.take(cache)

    bytes_used, (cache, older, newer) = used(work)
    assert kv_cache.held_bytes(cache, older, newer) == pytest.approx(bytes_used, rel=0.01)
    more, _ = used(lambda: run(cache, [(1, 5)]))
    assert kv_cache.held_bytes(cache, older, newer) == pytest.approx(bytes_used + more, rel=0.01)
    kv_cache.restore(cache, newer)
    gc.collect()
    assert kv_cache.held_bytes(cache, older, newer) == pytest.approx(bytes_used, rel=0.01)
    assert kv_cache.held_bytes(cache, newer) == kv_cache.held_bytes(cache)


@every_kind
def test_what_a_cache_that_was_restored_shares_with_its_snapshot_is_held_once(make):
    cache = make()
    run(cache, [(WINDOW + 3, 1)])
    snapshot = kv_cache.take(cache)
    run(cache, [(2, 2)])
    kv_cache.restore(cache, snapshot)
    assert kv_cache.held_bytes(cache, snapshot) == kv_cache.held_bytes(cache) > 0


def test_an_empty_cache_holds_nothing():
    for make in KINDS.values():
        if make is not KINDS['padded recurrent']:
            assert kv_cache.held_bytes(make()) == 0


def test_a_ring_that_a_long_update_stretched_is_held_at_the_size_of_its_window():
    cache = [RotatingKVCache(max_size=WINDOW), KVCache()]
    run(cache, [(WINDOW, 1), (2 * WINDOW, 2)])
    assert cache[0].keys.shape[2] > WINDOW
    kv_cache.take(cache)
    assert cache[0].keys.shape[2] == WINDOW


def test_a_snapshot_does_not_pin_what_its_arrays_were_cut_from():
    cache = [ArraysCache(size=1), KVCache()]

    def work():
        large = mx.zeros((1, 4096, WIDTH))
        mx.eval(large)
        cache[0][0] = (large + 1)[:, -3:]  # as the convolutions of several models leave it: lazy, a view
        snapshot = kv_cache.take(cache)
        cache[0][0] = None
        return snapshot

    assert used(work)[0] < 10_000


VOCABULARY = 64
TEXT = {
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_attention_heads': 2,
    'num_key_value_heads': 1,
    'vocab_size': VOCABULARY,
    'rms_norm_eps': 1e-6,
}
MODELS = {
    # Three gated-delta layers, then one of attention.
    'qwen3_5': TEXT
    | {
        'model_type': 'qwen3_5_text',
        'num_hidden_layers': 4,
        'head_dim': 32,
        'max_position_embeddings': 4096,
        'linear_num_value_heads': 2,
        'linear_num_key_heads': 2,
        'linear_key_head_dim': 32,
        'linear_value_head_dim': 32,
        'linear_conv_kernel_dim': 4,
        'rope_parameters': {
            'type': 'default',
            'mrope_section': [2, 1, 1],
            'rope_theta': 1e4,
            'partial_rotary_factor': 0.25,
        },
    },
    'gemma3': TEXT
    | {
        'model_type': 'gemma3_text',
        'num_hidden_layers': 3,
        'head_dim': 16,
        'query_pre_attn_scalar': 16,
        'sliding_window': WINDOW,
        'sliding_window_pattern': 3,
    },
    # The last two of four layers share the keys and values of the first two.
    'gemma4': TEXT
    | {
        'num_hidden_layers': 4,
        'num_kv_shared_layers': 2,
        'head_dim': 16,
        'global_head_dim': 16,
        'hidden_size_per_layer_input': 0,
        'sliding_window': WINDOW,
        'layer_types': ['sliding_attention', 'full_attention'] * 2,
    },
    'llama4': TEXT
    | {
        'model_type': 'llama4_text',
        'num_hidden_layers': 4,
        'head_dim': 16,
        'intermediate_size_mlp': 48,
        'num_local_experts': 2,
        'attention_chunk_size': WINDOW,
        'use_qk_norm': False,
    },
}
CACHES = {
    'qwen3_5': [ArraysCache] * 3 + [KVCache],
    'gemma3': [RotatingKVCache] * 2 + [KVCache],
    'gemma4': [RotatingKVCache, KVCache],
    'llama4': [ChunkedKVCache] * 3 + [KVCache],
}


@pytest.fixture(scope='module', params=MODELS)
def language_model(request):
    package = import_module(f'mlx_vlm.models.{request.param}')
    tiny = package.LanguageModel(package.TextConfig(**MODELS[request.param]))
    key, weights = mx.random.key(0), []
    for name, value in tree_flatten(tiny.parameters()):
        key, draw = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=draw)
        weights.append((name, 1 + 0.1 * noise if value.ndim == 1 else 1.5 / value[0].size ** 0.5 * noise))
    tiny.update(tree_unflatten(weights))
    tiny.kind = request.param
    return tiny


def logits_of(language_model, cache, ids):
    """The logits of one call: (tokens, vocabulary)."""
    start, more = kv_cache._lengths(cache), {}
    if language_model.kind == 'qwen3_5':
        more['position_ids'] = mx.broadcast_to(mx.arange(max(start), max(start) + len(ids)), (3, 1, len(ids)))
    logits = language_model(mx.array([ids]), cache=cache, **more).logits[0]
    mx.eval(logits)
    return np.array(logits)


def answer(language_model, cache, question, tokens=WINDOW + 2):
    """Greedy tokens and all logits of a question and its answer, which wraps a window that is not full."""
    logits, ids = [logits_of(language_model, cache, question)], []
    for _ in range(tokens):
        ids.append(int(logits[-1][-1].argmax()))
        logits.append(logits_of(language_model, cache, ids[-1:]))
    return ids, np.concatenate(logits)


def prompt(tokens, seed):
    return np.random.default_rng(seed).integers(0, VOCABULARY, tokens).tolist()


@pytest.mark.parametrize('history', [WINDOW - 1, WINDOW + 1, 2 * WINDOW])
def test_a_models_answers_behind_nested_snapshots_equal_cold_ones(language_model, history):
    cache = kv_cache.new_cache(language_model)
    assert [type(part) for part in cache] == CACHES[language_model.kind]
    logits_of(language_model, cache, prompt(history, 1))
    older = kv_cache.take(cache)
    for picture in (2, 3):
        slot = prompt(WINDOW + picture, picture)
        logits_of(language_model, cache, slot)
        state = kv_cache.take(cache)
        assert state.tokens == history + len(slot)
        before = hashed(state), hashed(older)
        for seed in (4, 5, 4):
            question = prompt(seed, seed)
            cold = kv_cache.new_cache(language_model)
            for ids in (prompt(history, 1), slot):
                logits_of(language_model, cold, ids)
            ids, logits = answer(language_model, cold, question)
            warm_ids, warm_logits = answer(language_model, cache, question)
            assert warm_ids == ids
            assert np.array_equal(warm_logits, logits)  # the same calls in both arms, so no rounding either
            kv_cache.restore(cache, state)
        assert (hashed(state), hashed(older)) == before
        kv_cache.restore(cache, older)


def test_a_model_that_fails_in_a_middle_layer_goes_on_from_the_snapshot(language_model, monkeypatch):
    cache = kv_cache.new_cache(language_model)
    logits_of(language_model, cache, prompt(WINDOW + 3, 1))
    snapshot = kv_cache.take(cache)
    expected = answer(language_model, cache, prompt(3, 2))
    layers = language_model.model.layers
    for reached in range(1, len(layers)):
        for ids in (prompt(5, 3), prompt(1, 3)):
            kv_cache.restore(cache, snapshot)
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='out of memory'):
                patch.setattr(type(layers[reached]), '__call__', failing(type(layers[reached]), reached))
                logits_of(language_model, cache, ids)
            kv_cache.restore(cache, snapshot)
            ids, logits = answer(language_model, cache, prompt(3, 2))
            assert ids == expected[0]
            assert np.array_equal(logits, expected[1])


def failing(layer_class, calls):
    """A layer's `__call__` that fails after so many calls."""
    original, left = layer_class.__call__, iter(range(calls))

    def call(self, *args, **kwargs):
        if next(left, None) is None:
            raise RuntimeError('out of memory')
        return original(self, *args, **kwargs)

    return call
