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

"""The bits of a state's cache, to see whether a question left any trace."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import CacheList, KVCache

from vlm_reuse_node.model import kv_cache
from vlm_reuse_node.session.state import State


def state_bits(state: State) -> bytes:
    """Digest of everything that a later call could see in the cache: bit for bit the same, or another digest."""
    digest = blake2b(digest_size=16)
    for part in _parts(state.cache):
        attributes = vars(part)
        if type(part) in kv_cache.FLAT:  # rows behind the offset are never seen
            attributes = {name: _seen(value, part.offset) for name, value in attributes.items()}
        for name, value in sorted(attributes.items()):
            digest.update(f'{type(part).__name__} {name} '.encode())
            for piece in _pieces(value):
                digest.update(piece)
    return digest.digest()


def has_trace(state: State) -> bool:
    """Whether the cache ends elsewhere than at the snapshot."""
    return kv_cache.held_tokens(state.cache) != state.tokens


def rows(cache: list, tokens: int) -> list[mx.array]:
    """Keys and values of the first tokens, in the first and in the last layer that keeps them as they are."""
    flat = [part for part in _parts(cache) if type(part) is KVCache]
    return [
        array[..., :tokens, :]
        for part in dict.fromkeys((flat[0], flat[-1]) if flat else ())
        for array in (part.keys, part.values)
    ]


def _seen(value: Any, tokens: int) -> Any:
    """The rows of the first tokens, in an array or in the arrays of a quantised one."""
    if isinstance(value, mx.array):
        return value[..., :tokens, :]
    return type(value)(_seen(item, tokens) for item in value) if isinstance(value, list | tuple) else value


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, mx.array):
        yield f'{value.dtype} {value.shape} '.encode()
        yield np.array(mx.contiguous(value).view(mx.uint8)).tobytes() if value.ndim else repr(value.item()).encode()
    elif isinstance(value, dict):
        for name, item in sorted(value.items()):
            yield repr(name).encode()
            yield from _pieces(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _pieces(item)
    else:
        yield repr(value).encode()


def _parts(cache: Iterable[Any]) -> Iterator[Any]:
    """The caches of a list, composites taken apart."""
    for entry in cache:
        yield from _parts(entry.caches) if type(entry) is CacheList else [entry]
