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


"""How far log-probabilities are from those of a cold state, and how far rounding moves them."""

from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from followup_case import CHOICES, FollowupCase, read_in_turn

from vlm_reuse_node.model import noise
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.state import State


class ColdStates:
    """Computes the kept pictures' states from nothing, each once.

    grids: most tokens of a call, as usual and for another cold run: half a picture's.
    """

    def __init__(self, case: FollowupCase) -> None:
        """Take the pictures that the session keeps now."""
        self._case = case
        self._frames = case.state.frames
        self.grids = [vlms.PREFILL_CHUNK, case.state.live.grid.cells // 2]
        self._states: dict[Any, State] = {}

    def noise_floor(self, choices: bool, answer: tuple[int, ...] = ()) -> float:
        """Return how far rounding moves the log-probabilities of `question`: of its choices, or along an answer."""

        def cold(grid: int, features: list[mx.array]) -> np.ndarray:
            state = self._state(grid, features)
            return choice_table(self._case, state) if choices else text_table(self._case, state, answer)

        features = [encoded.features for encoded in self._frames]
        return noise.floor(features, *(partial(cold, grid) for grid in self.grids))

    def _state(self, grid: int, features: list[mx.array]) -> State:
        """The state of these features, prefilled in chunks of at most so many tokens."""
        key = grid, *(hash(np.array(each).tobytes()) for each in features)
        if key not in self._states:
            encoded = [replace(each, features=own, vision=None) for each, own in zip(self._frames, features)]
            usual = vlms.PREFILL_CHUNK
            vlms.PREFILL_CHUNK = grid
            try:
                template_for = self._case.session._template_for
                self._states[key] = states.build(self._case.vlm, template_for, encoded)
            finally:
                vlms.PREFILL_CHUNK = usual
        return self._states[key]


def choice_table(case: FollowupCase, state: State) -> np.ndarray:
    """Return the log-probabilities of the choices of `question`, (choices,), read in turn."""
    return np.log(read_in_turn(case.vlm, state, case.tokenized(case.question, CHOICES)))


def text_table(case: FollowupCase, state: State, answer: tuple[int, ...]) -> np.ndarray:
    """Return the log-probabilities (tokens, vocabulary) along a given answer to `question`."""
    vlm, ids = case.vlm, case.tokenized(case.question).tokens
    start = state.next_position + len(ids)
    rows = [vlm.run(state.cache, ids, vlm.family.text_positions(state.next_position, len(ids)))]
    for number, token in enumerate(answer[:-1]):
        rows.append(vlm.run(state.cache, [token], vlm.family.text_positions(start + number, 1)))
    state.restore()
    table = np.array(mx.concatenate(rows), np.float64)
    table -= table.max(axis=-1, keepdims=True)
    return table - np.log(np.exp(table).sum(axis=-1, keepdims=True))
