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

"""Brings one camera's state up to its newest frame at the cheapest level that is allowed, and records the cost."""

import logging
import time
from collections.abc import Callable

import numpy as np

from vlm_reuse_node.config import PATCH_POLICY, Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Check, Vlm, go_on
from vlm_reuse_node.scene.change import Change, ChangeDetector, SceneChange
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.scene.refresh_plan import RefreshPlan, RefreshPlanner
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.history import History
from vlm_reuse_node.session.state import State, build
from vlm_reuse_node.session.turn import Halt

_log = logging.getLogger(__name__)


class Refresher:
    """Owns one camera's state and history, its change detector and its refresh planner.

    state: None before the first frame, and after a failure.
    newest: the newest frame that was looked at; None before the first.
    level: the level of the refresh that brought the state up to the newest frame.
    lag_s: how long the oldest deferred cell has been known to differ from the newest frame, seconds; 0 without one.
    prefilled: prompt tokens computed for refreshes so far.
    """

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate], camera: str) -> None:
        """Start without a frame. template_for: returns the prompt template for a number of frames."""
        self._vlm, self._template_for, self._camera = vlm, template_for, camera
        self._history = History(vlm, template_for, camera)
        self._planner = RefreshPlanner()
        self._detector: ChangeDetector | None = None
        self._patches = 0  # patches since the live slot was last computed whole
        self._whole_ns = 0  # stamp of the frame that it was computed whole from
        self._computed_ns: np.ndarray | None = None  # stamp of the frame that each cell was computed from
        self._is_current = False  # whether the state is up to date with the newest frame
        self.state: State | None = None
        self.newest: Frame | None = None
        self.level = Level.FULL
        self.lag_s = 0.0
        self.prefilled = 0

    def refresh(
        self, frame: Frame, config: Config, *, may_patch: bool, force: bool = False, check: Check = go_on
    ) -> Refresh:
        """Bring the state up to a newer frame at the cheapest level that is allowed (docs/architecture.md).

        may_patch: whether approximate states may be used.
        force: compute the state of exactly this frame, even when no change is found.
        check: may raise Halt between two steps of the model. The frame is kept and computed when it is needed.
        Raises ImageError for a frame the model cannot take; nothing changes then. After any other error of the model
        the state is dropped, and the next call computes it again.
        """
        # 1. Compare with the frame whose state is cached.
        started_s = time.perf_counter()
        why_full = self._why_full(frame)
        change = None
        if not why_full and self.state.has_live:
            change = self._detector.compare(frame.rgb, frame.stamp_ns, config)
        change_ms = _ms_since(started_s)
        # 2. Choose the cheapest level that is allowed.
        plan = self._plan(frame, why_full, change, config, may_patch, force)
        reason = why_full or self._why(change, plan)
        # 3. Run vision and prefill, unless the state is reused.
        times = {'vision_ms': 0.0, 'prefill_ms': 0.0}
        if plan.level != Level.REUSE:
            times, plan = self._compute(frame, plan, change, config, check)
        # 4. Record what the state shows now.
        started_s = time.perf_counter()
        changed = self._settle(frame, plan, change, config)
        change_ms += _ms_since(started_s)
        return self._record(
            plan.level, reason, plan.refreshed, changed, change_ms=change_ms, budget_ms=config.budget_ms, **times
        )

    @property
    def is_current(self) -> bool:
        """Whether there is a state that is up to date with the newest frame."""
        return self.state is not None and self.state.has_live and self._is_current

    @property
    def is_whole(self) -> bool:
        """Whether all cells of the live slot were computed from the newest frame."""
        return self.state.live.frame is self.newest and self.state.live.exact

    @property
    def held(self) -> tuple[int, int]:
        """Number of frames in the state, with the live frame, and the bytes held for them."""
        if self.state is None:
            return 0, 0
        return len(self.state.frames), self.state.held_bytes + self._history.held_bytes

    @property
    def has_rollover(self) -> bool:
        """Whether a step of a history rollover can be computed now. Until the rollover ends, the old state answers."""
        return self._history.can_step(self.state)

    def step_rollover(self, check: Check) -> Refresh | None:
        """Compute one frame of a history rollover. Returns its refresh when the new state has replaced the old one.

        check: may raise Halt between two steps of the model; the next call computes the frame again.
        Raises nothing. After a failure the old state stays in use.
        """
        if not self.has_rollover:
            return None
        try:
            newer = self._history.step(self.state, check)
        except Halt:
            return None
        except Exception:
            _log.exception("Camera '%s': the history rollover failed, and the old state stays in use.", self._camera)
            self._history.fail()
            return None
        if newer is None:
            return None
        # The new state uses the same features, so a patched frame is still approximate.
        self.state, self.level = newer, Level.FULL if newer.exact else Level.PATCH
        nothing = np.zeros(newer.live.grid, bool)
        return self._record(
            self.level, 'history rollover', ~self._detector.deferred, nothing, prefill_ms=self._history.spent_ms
        )

    def reset(self) -> None:
        """Forget the frame and the state."""
        self.newest = None
        self.drop_state()

    def drop_state(self) -> None:
        """Drop the state. Done before a new one is computed, so that two are never held, and after a failure."""
        self.state = None
        self._history.stop()

    def _why_full(self, frame: Frame) -> str:
        """The reason why the whole state must be computed again for this frame; '' when there is none."""
        if self.state is None:
            return 'first frame' if self.newest is None else 'the state was lost'
        if self.state.frames and frame.size != (cached := self.state.frames[-1].frame).size:
            return f'size changed from {cached.size} to {frame.size}'
        if self.newest and frame.stamp_ns < self.newest.stamp_ns:
            return 'time went back'
        return ''

    def _plan(
        self, frame: Frame, why_full: str, change: Change | None, config: Config, may_patch: bool, force: bool
    ) -> RefreshPlan:
        """Choose level and cells. The planner decides when several levels are allowed."""
        if why_full:
            return RefreshPlan(Level.FULL)
        if change is None or force or self._must_be_whole(frame, config, may_patch):
            return RefreshPlan(Level.FRAME)
        can_patch = may_patch and self.state.can_rewrite and self.state.live.vision is not None
        whole_is_due = (
            change.scene != SceneChange.SAME
            or self._patches >= config.max_patches
            or self._history.is_due(self.state, config)
        )
        return self._planner.plan(change, config, can_patch, whole_is_due)

    def _must_be_whole(self, frame: Frame, config: Config, may_patch: bool) -> bool:
        """Whether a patched live slot must be computed whole, even if the newest frame shows no change."""
        if self.state.live.exact:
            return False
        return not may_patch or frame.stamp_ns - self._whole_ns > 1e9 * config.max_cell_age_s

    def _why(self, change: Change | None, plan: RefreshPlan) -> str:
        if change is None:
            return 'the last refresh was interrupted'
        if plan.level == Level.REUSE and not plan.deferred.any():
            return 'no cell changed'
        why = self._why_changed(change)
        return f'over budget: {why}' if plan.level == Level.REUSE else why

    def _why_changed(self, change: Change) -> str:
        if change.scene != SceneChange.SAME:
            return 'the scene was cut' if change.scene == SceneChange.CUT else 'the camera moved'
        if not change.stale.any():
            return 'forced' if self.state.live.exact else 'a patched frame is computed whole'
        what = 'changed' if change.changed.any() else 'in doubt for too long'
        return f'{np.count_nonzero(change.stale)} of {change.stale.size} cells {what}'

    def _compute(
        self, frame: Frame, plan: RefreshPlan, change: Change | None, config: Config, check: Check
    ) -> tuple[dict[str, float], RefreshPlan]:
        """Run vision and prefill. Returns their times, named as `Refresh`'s fields, and the plan with its masks."""
        started_s = time.perf_counter()
        try:
            encoded = self._encode(frame, plan, config, check)
            vision_ms = _ms_since(started_s)
            paid = self._prefill(encoded, plan, change, config, check)
        except ImageError:
            raise
        except Halt:
            self._interrupt(frame, plan)
            raise
        except Exception:
            self.drop_state()
            raise
        total_ms = _ms_since(started_s)
        self.prefilled += paid
        plan = plan.over(*encoded.grid)
        if change is None:
            self._detector = ChangeDetector(frame.rgb, frame.stamp_ns, *encoded.grid, self._vlm.family.cell_px)
            self._computed_ns = np.full(encoded.grid, frame.stamp_ns, np.int64)
        if paid <= self.state.tokens / len(self.state.frames):  # else more than one frame was computed
            level = Level.PATCH if plan.level == Level.PATCH else Level.FRAME
            self._planner.learn(level, int(plan.refreshed.sum()), total_ms)
        return {'vision_ms': vision_ms, 'prefill_ms': total_ms - vision_ms}, plan

    def _encode(self, frame: Frame, plan: RefreshPlan, config: Config, check: Check) -> EncodedFrame:
        if plan.level == Level.PATCH:
            return self.state.live.with_cells(self._vlm, frame, np.flatnonzero(plan.refreshed), check)
        return EncodedFrame.see(self._vlm, frame, check, self.keeps_vision(config))

    def keeps_vision(self, config: Config) -> bool:
        """Whether whole frames are encoded in the form that can be patched. All frames must be encoded alike."""
        return config.refresh_policy == PATCH_POLICY and self._vlm.family.encodes_cells

    def _prefill(
        self, encoded: EncodedFrame, plan: RefreshPlan, change: Change | None, config: Config, check: Check
    ) -> int:
        """Prefill the frame into the state. Returns the number of prompt tokens computed."""
        if plan.level == Level.FULL:
            self.drop_state()
            self.state = build(self._vlm, self._template_for, [encoded], check)
            return self.state.tokens
        if plan.level == Level.PATCH:
            return self.state.rewrite(encoded, np.flatnonzero(plan.refreshed), check)
        was_cut = change is not None and change.scene == SceneChange.CUT
        return self._history.refresh(self.state, encoded, was_cut, config, check)

    def _interrupt(self, frame: Frame, plan: RefreshPlan) -> None:
        """Note that the refresh was interrupted: the state, if there is one, shows an older frame than the newest."""
        self.newest, self._is_current = frame, False
        if plan.level == Level.FULL:
            self.drop_state()

    def _settle(self, frame: Frame, plan: RefreshPlan, change: Change | None, config: Config) -> np.ndarray:
        """Record refreshed and deferred cells. Returns the cells to report as changed, (rows, columns) bool."""
        changed, self.lag_s = plan.refreshed, 0.0  # without a comparison
        if change is not None:
            changed, self.lag_s = self._detector.settle(plan.refreshed, plan.deferred, change.stale, config)
        if plan.level in (Level.FRAME, Level.FULL):
            self._patches, self._whole_ns = 0, frame.stamp_ns
        elif plan.level == Level.PATCH:
            self._patches += 1
        self._computed_ns[plan.refreshed] = frame.stamp_ns
        self.newest, self.level, self._is_current = frame, plan.level, True
        return changed

    def _record(
        self, level: Level, reason: str, refreshed: np.ndarray, changed: np.ndarray, **amounts: float
    ) -> Refresh:
        """Make the `Refresh` record. amounts: times, by the names of its fields."""
        return Refresh(
            self._camera,
            self.newest.stamp_ns,
            self.newest.frame_id,
            level,
            reason,
            refreshed=refreshed,
            deferred=self._detector.deferred,
            changed=changed,
            oldest_cell_age_s=float(self.newest.stamp_ns - self._computed_ns.min()) / 1e9,
            **amounts,
        )


def _ms_since(started_s: float) -> float:
    return 1e3 * (time.perf_counter() - started_s)
