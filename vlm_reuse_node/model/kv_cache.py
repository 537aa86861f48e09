"""Snapshot and restore of a model's working state, for every kind of cache that mlx-vlm's models make.

A flat KV cache only ever writes behind its offset: a snapshot is the offset, restoring is trimming, nothing is copied.
A ring, a chunk or a recurrent state overwrites its past: a snapshot holds its arrays, and the cache goes on with other
array objects over the same buffers. MLX copies a shared buffer before it writes into it, so taking and restoring stay
cheap and the first write behind them pays for one copy of that layer, which is never longer than its window.
"""

import copy
from collections.abc import Iterator
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
# Trimming a ring is exact only while it never dropped a row, which a later and longer update can undo: always held.
WINDOWED = (RotatingKVCache, ChunkedKVCache)
HELD = (*WINDOWED, ArraysCache, PoolingCache)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A point that its cache can return to.

    lengths: tokens seen by each layer, 0 by one that does not count them (recurrent state).
    """

    lengths: tuple[int, ...]
    _parts: tuple[int | dict, ...] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt that the model had seen."""
        return max(self.lengths)


# The snapshots a cache can still return to, by the cache's first part.
_reachable: WeakKeyDictionary[Any, WeakSet[Snapshot]] = WeakKeyDictionary()


def new_cache(language_model: Any) -> list:
    """Make an empty cache: one entry per layer, fewer where layers share theirs.

    Raises ModelError for a kind that cannot be restored, and where no layer counts tokens.
    """
    cache = make_prompt_cache(language_model)
    kinds = {type(part) for part in _parts(cache)}
    unknown = sorted(kind.__name__ for kind in kinds.difference(FLAT, HELD))
    if unknown:
        raise ModelError(
            f"The model's cache holds {', '.join(unknown)}, which cannot be restored; expected "
            f'{", ".join(kind.__name__ for kind in (*FLAT, *HELD))}. Choose another model.'
        )
    if kinds.isdisjoint((*FLAT, *WINDOWED)):
        raise ModelError(
            'No layer of the model counts the tokens it has seen; expected at least one attention layer. '
            'Choose another model.'
        )
    return cache


def take(cache: list) -> Snapshot:
    """Remember what the cache holds now; it is evaluated, so that the snapshot pins no computation."""
    parts = _parts(cache)
    for part in parts:
        _drop_unseen(part)
    snapshot = Snapshot(_lengths(cache), tuple(part.offset if type(part) in FLAT else _held(part) for part in parts))
    mx.eval(list(_arrays(snapshot._parts)))
    _reachable.setdefault(parts[0], WeakSet()).add(snapshot)
    return snapshot


def restore(cache: list, snapshot: Snapshot) -> None:
    """Make the cache bit for bit what it was when the snapshot was taken; as often as wanted.

    Snapshots nest: returning to one gives up those taken behind it. Raises ModelError for a snapshot that was given up
    or is another cache's, and leaves the cache as it is.
    """
    parts = _parts(cache)
    reachable = _reachable.get(parts[0], ())
    if snapshot not in reachable or not _fits(parts, snapshot):
        raise ModelError(
            f'The cache holds {list(_lengths(cache))} tokens a layer and cannot return to its snapshot of '
            f'{list(snapshot.lengths)}, part of which is gone; it must be built again.'
        )
    for part, kept in zip(parts, snapshot._parts):
        if isinstance(kept, dict):
            part.__dict__ = copy.deepcopy(kept)  # of an mx.array: a new object over the same buffer
        elif part.offset > kept:
            part.trim(part.offset - kept)
    _reachable[parts[0]] = WeakSet(other for other in reachable if other.tokens <= snapshot.tokens)


def held_bytes(cache: list, *snapshots: Snapshot) -> int:
    """Bytes of the arrays that a cache and snapshots of it hold together, a shared one counted once.

    Flat layers count with what they have allocated. What else is held at one number of tokens is shared.
    """
    parts = _parts(cache)
    held = {max(_lengths(cache)): _bytes([vars(part) for part in parts if type(part) not in FLAT])}
    for snapshot in snapshots:
        held.setdefault(snapshot.tokens, _bytes(snapshot._parts))
    return _bytes([vars(part) for part in parts if type(part) in FLAT]) + sum(held.values())


def _parts(cache):
    """The caches of a list, composites taken apart."""
    return [part for entry in cache for part in (_parts(entry.caches) if type(entry) is CacheList else [entry])]


def _lengths(cache):
    return tuple(
        max((part.offset for part in _parts([entry]) if type(part) in (*FLAT, *WINDOWED)), default=0) for entry in cache
    )


def _drop_unseen(part):
    """Let go of what a ring holds beyond its window: a long update needed it, no later one sees it."""
    if (
        type(part) is RotatingKVCache
        and not part.keep
        and part.keys is not None
        and (part.keys.shape[2] > part.max_size)
    ):
        part.keys, part.values = (mx.contiguous(rows[..., -part.max_size :, :]) for rows in (part.keys, part.values))
        part._idx = part.max_size


def _held(part):
    """All attributes, with arrays of their own: what is a view of something larger becomes a copy and lets go of it."""
    attributes = vars(part)
    return copy.deepcopy(attributes, {id(array): mx.contiguous(array) for array in _arrays(attributes)})


def _fits(parts, snapshot):
    return len(parts) == len(snapshot._parts) and all(
        isinstance(kept, dict) if type(part) not in FLAT else not isinstance(kept, dict) and part.offset >= kept
        for part, kept in zip(parts, snapshot._parts)
    )


def _arrays(value: Any) -> Iterator[mx.array]:
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, dict):
        yield from _arrays(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _arrays(item)


def _bytes(value):
    return sum(array.nbytes for array in {id(array): array for array in _arrays(value)}.values())
