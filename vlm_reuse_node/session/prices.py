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

"""What the steps of one camera's session are expected to cost, from what the model's steps have cost so far."""

from collections.abc import Callable

from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.session.state import State


class Prices:
    """Expected work of refreshes. cells: visual tokens of the newest picture."""

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate]) -> None:
        """Take the prices from this model's meter. template_for: returns the prompt template for a number of frames."""
        self._meter, self._template_for = vlm.meter, template_for

    def frame(self, state: State | None, cells: int) -> Work:
        """To compute the newest picture whole."""
        return self._meter.frame(cells, self._slot(state, cells))

    def frames(self, state: State | None, cells: int, pictures: int, slots: int, is_anew: bool = False) -> Work:
        """To encode so many pictures, and to prefill so many slots. is_anew: with the prompt before the first one."""
        return self.frame(state, cells) + self._vision(cells, pictures - 1) + self.prefill(state, slots - 1, is_anew)

    def patch(self, state: State | None, cells: int, changed: int) -> Work:
        """To compute some cells of the newest picture."""
        return self._meter.patch(changed, cells, self._slot(state, cells)) if changed else Work()

    def cold(self, state: State) -> Work:
        """Of cold-dense, to compute the frames of a state from nothing."""
        tokens = state.tokens // len(state.frames)
        ms = sum(self._meter.frame(encoded.grid.cells, tokens).ms for encoded in state.frames)
        return Work(sum(encoded.grid.cells for encoded in state.frames), state.tokens, 0, ms)

    def prefill(self, state: State, frames: int, is_anew: bool = False) -> Work:
        """To prefill frames that are encoded already. is_anew: with the prompt before the first one."""
        slots = [self._slot(state, 0)] * frames + [len(self._template_for(1).prefix)] * is_anew
        return Work(0, sum(slots), 0, sum(map(self._meter.read.ms, slots)))

    def _vision(self, cells: int, pictures: int) -> Work:
        return Work(pictures * cells, 0, 0, pictures * self._meter.see.ms(cells))

    def _slot(self, state: State | None, cells: int) -> int:
        """Expected tokens of a picture's slot."""
        if state is not None and state.frames:
            return max(cells, state.tokens // len(state.frames))
        return cells + len(self._template_for(1).prefix)
