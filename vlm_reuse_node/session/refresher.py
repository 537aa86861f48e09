"""Keeps one camera's state up to its newest frame: what changed, the cheapest level that is allowed, what it cost."""

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
    """Owns the change detector, the refresh planner, the live slot with its history, and the cells that wait.

    state: None before the first frame, and after a failure.
    newest: the newest frame that was looked at, None before the first.
    level: of the refresh that brought the state up to it.
    lag_s: for how long deferred cells have been known to differ from it.
    prefilled: prompt tokens computed for refreshes so far.
    """

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate], camera: str):
        """Start without a frame. template_for: the prompt with so many frames."""
        self._vlm, self._template_for, self._camera = vlm, template_for, camera
        self._history = History(vlm, template_for, camera)
        self._planner = RefreshPlanner()
        self._detector: ChangeDetector | None = None
        self._patches = 0  # of the live slot, since it was computed whole
        self._whole_ns = 0  # stamp of the frame it was computed whole from
        self._computed_ns: np.ndarray | None = None  # stamp of the frame that each cell was computed from
        self._is_current = False  # whether the state stands for the newest frame
        self.state: State | None = None
        self.newest: Frame | None = None
        self.level = Level.FULL
        self.lag_s = 0.0
        self.prefilled = 0

    def refresh(
        self, frame: Frame, config: Config, *, may_patch: bool, force: bool = False, check: Check = go_on
    ) -> Refresh:
        """Bring the state up to a newer frame at the cheapest level that is allowed (docs/architecture.md).

        may_patch: whether approximate states may be used. force: compute the state of exactly this frame, even when
        nothing seems to have changed. check: may raise Halt between two steps of the model; the frame is kept,
        and its state is computed when it is needed.
        Raises ImageError for a frame the model cannot take: everything stays as it was. Or raises whatever the model
        raises: the state is gone then, and the next call computes it again.
        """
        # 1. What changed, against the frame whose state is cached?
        started_s = time.perf_counter()
        why_full = self._why_full(frame)
        change = None
        if not why_full and self.state.has_live:
            change = self._detector.compare(frame.rgb, frame.stamp_ns, config)
        change_ms = _ms_since(started_s)
        # 2. The cheapest level that is allowed.
        plan = self._plan(frame, why_full, change, config, may_patch, force)
        reason = why_full or self._why(change, plan)
        # 3. Nothing, or vision and prefill.
        times = {'vision_ms': 0.0, 'prefill_ms': 0.0}
        if plan.level != Level.REUSE:
            times, plan = self._compute(frame, plan, change, config, check)
        # 4. What the state stands for now.
        started_s = time.perf_counter()
        changed = self._settle(frame, plan, change, config)
        change_ms += _ms_since(started_s)
        return self._record(
            plan.level, reason, plan.refreshed, changed, change_ms=change_ms, budget_ms=config.budget_ms, **times
        )

    @property
    def is_current(self) -> bool:
        """Whether there is a state, and it stands for the newest frame."""
        return self.state is not None and self.state.has_live and self._is_current

    @property
    def is_whole(self) -> bool:
        """Whether every cell of the live slot was computed from the newest frame."""
        return self.state.live.frame is self.newest and self.state.live.exact

    @property
    def held(self) -> tuple[int, int]:
        """Frames in the kept state, the live one included, and the bytes of all that is held for them."""
        if self.state is None:
            return 0, 0
        return len(self.state.frames), self.state.held_bytes + self._history.held_bytes

    @property
    def has_rollover(self) -> bool:
        """Whether a shorter history waits to be computed; the kept one serves until then."""
        return self._history.can_step(self.state)

    def step_rollover(self, check: Check) -> Refresh | None:
        """Compute one frame of the shorter history; returns the refresh when it is complete and was taken over.

        check: may raise Halt between two steps of the model; the frame is computed the next time.
        Raises nothing: the kept state serves on whatever happens.
        """
        if not self.has_rollover:
            return None
        try:
            newer = self._history.step(self.state, check)
        except Halt:
            return None
        except Exception:
            _log.exception("Camera '%s': a shorter history could not be computed beside the kept one.", self._camera)
            self._history.fail()
            return None
        if newer is None:
            return None
        # The features were taken over: what was patched is approximate still.
        self.state, self.level = newer, Level.FULL if newer.exact else Level.PATCH
        nothing = np.zeros(newer.live.grid, bool)
        return self._record(
            self.level, 'history rollover', ~self._detector.deferred, nothing, prefill_ms=self._history.spent_ms
        )

    def reset(self) -> None:
        """Forget frame and state."""
        self.newest = None
        self.drop_state()

    def drop_state(self) -> None:
        """Forget the state: two are never held at once, and a failure leaves none."""
        self.state = None
        self._history.stop()

    def _why_full(self, frame: Frame) -> str:
        """Why nothing of the state can be kept for this frame, '' when its history can."""
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
        """What is done; the planner chooses where there is a choice."""
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
        """Whether the live slot was patched and must not stay so, whatever the newest frame shows."""
        if self.state.live.exact:
            return False
        return not may_patch or frame.stamp_ns - self._whole_ns > 1e9 * config.max_cell_age_s

    def _why(self, change: Change | None, plan: RefreshPlan) -> str:
        if change is None:
            return 'the last refresh was given up'
        if plan.level == Level.REUSE and not plan.deferred.any():
            return 'no cell changed'
        why = self._why_changed(change)
        return f'over budget: {why}' if plan.level == Level.REUSE else why

    def _why_changed(self, change: Change) -> str:
        if change.scene != SceneChange.SAME:
            return 'the scene was cut' if change.scene == SceneChange.CUT else 'the camera moved'
        if not change.stale.any():
            return 'forced' if self.state.live.exact else 'what was patched is computed whole'
        what = 'changed' if change.changed.any() else 'in doubt for too long'
        return f'{np.count_nonzero(change.stale)} of {change.stale.size} cells {what}'

    def _compute(
        self, frame: Frame, plan: RefreshPlan, change: Change | None, config: Config, check: Check
    ) -> tuple[dict[str, float], RefreshPlan]:
        """Vision and prefill; returns their times by the names of `Refresh`'s fields, and the plan with its cells."""
        started_s = time.perf_counter()
        try:
            encoded = self._encode(frame, plan, config, check)
            vision_ms = _ms_since(started_s)
            paid = self._prefill(encoded, plan, change, config, check)
        except ImageError:
            raise
        except Halt:
            self._give_up(frame, plan)
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
        if paid < 2 * plan.refreshed.size:  # not when a whole history was computed
            level = Level.PATCH if plan.level == Level.PATCH else Level.FRAME
            self._planner.learn(level, int(plan.refreshed.sum()), total_ms)
        return {'vision_ms': vision_ms, 'prefill_ms': total_ms - vision_ms}, plan

    def _encode(self, frame: Frame, plan: RefreshPlan, config: Config, check: Check) -> EncodedFrame:
        if plan.level == Level.PATCH:
            return self.state.live.with_cells(self._vlm, frame, np.flatnonzero(plan.refreshed), check)
        return EncodedFrame.see(self._vlm, frame, check, self.keeps_vision(config))

    def keeps_vision(self, config: Config) -> bool:
        """Whether whole frames are seen in the way that lets them be patched; what is compared is seen in one way."""
        return config.refresh_policy == PATCH_POLICY and self._vlm.family.encodes_cells

    def _prefill(
        self, encoded: EncodedFrame, plan: RefreshPlan, change: Change | None, config: Config, check: Check
    ) -> int:
        """Put the frame into the state. Returns the prompt tokens that were computed."""
        if plan.level == Level.FULL:
            self.drop_state()
            self.state = build(self._vlm, self._template_for, [encoded], check)
            return self.state.tokens
        if plan.level == Level.PATCH:
            return self.state.rewrite(encoded, np.flatnonzero(plan.refreshed), check)
        was_cut = change is not None and change.scene == SceneChange.CUT
        return self._history.refresh(self.state, encoded, was_cut, config, check)

    def _give_up(self, frame: Frame, plan: RefreshPlan) -> None:
        """The refresh was stopped: the state, if any, stands for an older frame than the newest."""
        self.newest, self._is_current = frame, False
        if plan.level == Level.FULL:
            self.drop_state()

    def _settle(self, frame: Frame, plan: RefreshPlan, change: Change | None, config: Config) -> np.ndarray:
        """Book what the state shows and what waits. Returns the cells that show something new, (rows, columns) bool."""
        changed, self.lag_s = plan.refreshed, 0.0  # where nothing could be compared
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
        """The one place that makes a `Refresh`. amounts: by the names of its fields."""
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
