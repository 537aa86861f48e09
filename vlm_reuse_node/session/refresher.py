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
from functools import cache
from typing import Any

import numpy as np

from vlm_reuse_node.config import PATCH_POLICY, Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Check, Vlm, go_on
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.lookout import Look, Lookout
from vlm_reuse_node.scene.refresh import Level, Refresh, Totals
from vlm_reuse_node.scene.refresh_plan import RefreshPlan, reason_of
from vlm_reuse_node.session.begun_refresh import BegunRefresh
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.history import History
from vlm_reuse_node.session.planner import Planner
from vlm_reuse_node.session.prices import Prices
from vlm_reuse_node.session.state import State, build
from vlm_reuse_node.session.turn import Halt

_log = logging.getLogger(__name__)


class Refresher:
    """Owns one camera's state and history, and its lookout.

    `look` may be called on any thread, everything else on the model's thread only.
    state: None before the first question, and after a failure.
    prefilled: prompt tokens computed for refreshes so far. prices: expected work.
    """

    def __init__(
        self,
        vlm: Vlm,
        template_for: Callable[[int], PromptTemplate],
        camera: str,
        totals: Callable[[], Totals],
        on_refresh: Callable[[Frame, Refresh], None] = lambda frame, refresh: None,
    ) -> None:
        """Start without a frame.

        template_for: returns today's prompt template for a number of frames.
        totals: returns the camera's, for the records.
        on_refresh: called with every record, on the thread that did the work.
        """
        self._vlm, self._template_for, self._camera, self._totals = vlm, template_for, camera, totals
        self._on_refresh, self.prices = on_refresh, Prices(vlm, cache(template_for))
        self._history = History(vlm, template_for, camera)
        self._planner = Planner(self.prices, self._history)
        self._lookout = Lookout(camera)
        self._begun: BegunRefresh | None = None
        self.state: State | None = None
        self.prefilled = 0

    def can_look(self, frame: Frame) -> bool:
        """Whether `look` needs no model, so that it may be called on any thread."""
        return self._lookout.can_look(frame)

    def look(self, frame: Frame, config: Config) -> Refresh | None:
        """Find out which cells of the state differ from a new frame. Returns None for an older one, which is skipped.

        Raises ImageError for a frame that the model cannot take; nothing changes then.
        """
        grid = (0, 0) if self._lookout.can_look(frame) else self._vlm.grid(frame.rgb)
        look = self._lookout.look(frame, config, grid, self._vlm.family.cell_px)
        record = look.record(self._totals()) if look else None
        if record:
            self._on_refresh(frame, record)
        return record

    def refresh(
        self,
        config: Config,
        *,
        may_patch: bool,
        force: bool = False,
        check: Check = go_on,
        joins_question: bool = False,
    ) -> Refresh | None:
        """Bring the state up to the newest frame at the cheapest level that is allowed (docs/architecture.md).

        may_patch: whether approximate states may be used.
        force: compute the state of exactly this frame, even when no change is found.
        check: may raise Halt between two steps of the model. What was computed before stays usable.
        joins_question: leave the prefill to the pass of the question that follows.
        Returns None when nothing had to be computed. Raises ImageError for a frame the model cannot take; nothing
        changes then. After any other error of the model the state is dropped, and the next call computes it again.
        """
        begun, self._begun = self._begun, None
        if begun is None or not begun.serves(self._lookout.newest, may_patch, force):
            begun = self._encode(config, may_patch, force, check)
        return self._prefill(begun, config, check, joins_question) if begun else None

    def step(self, config: Config, may_patch: bool, check: Check) -> Refresh | None:
        """Do one of the two stages of a refresh: encode the newest frame, or prefill what was encoded.

        In between, the kept state answers as before. As `refresh` otherwise; returns its record after the second stage.
        """
        begun, self._begun = self._begun, None
        if begun:
            return self._prefill(begun, config, go_on)  # a stage is done as a whole
        self._begun = self._encode(config, may_patch, False, check)
        return None

    @property
    def is_between_stages(self) -> bool:
        """Whether a refresh has done its first stage, and not its second."""
        return self._begun is not None

    def expected(self, config: Config, may_patch: bool) -> Work:
        """The expected work of a refresh now; none when there is nothing to compute."""
        look = self._lookout.newest
        return self._planner.expected(self.state, look, config, may_patch) if look else Work()

    @property
    def newest(self) -> Look | None:
        """The look at the newest frame; None before the first."""
        return self._lookout.newest

    @property
    def is_whole(self) -> bool:
        """Whether all cells of the live slot were computed from the newest frame."""
        return self.state.live.frame is self.newest.frame and self.state.live.exact

    def is_keyframe_due(self, config: Config) -> bool:
        """Whether the next refresh keeps the live frame as a keyframe."""
        return self.state is not None and self.state.has_live and self._history.is_due(self.state, config)

    @property
    def is_exact(self) -> bool:
        """Whether the live slot equals a cold-dense one."""
        return self.state is not None and self.state.has_live and self.state.live.exact

    def is_overdue(self, config: Config) -> bool:
        """Whether a patched live slot has been in use for so long that the next answer needs a whole one."""
        if self.state is None or not self.state.has_live:
            return False
        return self._planner.is_overdue(self.state, self.newest.frame, config)

    @property
    def held(self) -> tuple[int, int]:
        """Number of frames in the state, with the live frame, and the bytes held for them."""
        if self.state is None:
            return 0, 0
        return len(self.state.frames), self.state.held_bytes + self._history.held_bytes

    @property
    def rollover_work(self) -> Work | None:
        """The expected work of the rest of a history rollover; None without one. Meanwhile the old state answers."""
        if not self._history.can_step(self.state):
            return None
        return self.prices.prefill(self.state, *self._history.left)

    def step_rollover(self, check: Check) -> Refresh | None:
        """Compute one frame of a history rollover. Returns its refresh when the new state has replaced the old one.

        check: may raise Halt between two steps of the model; the next call computes the frame again.
        Raises nothing. After a failure the old state stays in use.
        """
        if not self._history.can_step(self.state):
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
        self.state = newer
        level, look = Level.FULL if newer.exact else Level.PATCH, self._lookout.newest
        nothing = np.zeros(newer.live.grid, bool)
        return self._report(look, level, 'history rollover', ~look.stale, nothing, prefill_ms=self._history.spent_ms)

    def reset(self) -> None:
        """Forget the frames and the state."""
        self._drop()
        self._lookout.reset()

    def drop_state(self) -> None:
        """Drop the state after a failure."""
        self._drop()
        self._lookout.lose('the state was lost')

    def keeps_vision(self, config: Config) -> bool:
        """Whether the vision state of whole frames is kept, so that they can be patched. It changes no feature."""
        return config.refresh_policy == PATCH_POLICY and self._vlm.family.encodes_cells

    def _drop(self) -> None:
        self.state, self._begun = None, None
        self._history.stop()

    def _encode(self, config: Config, may_patch: bool, force: bool, check: Check) -> BegunRefresh | None:
        """The first stage: choose the level, and run the vision tower on the newest frame."""
        look = self._lookout.newest
        plan = self._planner.plan(self.state, look, config, may_patch, force)
        if plan.level == Level.REUSE:
            if plan.deferred.any():
                self._lookout.settle(look, plan.refreshed, plan.deferred, config)
            return None
        started_s = time.perf_counter()
        reason = reason_of(look.change, self.state.live.exact) if look.change else look.lost
        try:
            if plan.level == Level.PATCH:
                cells = np.flatnonzero(plan.refreshed)
                encoded = self.state.live.with_cells(self._vlm, look.frame, cells, check)
            else:
                encoded = EncodedFrame.see(self._vlm, look.frame, check, self.keeps_vision(config))
        except (ImageError, Halt):
            raise
        except Exception:
            self.drop_state()
            raise
        return BegunRefresh(look, plan, reason, encoded, _ms_since(started_s))

    def _prefill(self, begun: BegunRefresh, config: Config, check: Check, joins_question: bool = False) -> Refresh:
        """The second stage: prefill the encoded frame into the state, and record what the state shows now.

        When `check` ends the prefill, its tokens wait for the next question.
        """
        look, plan, started_s = begun.look, begun.plan, time.perf_counter()
        halt, computed = None, self._computed(plan)
        try:
            self.prefilled += self._put_slot(begun, config, check)
            self.state.limit_checkpoints(self._history.spare_bytes(self.state, config))
        except Halt:
            if self.state is None or not self.state.has_live:
                self._lookout.lose('the last refresh was interrupted')
            raise
        except Exception:
            self.drop_state()
            raise
        try:
            if not joins_question:
                self.state.settle(check)
        except Halt as error:
            halt = error
        except Exception:
            self.drop_state()
            raise
        prefill_ms, started_s = _ms_since(started_s), time.perf_counter()
        self._planner.note(plan.level, look.frame)
        changed = self._lookout.settle(look, plan.refreshed, plan.deferred, config)
        record = self._report(
            look,
            plan.level,
            begun.reason,
            computed,
            changed,
            encoded=plan.refreshed,
            change_ms=_ms_since(started_s),
            budget_ms=config.budget_ms,
            vision_ms=begun.vision_ms,
            prefill_ms=0.0 if joins_question else prefill_ms,
        )
        if halt:
            raise halt
        return record

    def _put_slot(self, begun: BegunRefresh, config: Config, check: Check) -> int:
        """Put the frame into the state, where its tokens wait. Returns the number of prompt tokens to compute."""
        if begun.plan.level == Level.FULL:
            self._drop()  # before the new state is computed, so that two are never held
            self.state = build(self._vlm, self._template_for, [begun.encoded], check, later=True)
            return self.state.tokens
        if begun.plan.level == Level.PATCH:
            return self.state.rewrite(begun.encoded, np.flatnonzero(begun.plan.refreshed), check, later=True)
        return self._history.refresh(self.state, begun.encoded, begun.look.was_cut, config, check)

    def _computed(self, plan: RefreshPlan) -> np.ndarray:
        """The cells that the model computes, (rows, columns) bool: a recurrent one reads all from a checkpoint on."""
        if plan.level != Level.PATCH or (restart := self.state.restart(int(plan.refreshed.argmax()))) is None:
            return plan.refreshed
        behind = np.arange(plan.refreshed.size).reshape(plan.refreshed.shape) >= restart.cell
        return plan.refreshed | behind & ~plan.deferred

    def _report(
        self, look: Look, level: Level, reason: str, refreshed: np.ndarray, changed: np.ndarray, **more: Any
    ) -> Refresh:
        """Make and report the record of a refresh; see `Look.refreshed`."""
        now = self._lookout.newest
        record = look.refreshed(now, self._totals(), level, reason, refreshed, changed, **more)
        self._on_refresh(look.frame, record)
        return record


def _ms_since(started_s: float) -> float:
    return 1e3 * (time.perf_counter() - started_s)
