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

"""Qwen3-VL: square cells of 32 px, interleaved M-RoPE, DeepStack, a flat KV cache; serves the mixture of experts too.

Source: mlx_vlm/models/qwen3_vl and qwen3_vl_moe. mlx-vlm drops the levels of DeepStack (`qwen3_vision`) when features
come from its cache (`cached_image_features`), or when their number is not that of the mask: this file gives every call
the levels of exactly its own tokens.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model.families.qwen3_vision import Qwen3VisionFamily


class Family(Qwen3VisionFamily):
    """See `families.base.Family`. The width of features is hidden * (1 + levels), that of text alone is hidden."""

    def embed(self, ids: list[int], features: mx.array | None = None) -> mx.array:
        """Token embeddings, mx (1, length, hidden); with features as wide as these, and 0 in the levels of text."""
        embeddings = super().embed(ids)
        if features is None:
            return embeddings
        added = features.shape[-1] - embeddings.shape[-1]
        embeddings = mx.pad(embeddings, [(0, 0), (0, 0), (0, added)])
        embeddings[0, mx.array(self.cells(ids))] = features.astype(embeddings.dtype)
        return embeddings

    def forward(
        self,
        ids: list[int],
        embeddings: mx.array,
        positions: np.ndarray,
        cache: list,
        keep: Sequence[int] = (-1,),
    ) -> mx.array:
        """Logits of some tokens, mx (kept, vocabulary)."""
        hidden = self._language.args.hidden_size
        levels = embeddings.shape[-1] // hidden - 1
        cells = self.cells(ids)
        if not levels or not cells.size:
            return self.run_layers(embeddings[..., :hidden], positions, cache, keep)
        first, *rest = mx.split(embeddings, 1 + levels, axis=-1)
        visual = np.isin(np.arange(len(ids)), cells)
        return self.run_layers(
            first,
            positions,
            cache,
            keep,
            visual_pos_masks=visual[None],
            deepstack_visual_embeds=[level[0, mx.array(cells)] for level in rest],
        )
