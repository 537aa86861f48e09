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

"""A reference for what a state holds: all rows of all layers, windows as masks over them, one call after the other."""

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import KVCache


class FlatRows(KVCache):
    """Keeps every row. Which ones a token sees is in the mask: all up to itself, inside the window."""

    def make_mask(self, count, window_size=None, return_array=False):
        distance = np.arange(self.offset, self.offset + count)[:, None] - np.arange(self.offset + count)
        return mx.array((distance >= 0) & (distance < (window_size or self.offset + count)))


class PatchedRows(FlatRows):
    """Takes the tokens of a slot again, and keeps the old rows of those that are not rewritten."""

    def __init__(self, older, start, rows):
        """older: the layer's rows, whose first `start` stay. rows: those that are rewritten."""
        super().__init__()
        self.update_and_fetch(older.keys[..., :start, :], older.values[..., :start, :])
        self._older, self._rows = older, rows

    def update_and_fetch(self, keys, values):
        if hasattr(self, '_older'):
            rows = np.arange(self.offset, self.offset + keys.shape[2])
            new = mx.array(np.isin(rows, self._rows))[:, None]
            keys = mx.where(new, keys, self._older.keys[..., mx.array(rows), :])
            values = mx.where(new, values, self._older.values[..., mx.array(rows), :])
        return super().update_and_fetch(keys, values)


class FlatState:
    """What a `State` of the same pictures holds, computed with a `FlatRows` for every layer."""

    def __init__(self, vlm, template_for, frames=()):
        self._vlm, self._template_for = vlm, template_for
        self._frames, self._starts = [], []
        self.cache = [FlatRows() for _ in vlm.new_cache()]
        for encoded in frames:
            self.append(encoded)

    @property
    def _prompt(self):
        grids = [encoded.grid for encoded in self._frames]
        ids = self._vlm.family.expand(self._template_for(len(grids)).prefix, grids)
        return ids, self._vlm.family.positions(ids, grids)

    def append(self, encoded):
        """A frame behind the others."""
        self._starts.append(len(self._prompt[0]) if self._frames else 0)
        self._frames.append(encoded)
        self._prefill(self.cache)

    def drop_live(self):
        """Take the last frame out."""
        self._frames.pop()
        self._trim(self._starts.pop())

    def rewrite(self, encoded, cells):
        """Other features in some cells of the last frame; those behind the cells are rewritten too."""
        self._frames[-1], start = encoded, self._starts[-1]
        ids = self._prompt[0]
        live = self._vlm.family.cells(ids)[-encoded.grid.cells :]
        rows = np.append(live[cells], np.arange(live[-1] + 1, len(ids)))
        cache = [PatchedRows(layer, start, rows) for layer in self.cache]
        self._prefill(cache)
        for layer, patched in zip(self.cache, cache):
            layer.keys, layer.values, layer.offset = patched.keys, patched.values, patched.offset

    def logits(self, *texts):
        """Of all tokens of texts behind each other, which are taken back."""
        (ids, positions), logits = self._prompt, []
        start = int(positions.max()) + 1
        for text in texts:
            family = self._vlm.family
            positions = family.text_positions(start, len(text))
            logits.append(family.forward(text, family.embed(text), positions, self.cache, range(len(text))))
            start += len(text)
        self._trim(len(ids))
        return logits

    @property
    def rows(self):
        """Keys and values of every layer, those that a window would not show included."""
        return [layer.state for layer in self.cache]

    def _prefill(self, cache):
        (ids, positions), start = self._prompt, self._starts[-1]
        embeddings = self._vlm.family.embed(ids[start:], self._frames[-1].features)
        mx.eval(self._vlm.family.forward(ids[start:], embeddings, positions[:, start:], cache))

    def _trim(self, tokens):
        for layer in self.cache:
            layer.offset = tokens


def in_order(layer):
    """Keys and values that a layer's cache keeps, in the order of their tokens."""
    if type(layer) is KVCache:
        return [rows[..., : layer.offset, :] for rows in (layer.keys, layer.values)]
    kept = min(layer.offset, layer.max_size)
    turned = [layer._temporal_order(rows) for rows in (layer.keys, layer.values)]
    return [rows[..., rows.shape[2] - kept :, :] for rows in turned]


def last_rows(rows, like):
    """As many of the last rows as another layer has."""
    return [each[..., each.shape[2] - other.shape[2] :, :] for each, other in zip(rows, like)]
