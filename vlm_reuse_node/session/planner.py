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

"""Chooses the level and the cells of a camera's next refresh, and says what it is expected to cost."""

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.change import SceneChange
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.lookout import Look
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.scene.refresh_plan import RefreshPlan, plan_refresh
from vlm_reuse_node.session.history import History
from vlm_reuse_node.session.prices import Prices
from vlm_reuse_node.session.state import State


class Planner:
    """Plans one camera's refreshes. It knows how long ago the live slot was computed whole."""

    def __init__(self, prices: Prices, history: History) -> None:
        """Plan with these prices and this history."""
        self._prices, self._history = prices, history
        self._patches = 0  # patches since the live slot was last computed whole
        self._whole_ns = 0  # stamp of the frame that it was computed whole from

    def note(self, level: Level, frame: Frame) -> None:
        """Note a refresh from this frame."""
        if level == Level.PATCH:
            self._patches += 1
        else:
            self._patches, self._whole_ns = 0, frame.stamp_ns

    def plan(self, state: State | None, look: Look, config: Config, may_patch: bool, force: bool) -> RefreshPlan:
        """Choose level and cells of a refresh to the frame of `look`. Arguments as for `Refresher.refresh`."""
        if state is None or look.is_restart:
            return RefreshPlan.of_all(Level.FULL, look.computed_ns)
        if look.change is None or force or self._must_be_whole(state, look.frame, config, may_patch):
            return RefreshPlan.of_all(Level.FRAME, look.computed_ns)
        change, whole = look.change, self._prices.frame(state, look.cells)
        plan = plan_refresh(
            change,
            config,
            can_patch=may_patch and state.can_rewrite and state.live.vision is not None,
            whole_is_due=(
                change.scene != SceneChange.SAME
                or self._patches >= config.max_patches
                or self._history.is_due(state, config)
            ),
            frame_ms=whole.ms,
            patch_ms=lambda cells: self._patch(state, look, cells).ms,
        )
        if plan.level != Level.PATCH or self._patch(state, look, np.flatnonzero(plan.refreshed)).tokens < whole.tokens:
            return plan
        return RefreshPlan.of_all(Level.FRAME, look.computed_ns)  # exact, and no dearer

    def expected(self, state: State | None, look: Look, config: Config, may_patch: bool) -> Work:
        """The expected work of a refresh to the frame of `look`; none when there is nothing to compute."""
        plan = self.plan(state, look, config, may_patch, False)
        if plan.level == Level.FULL:
            return self._prices.frames(state, look.cells, 1, 0)
        if plan.level == Level.FRAME:
            work = self._prices.frames(state, look.cells, *self._history.expected(state, look.was_cut, config))
        else:
            work = self._patch(state, look, np.flatnonzero(plan.refreshed))
        return work + self._prices.waiting(state) if work.tokens else work

    def _patch(self, state: State, look: Look, cells: np.ndarray) -> Work:
        """The expected work to compute these cells of the frame of `look`, given by their numbers."""
        return self._prices.patch(state, look.cells, len(cells), int(cells.min()) if len(cells) else 0)

    def _must_be_whole(self, state: State, frame: Frame, config: Config, may_patch: bool) -> bool:
        """Whether a patched live slot must be computed whole, even if the newest frame shows no change."""
        return not state.live.exact and (not may_patch or self.is_overdue(state, frame, config))

    def is_overdue(self, state: State, frame: Frame, config: Config) -> bool:
        """Whether a patched live slot has been in use for so long that it may not answer about this frame."""
        return not state.live.exact and frame.stamp_ns - self._whole_ns > 1e9 * config.max_cell_age_s
