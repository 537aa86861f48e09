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

"""Rotary position embeddings for tokens whose positions do not follow each other."""

from functools import cache
from inspect import signature
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# What mlx-vlm's attention layers call their rotary embedding.
ROPES = ('rope', 'rotary_emb')


class PlacedRope:
    """Goes before the class of a rotary embedding that takes positions from a cache.

    mlx-vlm's take one offset for each sequence of a batch. So where a call gives an offset for each token, every token
    goes through as a sequence of its own.
    """

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Turn x, mx (batch, heads, tokens, width). offset: of the first token, or of each, mx (tokens,)."""
        turn: Any = super().__call__  # type: ignore[misc]
        if isinstance(offset, mx.array) and x.shape[0] == 1 and offset.size > 1:
            return turn(x.transpose(2, 1, 0, 3), offset=offset).transpose(2, 1, 0, 3)
        return turn(x, offset=offset)


def place_ropes(language_model: Any) -> None:
    """Let all rotary embeddings that take an offset take one for each token, too; once.

    They change their class only: all that a layer reads of its embedding is still there, under the same names.
    """
    for name, module in language_model.named_modules():
        kind: Any = type(module)
        if name.rpartition('.')[2] in ROPES and not issubclass(kind, PlacedRope) and _takes_offset(kind):
            module.__class__ = _placed(kind)


def _takes_offset(kind: type) -> bool:
    return issubclass(kind, nn.Module) and list(signature(kind.__call__).parameters)[2:] == ['offset']


@cache
def _placed(kind: type) -> type:
    return type(f'Placed{kind.__name__}', (PlacedRope, kind), {})
