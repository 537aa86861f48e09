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

"""One camera's conversation with the model. Start reading here.

`observe(frame)` keeps the model's state up to date with the newest frame, and computes only when the frame changed.
`ask(question)` answers from that state and restores it.
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

# Returns the frame that waits to be observed, and removes it from its queue. None when no frame waits.
TakeFrame = Callable[[], Frame | None]


class SceneSession:
    """Keeps one camera's state and answers from it. Call it only on the thread that loaded the model.

    config: may be replaced between calls. Only live parameters may differ.
    """

    def __init__(
        self,
        vlm: Vlm,
        config: Config,
        camera: str = 'camera',
        on_refresh: Callable[[Frame, Refresh], None] = lambda frame, refresh: None,
        on_refused: Callable[[Frame, ImageError], None] = lambda frame, error: None,
    ) -> None:
        """Start without a frame.

        on_refresh: called after every observed frame, and with the newest frame after a history rollover.
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
        """Answer from the kept state. Afterwards the state is restored bit for bit.

        When a patched state's answer is below min_confidence, the state is computed whole and answers again.
        now_ns: the time of the question on the clock of the frames' stamps, for the image age.
        turn: clock, cancellation and listener of the question. None: a turn that begins now.
        newest: called when the state is too old for this question. The refresh then counts as part of the answer.
        Does not raise: an error in the question or in the model becomes the answer's status.
        """
        return self._guarded(question, now_ns, turn or Turn(), newest, cold=False)

    def ask_cold(
        self, question: Question, *, now_ns: int, turn: Turn | None = None, newest: TakeFrame = lambda: None
    ) -> Answer:
        """Answer cold-dense: the same question on the same cached frame, computed from nothing on a separate cache.

        This is the reference for `ask`: image processor, vision tower, prefill of the whole prompt and decode, in the
        same chunks. For a patched state the cached frame is the newest frame that it was patched from, as a whole.
        The kept state does not change, unless the model fails.
        """
        return self._guarded(question, now_ns, turn or Turn(), newest, cold=True)

    @property
    def newest(self) -> Frame | None:
        """The newest observed frame; None before the first."""
        return self._refresher.newest

    @property
    def has_work(self) -> bool:
        """Whether a step of a history rollover can be computed now; see `Refresher.has_rollover`."""
        return self._refresher.has_rollover

    def work(self, check: Check = go_on) -> None:
        """Compute one frame of a history rollover, and use the new state once it is complete. Call it while idle.

        check: as in `Refresher.step_rollover`. Raises only what on_refresh raises.
        """
        if refresh := self._refresher.step_rollover(check):
            self._on_refresh(self.newest, refresh)

    @property
    def has_audit(self) -> bool:
        """Whether an answer waits for its audit."""
        return self._auditor.has_work

    @property
    def is_auditing(self) -> bool:
        """Whether an audit has begun and is not finished."""
        return self._auditor.is_busy

    def audit(self, check: Check = go_on) -> None:
        """Compute one step of the drift audit: repeat a waiting answer cold-dense. Call it while idle.

        check: as in `Auditor.step`. Raises nothing.
        """
        self._auditor.step(check, self.config, self._refresher.keeps_vision(self.config))

    @property
    def audit_counts(self) -> AuditCounts:
        """The counts of the drift audit."""
        return self._auditor.counts

    @property
    def held(self) -> tuple[int, int]:
        """Number of frames in the state, with the live frame, and the bytes held for them and for an audit."""
        frames, size = self._refresher.held
        return frames, size + self._auditor.held_bytes

    def reset(self) -> None:
        """Forget the frame and the state. Questions get NO_IMAGE until the next frame."""
        self._auditor.forget()
        self._refresher.reset()

    def _guarded(self, question: Question, now_ns: int, turn: Turn, newest: TakeFrame, cold: bool) -> Answer:
        """Answer; every error becomes the answer's status."""
        try:
            return self._respond(question, now_ns, turn, newest, cold)
        except InvalidRequestError as error:
            status, message = Status.INVALID_REQUEST, str(error)
        except Halt as halt:
            status, message = halt.status, str(halt)
        except Exception as error:
            self._refresher.drop_state()
            status, message = Status.MODEL_ERROR, f'The model failed: {type(error).__name__}: {error}'
            _log.exception("Camera '%s': the model failed, so its state will be computed again.", self._camera)
        return Answer(status, message, **self._source(now_ns), **turn.stages)

    def _respond(self, question: Question, now_ns: int, turn: Turn, newest: TakeFrame, cold: bool) -> Answer:
        # 1. Check the question.
        tokenized = self._answerer.tokenize(question, self.config)
        turn.begin(tokenized.question.timeout_s)
        # 2. Take the kept state; for a cold answer, compute the same frames from nothing.
        prefilled_before = self._refresher.prefilled
        self._freshen(tokenized.question, now_ns, turn, newest)
        state = self._cold_twin(turn) if cold else self._refresher.state
        # 3. Answer. If a patched state is not confident enough, compute it whole and answer again.
        outcome, computed = self._answerer.answer(state, tokenized, turn), tokenized.cost
        escalated = not cold and not state.live.exact and outcome.confidence < self.config.min_confidence
        if escalated:
            self._pay(self.newest, turn, force=True)
            state = self._refresher.state
            outcome, computed = self._answerer.answer(state, tokenized, turn), 2 * computed
        # 4. Hand a share of the answers to the audit.
        if not cold:
            self._auditor.note(outcome, tokenized, state, self.config)
        # 5. Record the answer's source and cost.
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
        """Refresh the kept state if it is too old for this question."""
        if (question.force_refresh or not self._is_fresh(question, now_ns)) and (frame := newest()) is not None:
            with suppress(ImageError):  # on_refused was called; the refused frame changes nothing
                self._pay(frame, turn, force=question.force_refresh)
        if self.newest is None:
            raise Halt(
                Status.NO_IMAGE, f"Camera '{self._camera}' has sent no picture since the start or the last reset."
            )
        age_s = self.newest.age_s(now_ns)
        if age_s > question.max_age_s:
            raise Halt(
                Status.STALE,
                f"The newest picture of camera '{self._camera}' is {age_s:.2f} s old, more "
                f'than max_age {question.max_age_s:g} s; check the camera or raise max_age.',
            )
        if not self._is_fresh(question, now_ns) or (question.force_refresh and not self._refresher.is_whole):
            self._pay(self.newest, turn, force=True)

    def _is_fresh(self, question: Question, now_ns: int) -> bool:
        """Whether the state is up to date with the newest frame, and no cell is older than the question allows."""
        return self._refresher.is_current and (self.newest.age_s(now_ns) + self._refresher.lag_s <= question.max_age_s)

    def _pay(self, frame: Frame, turn: Turn, force: bool) -> None:
        """Observe a frame as part of this question's time."""
        turn.report('refresh')
        try:
            self.observe(frame, force=force, check=turn.check)
        finally:
            turn.lap('refresh_ms')

    def _cold_twin(self, turn: Turn) -> State:
        """Compute the kept state's frames from nothing, on a separate cache."""
        turn.report('refresh')
        kept, started_s = self._refresher.state, time.perf_counter()
        keep = self._refresher.keeps_vision(self.config)
        frames = [EncodedFrame.see(self._vlm, encoded.frame, turn.check, keep) for encoded in kept.frames]
        turn.book('refresh_ms', 1e3 * (time.perf_counter() - started_s))
        return twin(build(self._vlm, self._template_for, frames, turn.check), kept.identity)

    def _source(self, now_ns: int) -> dict[str, Any]:
        """The camera, model and frame of an answer, by the names of `Answer`'s fields."""
        source: dict[str, Any] = {'camera': self._camera, 'model': self._vlm.name}
        if self.newest is not None:
            source |= {
                'stamp_ns': self.newest.stamp_ns,
                'frame_id': self.newest.frame_id,
                'image_age_s': self.newest.age_s(now_ns) + self._refresher.lag_s,
            }
        return source
