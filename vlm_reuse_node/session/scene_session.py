"""One camera's conversation with the model. Start reading here.

`observe(frame)` keeps the model's state up to the newest frame and pays only when the frame changed;
`ask(question)` answers from that state and puts it back as it was.
Prompt: `[system] [history keyframe 1] ... [history keyframe n] [live frame] | snapshot | [question] -> answer`.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from vlm_reuse_node.config import PATCH_POLICY, Config
from vlm_reuse_node.errors import ImageError, InvalidRequestError
from vlm_reuse_node.model.vlm import Check, Vlm, go_on
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.auditor import Auditor
from vlm_reuse_node.session.drift_audit import AuditCounts
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.refresher import Refresher
from vlm_reuse_node.session.state import State, build, twin
from vlm_reuse_node.session.turn import Halt, Turn

_log = logging.getLogger(__name__)

# Takes the frame that waits to be observed, None when there is none.
TakeFrame = Callable[[], Frame | None]


class SceneSession:
    """Keeps one camera's state and answers from it. Every call belongs to the thread that loaded the model.

    config: may be replaced between calls by one whose live parameters differ.
    """

    def __init__(
        self,
        vlm: Vlm,
        config: Config,
        camera: str = 'camera',
        on_refresh: Callable[[Frame, Refresh], None] = lambda frame, refresh: None,
        on_refused: Callable[[Frame, ImageError], None] = lambda frame, error: None,
    ):
        """Start without a frame.

        on_refresh: called after every observed frame, and with the newest one after a history rollover.
        on_refused: called after every frame that the model cannot take.
        Raises ConfigError when config.system_prompt holds special tokens of the model.
        """
        self.config = config
        self._vlm, self._camera, self._on_refresh, self._on_refused = vlm, camera, on_refresh, on_refused
        self._template_for = cache(lambda frames: vlm.template(config.system_prompt, frames))
        self._answerer = Answerer(vlm, self._template_for(1))
        self._refresher = Refresher(vlm, self._template_for, camera)
        self._auditor = Auditor(vlm, self._template_for, self._answerer, camera)

    def observe(self, frame: Frame, *, force: bool = False, check: Check = go_on) -> Refresh:
        """Bring the state up to a new frame at the cheapest level that is allowed; see `Refresher.refresh`.

        Raises ImageError for a frame the model cannot take: the state stays as it was, and on_refused is called.
        """
        may_patch = self.config.refresh_policy == PATCH_POLICY and self._auditor.is_trusted
        try:
            refresh = self._refresher.refresh(frame, self.config, may_patch=may_patch, force=force, check=check)
        except ImageError as error:
            self._on_refused(frame, error)
            raise
        self._on_refresh(frame, refresh)
        return refresh

    def ask(
        self, question: Question, *, now_ns: int, turn: Turn | None = None, newest: TakeFrame = lambda: None
    ) -> Answer:
        """Answer from the kept state; afterwards the state is what it was, bit for bit.

        A patched state answers only what it is sure of (min_confidence); else it is computed whole, and answers again.
        now_ns: the time of asking on the clock of the frames' stamps, for the image age. turn: its clock, cancellation
        and listener; one that begins now when None. newest: called when the kept state is not fresh enough for this
        question, which then pays for the refresh.
        Never raises for anything that a question or the model can cause: that is the answer's status.
        """
        return self._guarded(question, now_ns, turn or Turn(), newest, cold=False)

    def ask_cold(
        self, question: Question, *, now_ns: int, turn: Turn | None = None, newest: TakeFrame = lambda: None
    ) -> Answer:
        """Answer the same question on the same cached frame from nothing, on a cache of its own.

        The reference that `ask` is compared with: image processor, vision tower, prefill of everything, decode, in the
        same chunks. The cached frame of a patched state is the newest one that it was patched from, all of it.
        The kept state is not touched, unless the model fails.
        """
        return self._guarded(question, now_ns, turn or Turn(), newest, cold=True)

    @property
    def newest(self) -> Frame | None:
        """The newest observed frame, None before the first."""
        return self._refresher.newest

    @property
    def has_work(self) -> bool:
        """Whether a shorter history waits to be computed; the kept one serves until then."""
        return self._refresher.has_rollover

    def work(self, check: Check = go_on) -> None:
        """Compute one frame of the shorter history, and take it over when it is complete; call it while idle.

        check: as in `Refresher.step_rollover`. Raises nothing but what on_refresh raises.
        """
        if refresh := self._refresher.step_rollover(check):
            self._on_refresh(self.newest, refresh)

    @property
    def has_audit(self) -> bool:
        """Whether an answer waits to be given again from nothing."""
        return self._auditor.has_work

    @property
    def is_auditing(self) -> bool:
        """Whether an answer's audit has begun."""
        return self._auditor.is_busy

    def audit(self, check: Check = go_on) -> None:
        """Take one step towards giving the answer that waits again, cold-dense on its frames; call it while idle.

        check: as in `Auditor.step`. Raises nothing.
        """
        self._auditor.step(check, self.config, self._refresher.keeps_vision(self.config))

    @property
    def audit_counts(self) -> AuditCounts:
        """What the drift audit has counted."""
        return self._auditor.counts

    @property
    def held(self) -> tuple[int, int]:
        """Frames in the kept state, the live one included, and the bytes of all that is held for them."""
        frames, size = self._refresher.held
        return frames, size + self._auditor.held_bytes

    def reset(self) -> None:
        """Forget frame and state; questions get NO_IMAGE until the next frame."""
        self._auditor.forget()
        self._refresher.reset()

    def _guarded(self, question: Question, now_ns: int, turn: Turn, newest: TakeFrame, cold: bool) -> Answer:
        """The answer, with everything that can go wrong as its status."""
        try:
            return self._respond(question, now_ns, turn, newest, cold)
        except InvalidRequestError as error:
            status, message = Status.INVALID_REQUEST, str(error)
        except Halt as halt:
            status, message = halt.status, str(halt)
        except Exception as error:
            self._refresher.drop_state()
            status, message = Status.MODEL_ERROR, f'The model failed: {type(error).__name__}: {error}'
            _log.exception("Camera '%s': the model failed; its state will be computed again.", self._camera)
        return Answer(status, message, **self._source(now_ns), **turn.stages)

    def _respond(self, question: Question, now_ns: int, turn: Turn, newest: TakeFrame, cold: bool) -> Answer:
        # 1. Refuse what cannot be asked.
        asked = self._answerer.tokenize(question, self.config)
        turn.begin(asked.question.timeout_s)
        # 2. Find the state: the kept one, or for a cold answer one computed from nothing from the same frame.
        prefilled_before = self._refresher.prefilled
        self._freshen(asked.question, now_ns, turn, newest)
        state = self._cold_twin(turn) if cold else self._refresher.state
        # 3. Answer from it; a patched one that is not sure is brought up to date, and answers again.
        outcome, computed = self._answerer.answer(state, asked, turn), asked.cost
        escalated = not cold and not state.live.exact and outcome.confidence < self.config.min_confidence
        if escalated:
            self._pay(self.newest, turn, force=True)
            state = self._refresher.state
            outcome, computed = self._answerer.answer(state, asked, turn), 2 * computed
        # 4. Have a share of the answers audited.
        if not cold:
            self._auditor.note(outcome, asked, state, self.config)
        # 5. Say what it was given from, and what it cost.
        refreshed = state.tokens if cold else min(state.tokens, self._refresher.prefilled - prefilled_before)
        return Answer(
            Status.OK,
            tokens_reused=state.tokens - refreshed,
            tokens_prefilled=refreshed + computed,
            tokens_generated=len(outcome.token_ids),
            cached_stamp_ns=state.live.frame.stamp_ns,
            level=Level.FULL if cold else self._refresher.level,
            exact=state.exact,
            escalated=escalated,
            **vars(outcome),
            **self._source(now_ns),
            **turn.stages,
        )

    def _freshen(self, question: Question, now_ns: int, turn: Turn, newest: TakeFrame) -> None:
        """Make the kept state fresh enough for this question, which may have to pay for that."""
        if (question.force_refresh or not self._is_fresh(question, now_ns)) and (frame := newest()) is not None:
            with suppress(ImageError):  # on_refused was told; a frame the model cannot take changes nothing
                self._pay(frame, turn, force=question.force_refresh)
        if self.newest is None:
            raise Halt(
                Status.NO_IMAGE, f"Camera '{self._camera}' has given no picture since the start or the last reset."
            )
        age_s = self.newest.age_s(now_ns)
        if age_s > question.max_age_s:
            raise Halt(
                Status.STALE,
                f"The newest picture of camera '{self._camera}' is {age_s:.2f} s old, more "
                f'than max_age {question.max_age_s:g} s; check the camera or allow more.',
            )
        if not self._is_fresh(question, now_ns) or (question.force_refresh and not self._refresher.is_whole):
            self._pay(self.newest, turn, force=True)

    def _is_fresh(self, question: Question, now_ns: int) -> bool:
        """Whether the state stands for the newest frame, and no cell of it is older than the question allows."""
        return self._refresher.is_current and (self.newest.age_s(now_ns) + self._refresher.lag_s <= question.max_age_s)

    def _pay(self, frame: Frame, turn: Turn, force: bool) -> None:
        """Observe a frame at this question's expense."""
        turn.tell('refresh')
        try:
            self.observe(frame, force=force, check=turn.check)
        finally:
            turn.lap('refresh_ms')

    def _cold_twin(self, turn: Turn) -> State:
        """The kept state's frames once more, computed from nothing on a cache of its own."""
        turn.tell('refresh')
        kept, started_s = self._refresher.state, time.perf_counter()
        keep = self._refresher.keeps_vision(self.config)
        frames = [EncodedFrame.see(self._vlm, encoded.frame, turn.check, keep) for encoded in kept.frames]
        turn.book('refresh_ms', 1e3 * (time.perf_counter() - started_s))
        return twin(build(self._vlm, self._template_for, frames, turn.check), kept.identity)

    def _source(self, now_ns: int) -> dict[str, Any]:
        """Which camera, model and frame an answer comes from, by the names of `Answer`'s fields."""
        source: dict[str, Any] = {'camera': self._camera, 'model': self._vlm.name}
        if self.newest is not None:
            source |= {
                'stamp_ns': self.newest.stamp_ns,
                'frame_id': self.newest.frame_id,
                'image_age_s': self.newest.age_s(now_ns) + self._refresher.lag_s,
            }
        return source
