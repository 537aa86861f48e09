"""One camera's conversation with the model. Start reading here.

`observe(frame)` keeps the model's state up to the newest picture and pays only when the picture changed;
`ask(question)` answers from that state and puts it back as it was.
Prompt: `[system] [history keyframe 1] ... [history keyframe n] [live frame] | snapshot | [question] -> answer`.
"""

import logging
import time
from collections.abc import Callable
from functools import cache

import numpy as np

from vlm_reuse_node.config import PATCH_POLICY, Config
from vlm_reuse_node.errors import ImageError, InvalidRequestError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.change import Change, ChangeDetector, Scene
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.scene.refresh_plan import RefreshPlanner
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.auditor import Auditor
from vlm_reuse_node.session.drift_audit import Audited
from vlm_reuse_node.session.history import History
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.state import Picture, State
from vlm_reuse_node.session.turn import Stopped, Turn

_log = logging.getLogger(__name__)


class SceneSession:
    """Keeps one camera's state and answers from it. Every call belongs to the thread that loaded the model.

    config: may be replaced between calls by one whose live parameters differ.
    newest: the newest observed frame, None before the first.
    """

    def __init__(
        self,
        vlm: Vlm,
        config: Config,
        camera: str = 'camera',
        on_refresh: Callable[[Frame, Refresh], None] | None = None,
        on_refused: Callable[[Frame, ImageError], None] | None = None,
    ):
        """Start without a picture.

        on_refresh: called after every observed frame, and with the newest one after a history rollover.
        on_refused: called after every frame that the model cannot take.
        Raises ConfigError when config.system_prompt holds special tokens of the model.
        """
        self.config = config
        self.newest: Frame | None = None
        self._vlm, self._camera, self._on_refresh, self._on_refused = vlm, camera, on_refresh, on_refused
        self._template_for = cache(lambda pictures: vlm.template(config.system_prompt, pictures))
        self._answerer = Answerer(vlm, self._template_for(1))
        self._history = History(vlm, self._template_for, camera)
        self._state: State | None = None
        self._detector: ChangeDetector | None = None
        self._prefilled = 0  # prompt tokens computed for refreshes so far
        self._planner = RefreshPlanner()
        self._patches, self._whole_ns = 0, 0  # of the live slot, since it was computed whole; and the picture of then
        self._debt_s = 0.0  # for how long cells have been known to differ from the newest picture
        self._auditor = Auditor(vlm, self._template_for, self._answerer, camera)
        self._is_current = False  # whether the state stands for the newest picture
        self._level = Level.FULL

    def observe(self, frame: Frame, *, force: bool = False, check: Callable[[], None] = lambda: None) -> Refresh:
        """Bring the state up to a new picture at the cheapest allowed level (DESIGN.md, the refresh ladder).

        force: compute the state of exactly this picture, even when nothing seems to have changed. check: may raise
        Stopped between two steps of the model; the picture is kept and its state computed when it is needed.
        Raises ImageError for a picture the model cannot take: the state stays as it was, and on_refused is called. Or
        raises whatever the model raises: the state is gone then, and the next call computes it again.
        """
        # 1. What changed, against the picture whose state is cached?
        started = time.perf_counter()
        full = self._why_full(frame)
        comparable = not full and self._state.has_live
        change = self._detector.compare(frame.rgb, frame.stamp_ns, self.config) if comparable else None
        change_ms = 1e3 * (time.perf_counter() - started)
        # 2. What is done about it, within the budget? No plan: there is no choice.
        plan = None if change is None or force or self._must_be_whole(frame) else self._plan(change)
        # 3. Nothing: the state stands for this picture too, or has to do for now.
        if plan is not None and plan.level == Level.REUSE:
            refresh = self._reused(frame, change, plan, change_ms)
        # 4. Something: compute the live picture's slot, or when nothing of the state can be kept, everything.
        else:
            refresh = self._computed(frame, full, change, plan, change_ms, check)
        # 5. Say what it cost.
        self.newest, self._level, self._is_current = frame, refresh.level, True
        self._detector.defer(refresh.deferred)
        self._debt_s = float(self._detector.doubt_s(frame.stamp_ns)[refresh.deferred].max(initial=0))
        if self._on_refresh:
            self._on_refresh(frame, refresh)
        return refresh

    @property
    def held(self) -> tuple[int, int]:
        """Pictures in the kept state, the live one included, and the bytes of all that is held for them."""
        if self._state is None:
            return 0, 0
        beside = self._history.held_bytes + self._auditor.held_bytes
        return len(self._state.pictures), self._state.held_bytes + beside

    @property
    def has_work(self) -> bool:
        """Whether a shorter history waits to be computed; the kept one serves until then."""
        return self._history.can_step(self._state)

    def work(self, check: Callable[[], None] = lambda: None) -> None:
        """Compute one picture of the shorter history, and take it over when it is complete; call it while idle.

        check: may raise Stopped between two steps of the model; the picture is computed the next time. Raises nothing
        but what on_refresh raises: the kept state serves on whatever happens.
        """
        if not self.has_work:
            return
        try:
            newer = self._history.step(self._state, check)
        except Stopped:
            return
        except Exception:
            _log.exception("Camera '%s': a shorter history could not be computed beside the kept one.", self._camera)
            self._history.fail()
            return
        if newer is None:
            return
        # What was patched is so still: its features were taken over.
        self._state, self._level, newest = newer, Level.FULL if newer.exact else Level.PATCH, self.newest
        refresh = Refresh(
            self._camera,
            newest.stamp_ns,
            newest.frame_id,
            self._level,
            'history rollover',
            refreshed=np.ones(newer.live.grid, bool) & ~self._detector.deferred,
            deferred=self._detector.deferred,
            changed=np.zeros(newer.live.grid, bool),
            prefill_ms=self._history.spent_ms,
            oldest_cell_age_s=float(self._detector.doubt_s(newest.stamp_ns).max()),
        )
        if self._on_refresh:
            self._on_refresh(newest, refresh)

    @property
    def audited(self) -> Audited:
        """What the drift audit has counted."""
        return self._auditor.counts

    @property
    def has_audit(self) -> bool:
        """Whether an answer waits to be given again from nothing."""
        return self._auditor.has_work

    @property
    def is_auditing(self) -> bool:
        """Whether an answer's audit has begun."""
        return self._auditor.is_busy

    def audit(self, check: Callable[[], None] = lambda: None) -> None:
        """Take one step towards giving the answer that waits again, cold-dense on its pictures; call it while idle.

        check: may raise Stopped between two steps of the model; the step is taken the next time. Raises nothing.
        """
        self._auditor.step(check, self.config, self._keeps_vision)

    def ask(
        self,
        question: Question,
        *,
        now_ns: int,
        cancelled: Callable[[], bool] | None = None,
        asked_s: float | None = None,
        newest: Callable[[], Frame | None] = lambda: None,
        listener: Callable[[Progress], None] | None = None,
    ) -> Answer:
        """Answer from the kept state; afterwards the state is what it was, bit for bit.

        A patched state answers only what it is sure of (min_confidence); else it is computed whole, and answers again.
        now_ns: the time of asking on the clock of the frames' stamps, for the image age. cancelled: looked at before
        every token. asked_s: `time.perf_counter()` of the asking, now when None; the timeout counts from there.
        newest: takes the frame that waits to be observed; called when the kept state is not fresh enough for this
        question, which then pays for the refresh. listener: told of every stage and token.
        Never raises for anything that a question or the model can cause: that is the answer's status.
        """
        return self._guarded(question, now_ns, Turn(asked_s, cancelled, listener), newest, cold=False)

    def ask_cold(
        self,
        question: Question,
        *,
        now_ns: int,
        cancelled: Callable[[], bool] | None = None,
        asked_s: float | None = None,
        newest: Callable[[], Frame | None] = lambda: None,
        listener: Callable[[Progress], None] | None = None,
    ) -> Answer:
        """Answer the same question on the same cached picture from nothing, on a cache of its own.

        The cached picture of a patched state is the newest one that it was patched from, all of it.
        The reference that `ask` is compared with: image processor, vision tower, prefill of everything, decode, in the
        same chunks. The kept state is not touched, unless the model fails.
        """
        return self._guarded(question, now_ns, Turn(asked_s, cancelled, listener), newest, cold=True)

    def reset(self) -> None:
        """Forget picture and state; questions get NO_IMAGE until the next frame."""
        self.newest = None
        self._auditor.forget()
        self._forget()

    def _forget(self):
        """Before a state is computed from nothing: two are never held at once, and a failure leaves none."""
        self._state = None
        self._history.stop()

    def _give_up(self, frame, full):
        """A refresh was stopped: the state, if any, stands for an older picture than the newest."""
        self.newest, self._is_current = frame, False
        if full:
            self._forget()

    def _why_full(self, frame):
        """Why nothing of the state can be kept for this picture, '' when its history can."""
        if self._state is None:
            return 'first frame' if self.newest is None else 'the state was lost'
        if self._state.pictures and frame.size != (cached := self._state.pictures[-1].frame).size:
            return f'size changed from {cached.size} to {frame.size}'
        if self.newest and frame.stamp_ns < self.newest.stamp_ns:
            return 'time went back'
        return ''

    def _reused(self, frame, change, plan, change_ms):
        reason = 'no cell changed' if not plan.deferred.any() else f'over budget: {self._why(change)}'
        return Refresh(
            self._camera,
            frame.stamp_ns,
            frame.frame_id,
            Level.REUSE,
            reason,
            refreshed=plan.refreshed,
            deferred=plan.deferred,
            changed=self._detector.news(plan.refreshed, self.config),
            budget_ms=self.config.budget_ms,
            oldest_cell_age_s=float(change.doubt_s.max()),
            change_ms=change_ms,
        )

    def _computed(self, frame, full, change, plan, change_ms, check):
        """The refresh at level `patch` or `frame`, or `full` for a reason."""
        started = time.perf_counter()
        cells = plan.refreshed if plan is not None and plan.level == Level.PATCH else None
        reason = full or self._why(change)
        picture = self._seen(frame, full, cells, check)
        seen = time.perf_counter()
        try:
            if full:
                self._forget()
                self._state = states.build(self._vlm, self._template_for, [picture], check)
                level, paid = Level.FULL, self._state.tokens
            elif cells is not None:
                level = Level.PATCH
                paid = self._state.rewrite(picture, np.flatnonzero(cells), check)
            else:
                level = Level.FRAME
                scene_changed = change is not None and change.scene == Scene.CUT
                paid = self._history.refresh(self._state, picture, scene_changed, self.config, check)
        except Stopped:
            self._give_up(frame, full)
            raise
        except Exception:
            self._forget()
            raise
        done = time.perf_counter()
        self._prefilled += paid
        if change is None:
            self._detector = ChangeDetector(frame.rgb, frame.stamp_ns, *picture.grid, self._vlm.family.cell_px)
        else:
            self._detector.refresh(cells)
        self._patches = self._patches + 1 if level == Level.PATCH else 0
        self._whole_ns = self._whole_ns if level == Level.PATCH else frame.stamp_ns
        refreshed, deferred = np.ones(picture.grid, bool), np.zeros(picture.grid, bool)
        if cells is not None:
            refreshed, deferred = cells, plan.deferred
        changed = refreshed if change is None else self._detector.news(refreshed & change.stale, self.config)
        change_ms += 1e3 * (time.perf_counter() - done)
        if paid < 2 * picture.grid.cells:  # not when a whole history was computed
            self._planner.learn(Level.FRAME if cells is None else level, int(refreshed.sum()), 1e3 * (done - started))
        return Refresh(
            self._camera,
            frame.stamp_ns,
            frame.frame_id,
            level,
            reason,
            refreshed=refreshed,
            deferred=deferred,
            changed=changed,
            budget_ms=self.config.budget_ms,
            oldest_cell_age_s=float(self._detector.doubt_s(frame.stamp_ns).max()),
            change_ms=change_ms,
            vision_ms=1e3 * (seen - started),
            prefill_ms=1e3 * (done - seen),
        )

    def _plan(self, change):
        state = self._state
        can_patch = self._may_patch() and state.can_rewrite and state.live.vision is not None
        whole_is_due = (
            change.scene != Scene.SAME
            or self._patches >= self.config.max_patches
            or self._history.is_due(state, self.config)
        )
        return self._planner.plan(change, self.config, can_patch, whole_is_due)

    def _may_patch(self):
        return self.config.refresh_policy == PATCH_POLICY and self._auditor.counts.is_trusted

    def _must_be_whole(self, frame):
        """Whether the live picture was patched and must not stay so, whatever the newest one shows."""
        if self._state.live.exact:
            return False
        return not self._may_patch() or frame.stamp_ns - self._whole_ns > 1e9 * self.config.max_cell_age_s

    @property
    def _keeps_vision(self):
        """Whether whole pictures are seen in the way that lets them be patched; what is compared is seen in one way."""
        return self.config.refresh_policy == PATCH_POLICY and self._vlm.family.encodes_cells

    def _seen(self, frame, full, cells, check):
        """The picture as the model sees it; of a patched one only these cells are looked at."""
        try:
            if cells is not None:
                return self._state.live.with_cells(self._vlm, frame, np.flatnonzero(cells), check)
            return Picture.see(self._vlm, frame, check, self._keeps_vision)
        except Stopped:
            self._give_up(frame, full)
            raise
        except ImageError as error:
            if self._on_refused:
                self._on_refused(frame, error)
            raise
        except Exception:
            self._forget()
            raise

    def _why(self, change: Change | None):
        if change is None:
            return 'the last refresh was given up'
        if change.scene != Scene.SAME:
            return 'the scene was cut' if change.scene == Scene.CUT else 'the camera moved'
        if not change.stale.any():
            return 'forced' if self._state.live.exact else 'what was patched is computed whole'
        what = 'changed' if change.changed.any() else 'in doubt for too long'
        return f'{np.count_nonzero(change.stale)} of {change.stale.size} cells {what}'

    def _guarded(self, question, now_ns, turn, newest, cold):
        """The answer, with everything that can go wrong as its status."""
        try:
            return self._respond(question, turn, now_ns, newest, cold)
        except InvalidRequestError as error:
            status, message = Status.INVALID_REQUEST, str(error)
        except Stopped as stop:
            status, message = stop.status, str(stop)
        except Exception as error:
            self._forget()
            status, message = Status.MODEL_ERROR, f'The model failed: {type(error).__name__}: {error}'
            _log.exception("Camera '%s': the model failed; its state will be computed again.", self._camera)
        return Answer(status, message, **self._source(now_ns), **turn.stages)

    def _respond(self, question, turn, now_ns, newest, cold):
        # 1. Refuse what cannot be asked.
        asked = self._answerer.asked(question, self.config)
        question = asked.question
        turn.set_timeout(question.timeout_s)
        turn.check()
        # 2. Find the state: the kept one, or for a cold answer one computed from nothing from the same picture.
        before = self._prefilled
        state = self._fresh_state(question, turn, now_ns, newest)
        if cold:
            turn.tell('refresh')
            state = self._cold_twin(state, turn)
        # 3. Answer from it; from a patched one that is not sure, bring it up to date and answer again.
        outcome = self._answerer.answer(state, asked, turn)
        escalated = not cold and not state.live.exact and outcome['confidence'] < self.config.min_confidence
        if escalated:
            self._pay(self.newest, turn)
            state = self._state
            outcome = self._answerer.answer(state, asked, turn)
        if not cold:
            self._auditor.note(outcome, asked, state, self.config)
        # 4. Say what it was given from, and what it cost.
        reused = 0 if cold else max(0, state.tokens - (self._prefilled - before))
        paid = state.tokens - reused + (1 + escalated) * (len(asked.tokens) + sum(map(len, asked.choices)))
        return Answer(
            Status.OK,
            tokens_reused=reused,
            tokens_prefilled=paid,
            cached_stamp_ns=state.live.frame.stamp_ns,
            level=Level.FULL if cold else self._level,
            exact=state.exact,
            escalated=escalated,
            **outcome,
            **self._source(now_ns),
            **turn.stages,
        )

    def _fresh_state(self, question, turn, now_ns, newest):
        """The kept state, fresh enough for this question, which may have to pay for that."""
        if not self._is_usable(question, now_ns) and (frame := newest()) is not None:
            self._take(frame, question, turn)
        if self.newest is None:
            raise Stopped(
                Status.NO_IMAGE, f"Camera '{self._camera}' has given no picture since the start or the last reset."
            )
        age_s = self.newest.age_s(now_ns)
        if age_s > question.max_age_s:
            raise Stopped(
                Status.STALE,
                f"The newest picture of camera '{self._camera}' is {age_s:.2f} s old, more "
                f'than max_age {question.max_age_s:g} s; check the camera or allow more.',
            )
        if (
            not self._has_state()
            or age_s + self._debt_s > question.max_age_s
            or (question.force_refresh and not (self._state.live.frame is self.newest and self._state.live.exact))
        ):
            self._pay(self.newest, turn)
        return self._state

    def _pay(self, frame, turn, force=True):
        """Observe a frame at this question's expense."""
        turn.tell('refresh')
        self.observe(frame, force=force, check=turn.check)
        turn.lap('refresh_ms')

    def _has_state(self):
        """Whether there is a state of the newest picture."""
        return self._state is not None and self._state.has_live and self._is_current

    def _is_usable(self, question, now_ns):
        """Whether the kept state will do, with no newer picture needed."""
        return (
            self._has_state()
            and not question.force_refresh
            and self.newest.age_s(now_ns) + self._debt_s <= question.max_age_s
        )

    def _take(self, frame, question, turn):
        """Observe the frame that waited, at this question's expense; one the model cannot take changes nothing."""
        try:
            self._pay(frame, turn, question.force_refresh)
        except ImageError:
            turn.lap('refresh_ms')  # on_refused was told

    def _cold_twin(self, kept, turn):
        """The kept state's pictures once more, computed from nothing on a cache of its own."""
        started = time.perf_counter()
        pictures = [Picture.see(self._vlm, picture.frame, turn.check, self._keeps_vision) for picture in kept.pictures]
        turn.book('refresh_ms', 1e3 * (time.perf_counter() - started))
        return states.twin(states.build(self._vlm, self._template_for, pictures, turn.check), kept.identity)

    def _source(self, now_ns):
        """Which camera, model and picture an answer comes from."""
        source = {'camera': self._camera, 'model': self._vlm.name}
        if self.newest is not None:
            source |= {
                'stamp_ns': self.newest.stamp_ns,
                'frame_id': self.newest.frame_id,
                'image_age_s': self.newest.age_s(now_ns) + self._debt_s,
            }
        return source
