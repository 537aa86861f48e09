"""Snapshot and restore of a flat KV cache."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.cache import KVCache, RotatingKVCache

from vlm_reuse_node import kv_cache
from vlm_reuse_node.errors import ModelError


def fill(cache, tokens, seed):
    """Add random keys and values of `tokens` tokens to every layer."""
    for layer, entry in enumerate(cache):
        rows = mx.random.normal((1, 2, tokens, 4), key=mx.random.key(100 * seed + layer))
        entry.update_and_fetch(rows, -rows)
    mx.eval([entry.state for entry in cache])


def content(cache, length):
    return [np.array(array[:, :, :length]) for entry in cache for array in (entry.keys, entry.values)]


@pytest.mark.parametrize('length', [1, 100, 255, 256, 257, 300])
def test_a_restored_snapshot_continues_as_if_nothing_had_been_added(length):
    cache, other = [KVCache(), KVCache()], [KVCache(), KVCache()]
    fill(cache, length, seed=1), fill(other, length, seed=1)
    snapshot, before = kv_cache.take(cache), content(cache, length)
    for added in (1, 5, 256, 700):
        fill(cache, added, seed=added)
        kv_cache.restore(cache, snapshot)
        assert kv_cache.take(cache) == snapshot
        assert all(np.array_equal(now, then) for now, then in zip(content(cache, length), before))
    fill(cache, 9, seed=2), fill(other, 9, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(content(cache, length + 9), content(other, length + 9)))


def test_restoring_copies_nothing():
    cache = [KVCache()]
    fill(cache, 100, seed=1)
    snapshot = kv_cache.take(cache)
    fill(cache, 50, seed=2)
    keys = cache[0].keys
    kv_cache.restore(cache, snapshot)
    assert cache[0].keys is keys


def test_a_layer_that_never_got_the_tokens_is_restored_too():
    cache = [KVCache(), KVCache()]
    fill(cache, 10, seed=1)
    snapshot = kv_cache.take(cache)
    fill(cache[:1], 3, seed=2)  # the model failed in the second layer
    kv_cache.restore(cache, snapshot)
    assert kv_cache.take(cache) == snapshot


def test_a_cache_that_lost_part_of_the_snapshot_is_refused():
    cache = [KVCache()]
    fill(cache, 10, seed=1)
    snapshot = kv_cache.take(cache)
    cache[0].trim(1)
    with pytest.raises(ModelError, match='built again'):
        kv_cache.restore(cache, snapshot)


def test_other_kinds_of_cache_are_refused():
    class Sliding:
        def make_cache(self):
            return [KVCache(), RotatingKVCache(max_size=8)]
    with pytest.raises(ModelError, match='RotatingKVCache.*KVCache only'):
        kv_cache.new_cache(Sliding())
