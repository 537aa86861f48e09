"""The record of a standing question, and the part of the picture that it depends on."""

import math
from dataclasses import dataclass

import numpy as np

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.question import Question


@dataclass(frozen=True)
class Region:
    """A part of a camera's picture: left, top, width and height in its pixels. Width and height 0: all of it."""

    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    def touches(self, cells: np.ndarray, size: tuple[int, int]) -> bool:
        """Whether one of these cells, (rows, columns) bool, lies in it or at its border.

        size: (height, width) of the picture, which the cells cover evenly. A region outside the picture touches none.
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
        """Refuse a region that nothing would ever touch. size: (height, width) of the camera's picture, where known.

        Raises InvalidRequestError.
        """
        if bool(self.width) != bool(self.height):
            raise InvalidRequestError(
                f'region is {self.width} x {self.height} px; expected both above 0, or both 0 for the whole picture.'
            )
        if size and self.width and (self.x >= size[1] or self.y >= size[0]):
            raise InvalidRequestError(
                f'region begins at {self.x}, {self.y}, outside the picture of {size[1]} x {size[0]} px; '
                'expected pixels of it.'
            )


@dataclass(frozen=True)
class Watch:
    """A standing question.

    watch_id: names it, above 0, never given twice in a process. question: with choices. margin: how much more probable
    another choice must be than the one that holds before it takes its place. answer: the one that holds, None before
    the first.
    """

    watch_id: int
    camera: str
    question: Question
    margin: float = 0.0
    region: Region = Region()
    answer: Answer | None = None

    def check(self, size: tuple[int, int] | None) -> None:
        """Refuse a question that cannot stand; size as for `Region.check`. Raises InvalidRequestError."""
        if len(self.question.choices) < 2:
            raise InvalidRequestError(
                f'A standing question needs at least 2 choices; got {len(self.question.choices)}.'
            )
        if not 0 <= self.margin <= 1:
            raise InvalidRequestError(f'margin is {self.margin}; expected 0 to 1.')
        self.region.check(size)

    def is_replaced_by(self, answer: Answer) -> bool:
        """Whether an answer takes the place of the one that holds."""
        if self.answer is None:
            return True
        held, new = self.answer.choice_index, answer.choice_index
        return new != held and answer.choice_scores[new] - answer.choice_scores[held] >= self.margin
