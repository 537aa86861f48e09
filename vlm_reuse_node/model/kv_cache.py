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

"""Snapshot and restore of a model's working state, for every kind of cache that mlx-vlm's models make.

A flat KV cache only writes behind its offset. Its snapshot is the offset, and restoring it is trimming: nothing is
copied. A ring, a chunk or a recurrent state overwrites its past. Its snapshot is its arrays, and the cache goes on with
other array objects over the same buffers. MLX copies a shared buffer before it writes into it. So taking and restoring
are cheap, and the first write behind them pays for one copy of that layer, which is never longer than its window.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import mlx.core as mx
from mlx_vlm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    PoolingCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from vlm_reuse_node.errors import ModelError

# Exact classes: a subclass may hold more than its parent's offset says.
FLAT = (KVCache, ConcatenateKVCache, QuantizedKVCache)
WINDOWED = (RotatingKVCache, ChunkedKVCache)
# A snapshot holds the arrays of these. A ring, too: trimming restores it only as long as no update drops a row.
OVERWRITING = (*WINDOWED, ArraysCache, PoolingCache)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A point that its cache can return to.

    lengths: tokens that each layer has seen; 0 for one that does not count them (recurrent state).
    parts: of each part of the cache the offset of a flat one, and the attributes of any other.
    """

    lengths: tuple[int, ...]
    parts: tuple[int | dict[str, Any], ...] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt that the model had seen."""
        return max(self.lengths)


# The snapshots that a cache can still return to, by the cache's first part.
_reachable: WeakKeyDictionary[Any, WeakSet[Snapshot]] = WeakKeyDictionary()


def new_cache(language_model: Any) -> list:
    """Make an empty cache: one entry per layer, fewer where layers share theirs.

    Raises ModelError for a kind of cache that cannot be restored, and for a model in which no layer counts tokens.
    """
    cache = make_prompt_cache(language_model)
    kinds = {type(part) for part in _parts(cache)}
    unknown = sorted(kind.__name__ for kind in kinds.difference(FLAT, OVERWRITING))
    if unknown:
        raise ModelError(
            f"The model's cache holds {', '.join(unknown)}, which cannot be restored; expected "
            f'{", ".join(kind.__name__ for kind in (*FLAT, *OVERWRITING))}. Choose another model.'
        )
    if kinds.isdisjoint((*FLAT, *WINDOWED)):
        raise ModelError(
            'No layer of the model counts the tokens it has seen; expected at least one attention layer. '
            'Choose another model.'
        )
    return cache


def take(cache: list) -> Snapshot:
    """Take a snapshot of the cache. Its arrays are evaluated, so that the snapshot pins no computation."""
    parts = _parts(cache)
    for part in parts:
        _drop_unseen(part)
    snapshot = Snapshot(
        _lengths(cache), tuple(part.offset if type(part) in FLAT else _own_attributes(part) for part in parts)
    )
    mx.eval(list(_arrays(snapshot.parts)))
    _reachable.setdefault(parts[0], WeakSet()).add(snapshot)
    return snapshot


def restore(cache: list, snapshot: Snapshot) -> None:
    """Make the cache bit for bit what it was when the snapshot was taken; this can be repeated.

    Snapshots nest: restoring one invalidates those that were taken behind it. Raises ModelError for an invalid snapshot
    and for one of another cache, and leaves the cache as it is.
    """
    parts = _parts(cache)
    reachable = _reachable.get(parts[0], ())
    if snapshot not in reachable or not _fits(parts, snapshot):
        raise ModelError(
            f'The cache holds {list(_lengths(cache))} tokens a layer and cannot return to the snapshot of '
            f'{list(snapshot.lengths)}, which was overwritten since or is of another cache; it must be built again.'
        )
    for part, saved in zip(parts, snapshot.parts):
        if isinstance(saved, dict):
            part.__dict__ = copy.deepcopy(saved)  # of an mx.array: a new object over the same buffer
        elif part.offset > saved:
            part.trim(part.offset - saved)
    _reachable[parts[0]] = WeakSet(other for other in reachable if other.tokens <= snapshot.tokens)


def held_tokens(cache: list) -> int:
    """Return how many tokens the cache has seen."""
    return max(_lengths(cache))


def held_bytes(cache: list, *snapshots: Snapshot) -> int:
    """Return the bytes of the arrays that a cache and snapshots of it hold together; shared arrays count once.

    Flat layers count with all rows that they have allocated. The other layers share their arrays between cache and
    snapshots of the same number of tokens.
    """
    parts = _parts(cache)
    held = {held_tokens(cache): _bytes([vars(part) for part in parts if type(part) not in FLAT])}
    for snapshot in snapshots:
        held.setdefault(snapshot.tokens, _bytes(snapshot.parts))
    return _bytes([vars(part) for part in parts if type(part) in FLAT]) + sum(held.values())


def snapshot_bytes(cache: list) -> int:
    """Return the bytes of the arrays that a snapshot of the cache keeps; 0 for an empty one: nothing is known."""
    return _bytes([vars(part) for part in _parts(cache) if type(part) not in FLAT])


def growth_bytes(cache: list, tokens: int) -> int:
    """Return the bytes by which `held_bytes` grows when so many tokens are added and a snapshot is taken behind them.

    0 for an empty cache, of which nothing is known.
    """
    grown = 0
    for part in _parts(cache) if tokens else ():
        size = _bytes(vars(part))
        if not size:
            continue
        if type(part) is KVCache:  # it grows in steps, from its last used row
            rows = part.keys.shape[2]
            if part.offset + tokens > rows:
                kept = part.offset if part.offset % part.step else rows
                grown += (kept - rows - (-tokens // part.step) * part.step) * size // rows
        elif type(part) in FLAT:
            grown += size * tokens // part.offset
        elif type(part) is RotatingKVCache:  # its snapshot has arrays of its own
            rows = part.keys.shape[2]
            grown += min(part.max_size, part.offset + tokens) * size // rows
        else:
            grown += size
    return grown


def _parts(cache: Sequence[Any]) -> list[Any]:
    """The caches of a list, composites taken apart."""
    return [part for entry in cache for part in (_parts(entry.caches) if type(entry) is CacheList else [entry])]


def _lengths(cache: list) -> tuple[int, ...]:
    return tuple(
        max((part.offset for part in _parts([entry]) if type(part) in (*FLAT, *WINDOWED)), default=0) for entry in cache
    )


def _drop_unseen(part: Any) -> None:
    """Drop the rows that a ring holds beyond its window: a long update needed them, no later one sees them."""
    if (
        type(part) is RotatingKVCache
        and not part.keep
        and part.keys is not None
        and (part.keys.shape[2] > part.max_size)
    ):
        part.keys = mx.contiguous(part.keys[..., -part.max_size :, :])
        part.values = mx.contiguous(part.values[..., -part.max_size :, :])
        part._idx = part.max_size


def _own_attributes(part: Any) -> dict[str, Any]:
    """All attributes, with arrays of their own: a view is copied, so that the larger array behind it is freed."""
    attributes = vars(part)
    return copy.deepcopy(attributes, {id(array): mx.contiguous(array) for array in _arrays(attributes)})


def _fits(parts: list[Any], snapshot: Snapshot) -> bool:
    """Whether the snapshot is of such parts, and no flat one is shorter now."""
    return len(parts) == len(snapshot.parts) and all(
        isinstance(saved, dict) if type(part) not in FLAT else not isinstance(saved, dict) and part.offset >= saved
        for part, saved in zip(parts, snapshot.parts)
    )


def _arrays(value: Any) -> Iterator[mx.array]:
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, dict):
        yield from _arrays(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)


def _bytes(value: Any) -> int:
    return sum(array.nbytes for array in {id(array): array for array in _arrays(value)}.values())
