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

"""The record of a standing question, and the part of the picture that it depends on."""

import math
from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.question import Question


@dataclass(frozen=True)
class Region:
    """A part of a camera's picture: left, top, width and height in pixels. Width and height 0: the whole picture."""

    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    def touches(self, cells: np.ndarray, size: tuple[int, int]) -> bool:
        """Whether one of these cells, (rows, columns) bool, overlaps the region.

        size: (height, width) of the picture; the cells cover it evenly. A region outside the picture overlaps no cell.
        """
        if not self.width:
            return bool(cells.any())
        spans = ((self.y, self.height, size[0], cells.shape[0]), (self.x, self.width, size[1], cells.shape[1]))
        rows, columns = (
            slice(first * count // pixels, math.ceil((first + extent) * count / pixels))
            for first, extent, pixels, count in spans
        )
        return bool(cells[rows, columns].any())

    def check(self, size: tuple[int, int] | None) -> None:
        """Refuse a region that no cell can overlap. size: (height, width) of the camera's picture; None: not known.

        Raises InvalidRequestError.
        """
        if bool(self.width) != bool(self.height):
            raise InvalidRequestError(
                f'region is {self.width} x {self.height} px; expected both above 0, or both 0 for the whole picture.'
            )
        if size and self.width and (self.x >= size[1] or self.y >= size[0]):
            raise InvalidRequestError(
                f'region begins at {self.x}, {self.y}, outside the picture of {size[1]} x {size[0]} px; '
                'expected a region inside it.'
            )


@dataclass(frozen=True)
class Watch:
    """A standing question.

    watch_id: its number, 1 or more; a process never uses a number twice.
    question: a question with choices.
    margin: how much more probable another choice must be than the current answer to replace it.
    region: the part of the picture that the answer depends on.
    answer: the current answer; None before the first.
    """

    watch_id: int
    camera: str
    question: Question
    margin: float = 0.0
    region: Region = Region()
    answer: Answer | None = None

    def check(self, size: tuple[int, int] | None) -> None:
        """Check a standing question; size as for `Region.check`. Raises InvalidRequestError."""
        if len(self.question.choices) < 2:
            raise InvalidRequestError(
                f'A standing question needs at least 2 choices; got {len(self.question.choices)}.'
            )
        if not 0 <= self.margin <= 1:
            raise InvalidRequestError(f'margin is {self.margin}; expected 0 to 1.')
        self.region.check(size)

    def is_replaced_by(self, answer: Answer) -> bool:
        """Whether an answer replaces the current one."""
        if self.answer is None:
            return True
        held, new = self.answer.choice_index, answer.choice_index
        return new != held and answer.choice_scores[new] - answer.choice_scores[held] >= self.margin
