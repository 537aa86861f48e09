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

"""The contract of a model family, and the table of families.

A family knows how one architecture cuts a picture, where the picture is in the prompt, which positions its tokens have,
and how to run the language model once on a cache. It holds no state of a camera: everything is passed and returned.
"""

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model.families import model_types

# model_type in config.json -> the module whose class `Family` serves it.
FAMILIES = {
    'gemma4': 'vlm_reuse_node.model.families.gemma4',
    'gemma4_unified': 'vlm_reuse_node.model.families.gemma4_unified',
    'qwen2_vl': 'vlm_reuse_node.model.families.qwen2_vl',
    'qwen2_5_vl': 'vlm_reuse_node.model.families.qwen2_5_vl',
    'qwen3_5': 'vlm_reuse_node.model.families.qwen3_5',
    'qwen3_5_moe': 'vlm_reuse_node.model.families.qwen3_5',
    'qwen3_vl': 'vlm_reuse_node.model.families.qwen3_vl',
    'qwen3_vl_moe': 'vlm_reuse_node.model.families.qwen3_vl',
}


class Grid(NamedTuple):
    """Cells of one picture; a cell is the block of pixels of one visual token."""

    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """Visual tokens of the picture."""
        return self.rows * self.columns


# Keys and values of one layer.
KeysValues = tuple[mx.array, mx.array]


class VisionState(NamedTuple):
    """The vision tower's arrays of one picture. With them a few cells of the next picture can be encoded alone.

    features: mx (cells, width), row by row. blocks: keys and values of each block of the tower in which encoded cells
    look at others, mx (heads, patches, head width), patches in the order in which the family runs them.
    """

    features: mx.array
    blocks: tuple[KeysValues, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.features.nbytes + sum(keys.nbytes + values.nbytes for keys, values in self.blocks)


class Family(Protocol):
    """What a session needs from an architecture. MLX arrays belong to the thread that made them.

    cell_px: pixels of a cell's side, in the picture as the model sees it.
    branches: whether `forward` takes a cache of stand-ins (`pass_cache`), where `pass_cache.is_possible`.
    branches_recurrent: whether it takes those of recurrent layers, too.
    encodes_cells: whether it has `prepare_cells` and `encode_cells`, and branches.
    two_way: whether the cells of a picture see each other in both directions.
    marker: how the chat template's text marks a picture, and the token that stands for it, where a tokenizer does not
        make that token of it; None: it does.
    one_picture: whether mlx-vlm computes prompts with one picture only, or right only these.
    """

    cell_px: int
    branches: bool
    branches_recurrent: bool
    encodes_cells: bool
    two_way: bool
    marker: tuple[re.Pattern[str], int] | None
    one_picture: bool

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them."""

    def prepare(self, rgb: np.ndarray) -> tuple[Any, Grid]:
        """Run the model's own image processor on a (height, width, 3) uint8 picture.

        Returns the pixel values for `encode`, in the family's own form, and the picture's grid.
        Raises ImageError('size', ...) for a picture that the processor refuses.
        """

    def encode(self, pixels: Any, grid: Grid) -> mx.array:
        """Run the vision tower. Returns features, mx (cells, width), row by row, not evaluated yet.

        The width is the language model's, or larger where features enter at several layers; `embed` takes them apart.
        """

    def prepare_cells(self, rgb: np.ndarray, grid: Grid, cells: np.ndarray) -> Any:
        """Run the image processor on as much of a picture as `encode_cells` needs for these cells."""

    def encode_cells(self, pixels: Any, grid: Grid, cells: np.ndarray, older: VisionState | None) -> VisionState:
        """Run the vision tower for some cells only; the other cells are those of an older picture.

        pixels: of the whole picture, from `prepare`, or of these cells, from `prepare_cells`. cells: (cells,) numbers,
        row by row, ascending. older: the older picture's state; None when `cells` are all cells: then the features are
        those of `encode`. Returns the older state with the arrays of these cells replaced, not evaluated yet.
        """

    def slots(self, ids: list[int]) -> list[int]:
        """Return where each picture's slot ends in a prompt, expanded or not: the index right behind its last token.

        The snapshot is taken at the end of the last slot. A picture's tokens are behind the end of the slot before.
        """

    def expand(self, ids: list[int], grids: list[Grid]) -> list[int]:
        """Replace the one token that a picture has in the chat template by as many as it has cells."""

    def positions(self, ids: list[int], grids: list[Grid]) -> np.ndarray:
        """Return the positions of an expanded prompt that starts at 0: (axes, length) int32."""

    def text_positions(self, start: int, count: int) -> np.ndarray:
        """Return the positions of `count` text tokens, the first at `start`: (axes, count) int32."""

    def cells(self, ids: list[int]) -> np.ndarray:
        """Return the indices of the pictures' cells in an expanded prompt: (cells,)."""

    def embed(self, ids: list[int], features: mx.array | None = None) -> mx.array:
        """Embed an expanded prompt, with `features` (all pictures' cells in order) in place of the cells' tokens.

        Returns mx (1, length, width), not evaluated yet.
        """

    def chunks(self, ids: list[int], limit: int) -> list[slice]:
        """Cut the tokens of a slot or a question into forward calls of at most `limit` tokens.

        A picture whose tokens see each other in both directions is never cut; its call may be longer.
        """

    def forward(
        self,
        ids: list[int],
        embeddings: mx.array,
        positions: np.ndarray,
        cache: list,
        keep: Sequence[int] = (-1,),
    ) -> mx.array:
        """Run the language model once, and add the tokens to `cache`.

        ids, embeddings, positions: of the same tokens, one of `chunks`, or all tokens of a `TokenTree`.
        cache: as the model's `make_cache` returned it: each token sees all before it. Or stand-ins for a tree.
        keep: numbers of the tokens whose logits are returned; from the end if negative.
        Returns their logits, mx (kept, vocabulary) float32, not evaluated yet.
        """

    def step(self, token: mx.array, position: int, cache: list) -> mx.array:
        """`forward` for one token of text that need not be evaluated yet, mx (1,), and is not read.

        Returns the logits behind it, mx (1, vocabulary) float32, not evaluated yet.
        """


def even_chunks(length: int, limit: int) -> list[slice]:
    """Cut `length` tokens every `limit`; right for a family without two-way attention."""
    return [slice(first, min(first + limit, length)) for first in range(0, length, limit)]


def can_see(model_type: str) -> bool:
    """Whether mlx-vlm has a vision tower for this model_type: FastVLM's and Phi-3-V's config.json does not tell."""
    return bool(model_types.vision_module(model_type))


def family_for(model_type: str) -> type[Family]:
    """Return the class that serves a model_type: its own one, or the generic one for any other type mlx-vlm can load.

    The generic class also examines the loaded model, and refuses one whose answers would not be exact.
    Raises ModelError for a type that mlx-vlm cannot serve, with the reason and the types that have their own class.
    """
    if model_type in FAMILIES:
        return import_module(FAMILIES[model_type]).Family
    if missing := model_types.missing(model_type):
        raise ModelError(
            f"The model's type is '{model_type}', and {missing}; supported are "
            f'{", ".join(sorted(FAMILIES))}, and most vision-language models of mlx-vlm. '
            f'Choose a model of one of these types.'
        )
    return import_module('vlm_reuse_node.model.families.generic').Family
