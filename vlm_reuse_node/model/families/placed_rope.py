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

from typing import Any

import mlx.core as mx
import mlx.nn as nn


class PlacedRope(nn.Module):
    """Wraps the rotary embedding of an attention layer that takes positions from its cache.

    mlx-vlm's take one offset for each sequence of a batch. So where a call gives an offset for each token, every token
    goes through as a sequence of its own.
    """

    def __init__(self, rope: Any) -> None:
        """Wrap a layer's own embedding."""
        super().__init__()
        self.rope = rope

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Turn x, mx (batch, heads, tokens, width). offset: of the first token, or of each, mx (tokens,)."""
        if isinstance(offset, mx.array) and x.shape[0] == 1 and offset.size > 1:
            return self.rope(x.transpose(2, 1, 0, 3), offset=offset).transpose(2, 1, 0, 3)
        return self.rope(x, offset=offset)


def place_ropes(language_model: Any) -> None:
    """Wrap the rotary embeddings of all layers that keep theirs as `rope`, once."""
    for _, module in language_model.named_modules():
        rope = module.get('rope') if isinstance(module, nn.Module) else None
        if isinstance(rope, nn.Module) and not isinstance(module, PlacedRope) and not isinstance(rope, PlacedRope):
            module.rope = PlacedRope(rope)
