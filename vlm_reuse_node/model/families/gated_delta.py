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

"""Runs a gated-delta layer on a tree of tokens.

Source: mlx_vlm/models/qwen3_5/language.py, `Qwen3_5GatedDeltaNet`. Its weights are in matrices that look at one token
at a time; these are applied to all tokens of a call at once. What depends on the order of tokens, a short convolution
and the recurrence, has hardly any weights. It goes through the tree block by block, in the layer's own code.
"""

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.models.cache import ArraysCache

from vlm_reuse_node.model.pass_cache import RecurrentPass

# The matrices in front of the convolution and the recurrence.
MATRICES = ('in_proj_qkv', 'in_proj_z', 'in_proj_b', 'in_proj_a')


class BlockwiseGatedDelta(nn.Module):
    """Wraps a gated-delta layer."""

    def __init__(self, layer: Any) -> None:
        """Wrap a layer, a Qwen3_5GatedDeltaNet."""
        super().__init__()
        self.layer = layer

    def __call__(self, inputs: mx.array, mask: mx.array | None = None, cache: Any = None) -> mx.array:
        """Compute inputs, mx (1, tokens, width), as the layer does, or for a tree of tokens."""
        layer = self.layer
        if not isinstance(cache, RecurrentPass):
            return layer(inputs, mask, cache)
        projected = {name: layer[name](inputs)[0] for name in MATRICES}

        def step(tokens: mx.array, states: ArraysCache) -> mx.array:
            """The layer with what its matrices gave for these tokens in their place."""
            ordered = copy.copy(layer)
            for name, array in projected.items():
                setattr(ordered, name, _giving(array[tokens]))
            ordered.out_proj = nn.Identity()
            inputs_like = projected['in_proj_qkv'][tokens]  # only its shape and type matter
            return ordered(inputs_like, states.make_mask(tokens.shape[1]), states)

        return layer.out_proj(cache.run(step))


def run_by_blocks(language_model: Any) -> None:
    """Wrap the gated-delta layers of a model, once."""
    for layer in language_model.layers:
        if layer.is_linear and not isinstance(layer.linear_attn, BlockwiseGatedDelta):
            layer.linear_attn = BlockwiseGatedDelta(layer.linear_attn)


def _giving(array: mx.array) -> Callable[[mx.array], mx.array]:
    """Return what stands in for a matrix whose products are known."""
    return lambda inputs: array
