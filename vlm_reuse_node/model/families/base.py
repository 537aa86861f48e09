"""The contract of a model family, and the table of families.

A family knows how one architecture cuts a picture, where the picture sits in the prompt, which positions its tokens
have, and how to run the language model once on a cache. It holds no state: everything is passed and returned.
"""

from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from vlm_reuse_node.errors import ModelError

# model_type in config.json -> the module whose class `Family` serves it.
FAMILIES = {
    'gemma4': 'vlm_reuse_node.model.families.gemma4',
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


class VisionState(NamedTuple):
    """What is kept of an encoded picture, so that a few cells of the next one can be encoded in its surroundings.

    features: mx (cells, width), row by row. blocks: keys and values of each block of the vision tower that looks beyond
    what is encoded anew, mx (heads, patches, head width), patches in the order the family runs them in.
    """

    features: Any
    blocks: tuple[tuple[Any, Any], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.features.nbytes + sum(keys.nbytes + values.nbytes for keys, values in self.blocks)


class Family(Protocol):
    """What a session asks of an architecture. Arrays named `mx` belong to the thread that made them.

    cell_px: pixels of a cell's side, on the picture as the model sees it.
    takes_mask: whether `forward` takes a mask: attention layers with a flat cache alone.
    encodes_cells: whether it has `prepare_cells`, `encode_cells`, `cells` and `rewrite`.
    """

    cell_px: int
    takes_mask: bool
    encodes_cells: bool

    def __init__(self, model: Any, processor: Any):
        """Serve a model and a processor as `mlx_vlm.load` returns them."""

    def prepare(self, rgb: np.ndarray) -> tuple[Any, Grid]:
        """Run the model's own image processor on a (height, width, 3) uint8 picture.

        Returns the pixel values for `encode`, and the picture's grid.
        Raises ImageError('size', ...) for a picture the processor refuses.
        """

    def encode(self, pixels: Any, grid: Grid) -> Any:
        """Run the vision tower: mx (cells, width), row by row. Not evaluated yet.

        The width is the language model's, or more where features enter at several layers: `embed` knows.
        """

    def prepare_cells(self, rgb: np.ndarray, grid: Grid, cells: np.ndarray) -> Any:
        """Run the image processor for what `encode_cells` reads to encode these cells of a picture of this grid."""

    def encode_cells(self, pixels: Any, grid: Grid, cells: np.ndarray, kept: VisionState | None) -> VisionState:
        """Run the vision tower for some cells alone, in the surroundings that were kept of an older picture.

        pixels: of the whole picture, from `prepare`, or of these cells, from `prepare_cells`. cells: their numbers, row
        by row, ascending. kept: None when it is all of them: then the features are those of `encode`.
        Returns what to keep now, in which all else is as it was. Not evaluated yet.
        """

    def slots(self, ids: list[int]) -> list[int]:
        """Return where each picture's slot ends in a prompt, expanded or not: the index right behind its last token.

        The snapshot is taken at the last of them, and a picture's tokens begin at or after the one before.
        """

    def expand(self, ids: list[int], grids: list[Grid]) -> list[int]:
        """Give every picture, one token in the chat template, as many tokens as it has cells."""

    def positions(self, ids: list[int], grids: list[Grid]) -> np.ndarray:
        """Positions of an expanded prompt that starts at 0: (axes, length) int32."""

    def text_positions(self, start: int, count: int) -> np.ndarray:
        """Positions of `count` text tokens, the first at `start`: (axes, count) int32."""

    def cells(self, ids: list[int]) -> np.ndarray:
        """Where the pictures' tokens are in an expanded prompt: (cells,) indices."""

    def embed(self, ids: list[int], features: Any = None) -> Any:
        """Embed an expanded prompt, with `features` (all pictures' cells in order) in the cells' place.

        Returns mx (1, length, width). Not evaluated yet.
        """

    def chunks(self, ids: list[int], limit: int) -> list[slice]:
        """Cut a slot's or a question's tokens into forward calls of at most `limit`, more only where a cut is wrong.

        A picture whose tokens see each other in both directions is never cut.
        """

    def forward(
        self, ids: list[int], embeddings: Any, positions: np.ndarray, cache: list, keep: int = 1, mask: Any = None
    ) -> Any:
        """Run the language model once behind what `cache` holds, and add these tokens to it.

        ids, embeddings, positions: of the same tokens, one of `chunks`. cache: as the model's `make_cache` returned it.
        mask: mx (length, held + length) bool, which tokens see which ones; None: all that come before.
        Returns the logits of the last `keep` tokens: mx (keep, vocabulary) float32. Not evaluated yet.
        """

    def rewrite(
        self, ids: list[int], embeddings: Any, positions: np.ndarray, rows: np.ndarray, picture: np.ndarray, cache: list
    ) -> None:
        """Compute tokens that `cache` holds anew in their place, each seeing all before it, new ones among them.

        ids, embeddings, positions, rows: of the same tokens, rows (tokens,) is where they are, ascending. picture:
        where all cells of their picture are. cache: one for which `kv_rewrite.is_possible`. Not evaluated yet.
        """


def even_chunks(length: int, limit: int) -> list[slice]:
    """Cut so many tokens every `limit`; what a family without two-way attention does."""
    return [slice(first, min(first + limit, length)) for first in range(0, length, limit)]


def family_for(model_type: str) -> type[Family]:
    """Return the class that serves a model_type: its own, or for any other type that mlx-vlm loads the generic one.

    The generic one looks at the loaded model too, and refuses it when its answers would not be exact.
    Raises ModelError that names what is missing and the types with a family of their own.
    """
    if model_type in FAMILIES:
        return import_module(FAMILIES[model_type]).Family
    generic = import_module('vlm_reuse_node.model.families.generic')
    if missing := generic.missing(model_type):
        raise ModelError(
            f"The model's type is '{model_type}', and {missing}; supported are "
            f'{", ".join(sorted(FAMILIES))}, and most vision-language models of mlx-vlm. '
            f'Choose a model of one of these types.'
        )
    return generic.Family
