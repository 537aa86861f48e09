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

"""Positions of models that compute them from the pictures, and keep them as attributes for the calls that follow.

A second camera would inherit the attributes, and so would the rest of a prompt that is computed in another order. So
the model's own rule is asked for the positions of the whole prompt, every call is handed its part of them, and the
attributes are emptied before it.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model.families.picture_tokens import TokenSpan

# What mlx-vlm's language models call the attributes.
KEPT = ('_rope_deltas', '_position_ids')
# The rule, a method of theirs, and the sizes of the pictures that it takes: (time, rows, columns) of patches of each.
RULE, SIZES = 'get_rope_index', 'image_grid_thw'


class KeptPositions:
    """The positions of a model's prompts: (axes, length) int32.

    axes: how many numbers the position of one token has.
    """

    def __init__(self, language_model: Any, ids: Sequence[int], size: tuple[int, ...]) -> None:
        """Learn the form of positions. ids, size: of the prompt embedded last, and of its picture; see `TokenSpan`.

        Raises whatever the model raises.
        """
        self._language_model = language_model
        self._kept = [name for name in KEPT if hasattr(language_model, name)]
        self._has_rule = bool(size)  # else every token counts one
        shape = self._found(ids, [size]).shape if size else language_model._position_ids.shape
        self._tokens_last = shape[-1] == len(ids)  # else the axes are
        self._has_axes = len(shape) == 3
        self.axes = 1 if not self._has_axes else shape[0] if self._tokens_last else shape[-1]

    def of(self, ids: Sequence[int], spans: Sequence[TokenSpan]) -> np.ndarray:
        """Return the positions of a prompt that begins at 0, with these pictures."""
        if not self._has_rule:
            return self.of_text(0, len(ids))
        found = self._found(ids, [span.size for span in spans])
        if not self._tokens_last:
            found = found.transpose(2, 0, 1)
        return found.reshape(self.axes, len(ids)).astype(np.int32)

    def _found(self, ids: Sequence[int], sizes: list[tuple[int, ...]]) -> np.ndarray:
        """What the rule returns: (axes, 1, length), (1, length, axes) or (1, length)."""
        rule = getattr(self._language_model, RULE)
        return np.array(rule(mx.array([list(ids)]), **{SIZES: mx.array(sizes)})[0])

    def of_text(self, start: int, count: int) -> np.ndarray:
        """Return the positions of text, the first at `start`: the same number on every axis."""
        return np.tile(np.arange(start, start + count, dtype=np.int32), (self.axes, 1))

    def handed(self, positions: np.ndarray) -> dict[str, mx.array]:
        """Return the argument with which the language model takes a call's positions, and forget those of others."""
        self.forget()
        given = mx.array(positions)[:, None] if self._has_axes else mx.array(positions)
        return {'position_ids': given if self._tokens_last else given.transpose(1, 2, 0)}

    def forget(self) -> None:
        """Empty the attributes."""
        for name in self._kept:
            setattr(self._language_model, name, None)


def keeps_positions(language_model: Any) -> bool:
    """Whether a language model has such attributes."""
    return any(hasattr(language_model, name) for name in KEPT)
