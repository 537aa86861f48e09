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

import math
from collections.abc import Callable
from dataclasses import replace

from vlm_reuse_node.model.families.sparse_vision import padded_length
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.session.state import State


class Prices:
    """Expected work of refreshes, at least as many tokens as they take. cells: visual tokens of the newest picture."""

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate]) -> None:
        """Take the prices from this model's meter. template_for: returns the prompt template for a number of frames."""
        self._meter, self._template_for = vlm.meter, template_for

    def frame(self, state: State | None, cells: int) -> Work:
        """To compute the newest picture whole, in the live frame's place."""
        kept = len(state.frames) - state.has_live if state is not None else 0
        return self.frames(state, cells, 1, kept)

    def frames(self, state: State | None, cells: int, slots: int, kept: int) -> Work:
        """To encode the newest picture, and to prefill so many slots, its own the last, behind `kept` others."""
        return Work(cells, 0, 0, self._meter.see.ms(cells)) + self._read(self._tokens(state, cells, slots, kept), slots)

    def patch(self, state: State | None, cells: int, changed: int, first: int = 0) -> Work:
        """To compute so many cells of the newest picture. first: the number of the first of them."""
        if not changed:
            return Work()
        if state is not None and (restart := state.restart(first)):
            return self._meter.restart(changed, cells, restart.tokens)
        kept = max(0, len(state.frames) - 1) if state is not None else 0
        slot = self._tokens(state, cells, 1, kept)
        work, most = self._meter.patch(changed, cells, slot), state.tokens if state is not None else slot
        return replace(work, prefill_tokens=padded_length(work.prefill_tokens, most))

    def cold(self, state: State) -> Work:
        """Of cold-dense, to compute the frames of a state from nothing."""
        tokens = state.tokens // len(state.frames)
        ms = sum(self._meter.frame(encoded.grid.cells, tokens).ms for encoded in state.frames)
        return Work(sum(encoded.grid.cells for encoded in state.frames), state.tokens, 0, ms)

    def prefill(self, state: State, slots: int, kept: int) -> Work:
        """To prefill so many frames of a state once more, behind `kept` others."""
        return self._read(self._tokens(state, state.frames[0].grid.cells, slots, kept), slots)

    def waiting(self, state: State) -> Work:
        """To compute the tokens that wait in a state, unless the live frame is replaced."""
        return Work(0, state.waiting, 0, self._meter.read.ms(state.waiting) if state.waiting else 0.0)

    def _read(self, tokens: int, slots: int) -> Work:
        """To prefill tokens in so many slots."""
        each, rest = divmod(tokens, slots)
        return Work(0, tokens, 0, (slots - 1) * self._meter.read.ms(each) + self._meter.read.ms(each + rest))

    def _tokens(self, state: State | None, cells: int, slots: int, kept: int) -> int:
        """Tokens of so many slots behind `kept` others. The first slot of all holds the system's text too.

        A picture takes as many tokens as those of the state do, in proportion to its cells.
        """
        each = cells
        if state is not None and state.frames:
            held = state.tokens - self._text(len(state.frames))
            each = math.ceil(cells * held / sum(encoded.grid.cells for encoded in state.frames))
        return slots * each + self._text(kept + slots) - self._text(kept)

    def _text(self, frames: int) -> int:
        """Tokens of the prompt up to the snapshot, without those of the frames."""
        return len(self._template_for(frames).prefix) - frames if frames else 0
