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

"""Gemma 4 without a vision tower (12B): a cell's feature is a projection of its own pixels and its place.

So a cell that did not change keeps its feature exactly, and `encode_cells` is exact. The language model is that of
`gemma4`, with pictures that look both ways.
Source: mlx_vlm/models/gemma4_unified.
"""

from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from vlm_reuse_node.errors import ImageError, ModelError
from vlm_reuse_node.model.families import gemma4
from vlm_reuse_node.model.families.base import Grid, VisionState
from vlm_reuse_node.model.families.sparse_vision import padded, written


class Family(gemma4.Family):
    """See `families.base.Family`.

    Pixels are a pair: values of each cell, mx (1, cells, values), and its column and row, mx (1, cells, 2); padding
    last.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        super().__init__(model, processor)
        self.cell_px = model.config.vision_config.model_patch_size

    def prepare(self, rgb: np.ndarray) -> tuple[Any, Grid]:
        """Pixel values of the cells, and the grid."""
        height, width = rgb.shape[:2]
        try:
            inputs, (cells,) = self._image_processor.preprocess([Image.fromarray(rgb)])
        except (ValueError, ZeroDivisionError) as error:
            raise ImageError(
                'size',
                f'The model cannot take a picture of {width} x {height} pixels: {error}. '
                f'Expected sides of at least one pixel.',
            ) from error
        values, places = inputs['pixel_values'], inputs['image_position_ids']
        columns, rows = (places[0, :cells].max(axis=0) + 1).tolist()
        if rows * columns != cells or values.shape[-1] != 3 * self.cell_px**2:
            raise ModelError(
                f"The model's image processor makes {cells} cells of a picture of {width} x {height} pixels, in "
                f'{rows} rows and {columns} columns, and the model takes cells of {self.cell_px} pixels a side; '
                'expected the same model_patch_size in config.json and processor_config.json, and whole rows.'
            )
        return (mx.array(values), mx.array(places)), Grid(rows, columns)

    def prepare_cells(self, rgb: np.ndarray, grid: Grid, cells: np.ndarray) -> Any:
        """Pixel values of the whole picture."""
        pixels, _ = self.prepare(rgb)
        return pixels

    def encode(self, pixels: Any, grid: Grid) -> mx.array:
        """Features, mx (cells, hidden)."""
        return self._model.get_image_features(*pixels)

    def encode_cells(self, pixels: Any, grid: Grid, cells: np.ndarray, older: VisionState | None) -> VisionState:
        """Each by itself: exact."""
        if older is None:
            return VisionState(self.encode(pixels, grid), ())
        rows = mx.array(padded(cells, grid.cells))
        features = self._model.get_image_features(*(part[:, rows] for part in pixels))
        return VisionState(written(older.features, rows, features), ())
