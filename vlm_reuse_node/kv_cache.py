"""Snapshot and restore of a model's working state.

A flat KV cache only ever writes behind its offset, so a snapshot is the offsets and restoring is trimming: nothing is
copied, and what lies before the snapshot is never written again.
"""

from dataclasses import dataclass
from typing import Any

from mlx_vlm.models.cache import KVCache, make_prompt_cache

from vlm_reuse_node.errors import ModelError


@dataclass(frozen=True)
class Snapshot:
    """A point that a cache can return to.

    lengths: tokens held, layer by layer.
    """

    lengths: tuple[int, ...]


def new_cache(language_model: Any) -> list:
    """Make an empty cache, one entry per layer. Raises ModelError for a kind that cannot be restored."""
    cache = make_prompt_cache(language_model)
    unknown = sorted({type(entry).__name__ for entry in cache if type(entry) is not KVCache})
    if unknown:
        raise ModelError(f"The model's cache is made of {', '.join(unknown)}; this version restores KVCache only. "
                         f'Choose a model with plain attention, such as Qwen2.5-VL.')
    return cache


def take(cache: list) -> Snapshot:
    """Remember where every layer's cache ends now."""
    return Snapshot(tuple(entry.offset for entry in cache))


def restore(cache: list, snapshot: Snapshot) -> None:
    """Forget what was added since the snapshot. Raises ModelError when part of the snapshot is gone."""
    if len(cache) != len(snapshot.lengths) or any(
            entry.offset < length for entry, length in zip(cache, snapshot.lengths)):
        raise ModelError(f'The cache holds {[entry.offset for entry in cache]} tokens a layer, less than its '
                         f'snapshot of {list(snapshot.lengths)}; it must be built again.')
    for entry, length in zip(cache, snapshot.lengths):
        entry.trim(entry.offset - length)
