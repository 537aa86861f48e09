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

"""The tokens of pictures in a prompt, for models whose processor decides their number and what frames them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.model.families.base import Grid

# How far the ratio of a cell's sides may be from that of the picture's pixels.
MOST_STRETCHED = 3
# A prompt with fewer image tokens shows them in the place of pictures, where a picture has more.
MOST_PLACEHOLDERS = 64


class TokenSpan(Grid):
    """All tokens that replace a picture's placeholder, separators too, and a grid of its image tokens.

    The grid has as many cells as there are image tokens, or a few less, in rows and columns near the picture's shape.
    It says how finely two pictures are compared, not which token sees which pixels: such models refresh all cells or
    none.
    size: what the processor says of the picture's patches, (time, rows, columns); empty if it says nothing.
    """

    ids: tuple[int, ...]
    size: tuple[int, ...]

    def __new__(cls, rows: int, columns: int, ids: tuple[int, ...], size: tuple[int, ...] = ()) -> 'TokenSpan':
        """Lay out the image tokens among `ids` in rows and columns."""
        span = super().__new__(cls, rows, columns)
        span.ids, span.size = ids, size
        return span

    def __eq__(self, other: object) -> bool:
        """Compare all: pictures with equally many image tokens may have other separators, or other positions."""
        if not isinstance(other, TokenSpan):
            return False
        return (self.ids, self.size, *self) == (other.ids, other.size, *other)

    def __ne__(self, other: object) -> bool:
        """Override the tuple's, which compares rows and columns only."""
        return not self == other

    def __hash__(self) -> int:
        """Agree with equality."""
        return hash((*self, self.ids, self.size))


@dataclass(frozen=True)
class PictureTokens:
    """How a model's prompts show pictures.

    image: the token of one cell. placeholder: the chat template's token for a whole picture. head, tail: tokens before
    the first and behind the last image token of a picture. fewest: image tokens of a small picture; a larger one may
    have a few less, where they depend on its shape.
    """

    image: int
    placeholder: int
    head: tuple[int, ...]
    tail: tuple[int, ...]
    fewest: int

    @classmethod
    def of(cls, image: int, placeholder: int, small: tuple[int, ...]) -> 'PictureTokens':
        """Learn from the tokens of one small picture."""
        places = [index for index, token in enumerate(small) if token == image]
        return cls(image, placeholder, small[: places[0]], small[places[-1] + 1 :], len(places))

    def cells(self, ids: Sequence[int]) -> np.ndarray:
        """Return the indices of the image tokens, (cells,)."""
        return np.flatnonzero(np.array(ids) == self.image)

    def expand(self, ids: Sequence[int], spans: Sequence[TokenSpan]) -> list[int]:
        """Replace every placeholder by its picture's tokens."""
        waiting = iter(spans)
        return [token for given in ids for token in (next(waiting).ids if given == self.placeholder else [given])]

    def slots(self, ids: Sequence[int]) -> list[int]:
        """Return the index behind each picture's last token, its closing separators included."""
        images = [index for index, token in enumerate(ids) if token == self.image]
        if not self._is_expanded(ids, len(images)):
            return [index + 1 for index, token in enumerate(ids) if token == self.placeholder]
        gaps = [ids[here + 1 : following] for here, following in zip(images, images[1:])]
        last = [here for here, gap in zip(images, gaps) if self._parts_pictures(gap)] + images[-1:]
        return [index + 1 + len(self.tail) for index in last]

    def _is_expanded(self, ids: Sequence[int], images: int) -> bool:
        """Whether a prompt with so many image tokens has pictures in the place of placeholders."""
        if self.placeholder != self.image:
            return images > 0
        if self.tail:
            return (self.image, self.tail[0]) in zip(ids, ids[1:])
        return images >= min(self.fewest, MOST_PLACEHOLDERS)

    def _parts_pictures(self, gap: Sequence[int]) -> bool:
        """Whether tokens between two image tokens end one picture and begin another; else they are inside of one."""
        rest = gap[len(self.tail) :]
        ends_one = bool(gap) and tuple(gap[: len(self.tail)]) == self.tail
        return ends_one and (not self.head or self.head[0] in rest)


def rows_and_columns(count: int, ratio: float) -> tuple[int, int]:
    """Return rows and columns of `count` cells; rows / columns is near to `ratio`.

    Of exactly so many cells where that is possible, else of a few less: fewer than there are rows.
    """
    sides = [rows for rows in range(1, count + 1) if count % rows == 0]
    rows = min(sides, key=lambda rows: abs(np.log(rows * rows / count / ratio)))
    if abs(np.log(rows * rows / count / ratio)) > np.log(MOST_STRETCHED):
        rows = min(max(1, round((count * ratio) ** 0.5)), count)
    return rows, count // rows
