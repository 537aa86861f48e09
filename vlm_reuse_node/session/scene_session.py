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

`look(frame)` finds out what changed, on every frame, without the model.
`ask(question)` brings the model's state up to the newest frame if the question needs that, answers, and restores it.
`work()` does upkeep between questions, as far as the camera's credit pays for it.
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
from vlm_reuse_node.session.account import Account
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answerer import Answerer, TokenizedQuestion
from vlm_reuse_node.session.auditor import Auditor
from vlm_reuse_node.session.bill import Bill
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.refresher import Refresher
from vlm_reuse_node.session.session_status import SessionStatus
from vlm_reuse_node.session.state import State, build, twin
from vlm_reuse_node.session.turn import Halt, Turn
from vlm_reuse_node.session.upkeep import Upkeep

_log = logging.getLogger(__name__)

# Returns the frame that waits to be looked at, and removes it from its queue. None when no frame waits.
TakeFrame = Callable[[], Frame | None]


class SceneSession:
    """Keeps one camera's state and answers from it.

    `look` may be called on any thread while `can_look` is true; everything else only on the thread that loaded the
    model. config: may be replaced between calls. Only live parameters may differ.
    """

    def __init__(
        self,
        vlm: Vlm,
        config: Config,
        camera: str = 'camera',
        on_refresh: Callable[[Frame, Refresh], None] = lambda frame, refresh: None,
        on_refused: Callable[[Frame, ImageError], None] = lambda frame, error: None,
        clock: Callable[[], float] = time.perf_counter,
        measures_time: bool = True,
    ) -> None:
        """Start without a frame.

        on_refresh: called after every look at a frame, and after every refresh; on the thread that does it.
        on_refused: called after every frame that the model cannot take.
        clock: seconds; upkeep takes the rhythm of the questions from it.
        measures_time: whether upkeep must be covered by credit in time too, not in tokens alone. See `Account`.
        Raises ConfigError when config.system_prompt holds special tokens of the model.
        """
        self.config = config
        self._vlm, self._camera, self._on_refresh, self._on_refused = vlm, camera, on_refresh, on_refused
        self._template_for = cache(lambda frames: vlm.template(config.system_prompt, frames))
        self._account = Account(measures_time)
        self._answerer = Answerer(vlm, self._template_for(1))
        self._refresher = Refresher(vlm, self._template_for, camera, lambda: self._account.totals)
        self._auditor = Auditor(vlm, self._template_for, self._answerer, camera)
        self._upkeep = Upkeep(vlm, self._refresher, self._auditor, self._account, camera, clock)

    def can_look(self, frame: Frame) -> bool:
        """Whether `look` needs no model for a frame of this size."""
        return self._refresher.can_look(frame)

    def look(self, frame: Frame) -> Refresh | None:
        """Find out which cells of the state differ from a new frame. Milliseconds of a CPU; no model runs.

        Returns None for a frame that is a little older than the newest: it is skipped.
        Raises ImageError for a frame that the model cannot take: nothing changes then, and on_refused is called.
        """
        try:
            record = self._refresher.look(frame, self.config)
        except ImageError as error:
            self._on_refused(frame, error)
            raise
        if record:
            self._on_refresh(frame, record)
        return record

    def observe(self, frame: Frame, *, force: bool = False, check: Check = go_on) -> Refresh | None:
        """Look at a frame and compute it at once, asked or not. This is the eager way; `look` and `work` cost less.

        force: compute the state of exactly this frame, even when no change is found.
        Raises as `look` and `Refresher.refresh` do.
        """
        record = self.look(frame)
        if record is None:
            return None
        before = self._vlm.meter.done
        try:
            return self._refresh(force, self._may_patch, check) or record
        finally:
            self._account.book_upkeep(self._vlm.meter.done - before)

    def ask(
        self, question: Question, *, now_ns: int, turn: Turn | None = None, newest: TakeFrame = lambda: None
    ) -> Answer:
        """Answer from the newest picture, or from the kept state if its lag is within the question's max_lag_s.

        Afterwards the state is restored bit for bit.
        When a patched state's answer is below min_confidence, the state is computed whole and answers again.
        now_ns: the time of the question on the clock of the frames' stamps, for the image age.
        turn: clock, cancellation and listener of the question. None: a turn that begins now.
        newest: returns a frame that was not looked at yet.
        Does not raise: an error in the question or in the model becomes the answer's status.
        """
        return self._guarded(question, now_ns, turn or Turn(), newest, cold=False)

    def ask_cold(
        self, question: Question, *, now_ns: int, turn: Turn | None = None, newest: TakeFrame = lambda: None
    ) -> Answer:
        """Answer cold-dense: the same question on the same cached frame, computed from nothing on a separate cache.

        This is the reference for `ask`: image processor, vision tower, prefill of the whole prompt and decode, in the
        same chunks. For a patched state the cached frame is the newest frame that it was patched from, as a whole.
        The kept state is first brought up to date as for `ask`; it does not change otherwise, unless the model fails.
        """
        return self._guarded(question, now_ns, turn or Turn(), newest, cold=True)

    def work(self, check: Check = go_on) -> float | None:
        """Do one stage of upkeep if one is due. Call it while no question waits.

        check: may raise Halt between two steps of the model; the next call does the stage again.
        Returns the seconds until the next call is worth it: 0 after a stage, None when nothing is due before the next
        picture or question. Raises only what on_refresh raises.
        """
        wait_s, refresh = self._upkeep.work(self.config, self._may_patch, check)
        if refresh:
            self._on_refresh(self.newest, refresh)
        return wait_s

    @property
    def newest(self) -> Frame | None:
        """The newest frame; None before the first."""
        look = self._refresher.newest
        return look.frame if look else None

    @property
    def status(self) -> SessionStatus:
        """What the session holds and has done."""
        frames, size = self._refresher.held
        held_bytes = size + self._auditor.held_bytes
        return SessionStatus(frames, held_bytes, self._auditor.counts, self._account.totals)

    def reset(self) -> None:
        """Forget the frame and the state. Questions get NO_IMAGE until the next frame."""
        self._auditor.forget()
        self._refresher.reset()

    @property
    def _may_patch(self) -> bool:
        """Whether approximate states may be used now."""
        return self.config.refresh_policy == PATCH_POLICY and self._auditor.is_trusted

    def _guarded(self, question: Question, now_ns: int, turn: Turn, newest: TakeFrame, cold: bool) -> Answer:
        """Answer and book the costs; every error becomes the answer's status."""
        bill = Bill(self._vlm.meter.done)
        try:
            return self._respond(question, now_ns, turn, newest, cold, bill)
        except InvalidRequestError as error:
            status, message = Status.INVALID_REQUEST, str(error)
        except Halt as halt:
            status, message = halt.status, str(halt)
        except Exception as error:
            self._refresher.drop_state()
            status, message = Status.MODEL_ERROR, f'The model failed: {type(error).__name__}: {error}'
            _log.exception("Camera '%s': the model failed, so its state will be computed again.", self._camera)
        finally:
            spent = self._vlm.meter.done - bill.before
            self._account.book_question(spent, bill.due(spent), self.config.upkeep_share)
        return Answer(status, message, **self._source(now_ns), **turn.stages)

    def _respond(
        self, question: Question, now_ns: int, turn: Turn, newest: TakeFrame, cold: bool, bill: Bill
    ) -> Answer:
        # 1. Check the question.
        tokenized = self._answerer.tokenize(question, self.config)
        turn.begin(tokenized.question.timeout_s)
        self._upkeep.note_question(tokenized.question)
        # 2. Look at the frame that waits, and bring the state up to the newest frame if the question needs that.
        prefilled_before = self._refresher.prefilled
        self._take(newest, tokenized.question, now_ns)
        self._freshen(tokenized, now_ns, turn, bill, cold)
        began = self._vlm.meter.done
        state = self._cold_twin(turn) if cold else self._refresher.state
        # 3. Answer. If a patched state is not confident enough, compute it whole and answer again.
        outcome, computed = self._answer(state, tokenized, turn, bill), tokenized.cost
        escalated = not cold and not state.live.exact and outcome.confidence < self.config.min_confidence
        if escalated:
            self._pay(turn, bill, force=True)
            state = self._refresher.state
            outcome, computed = self._answer(state, tokenized, turn, bill), 2 * computed
        # 4. Hand a share of the answers to the audit.
        bill.is_complete = True
        if cold:
            bill.cold = self._vlm.meter.done - began
        else:
            self._auditor.note(outcome, tokenized, state, self.config)
        # 5. Record the answer's source and cost.
        refreshed = state.tokens if cold else min(state.tokens, self._refresher.prefilled - prefilled_before)
        return Answer(
            Status.OK,
            tokens_reused=state.tokens - refreshed,
            tokens_prefilled=refreshed + computed,
            tokens_generated=len(outcome.token_ids),
            cached_stamp_ns=state.live.frame.stamp_ns,
            level=Level.FULL if cold else bill.level,
            exact=state.exact,
            escalated=escalated,
            **vars(outcome),
            **self._source(now_ns),
            **turn.stages,
        )

    def _take(self, newest: TakeFrame, question: Question, now_ns: int) -> None:
        """Look at the frame that waits. Refuses the question when there is no frame, or none that is new enough."""
        if (frame := newest()) is not None:
            with suppress(ImageError):  # on_refused was called; the refused frame changes nothing
                self.look(frame)
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

    def _freshen(self, tokenized: TokenizedQuestion, now_ns: int, turn: Turn, bill: Bill, cold: bool) -> None:
        """Refresh the kept state if it is too old for this question, or if it may not answer as it is."""
        question, is_exact = tokenized.question, self._refresher.is_exact
        may_patch = self._may_patch and self._upkeep.pays_for_escalation(
            self._answerer.expected(tokenized), self.config
        )
        is_enough = self._is_fresh(question, now_ns) and (is_exact or may_patch or cold)
        if not is_enough or (question.force_refresh and not self._refresher.is_whole):
            self._pay(turn, bill, force=question.force_refresh, may_patch=may_patch)
        if self._image_age_s(now_ns) > question.max_age_s:  # the budget has left cells stale for too long
            self._pay(turn, bill, force=True)

    def _is_fresh(self, question: Question, now_ns: int) -> bool:
        """Whether the state is new enough: no stale cell that matters to this question."""
        look = self._refresher.newest
        if look.change is None or self._image_age_s(now_ns) > question.max_age_s:
            return False
        return look.is_current or (look.lag_s > 0 and self._lag_s(now_ns) <= question.max_lag_s)

    def _answer(self, state: State, tokenized: TokenizedQuestion, turn: Turn, bill: Bill) -> Outcome:
        before = self._vlm.meter.done
        outcome = self._answerer.answer(state, tokenized, turn)
        bill.cold = self._refresher.cold_work() + self._vlm.meter.done - before
        return outcome

    def _pay(self, turn: Turn, bill: Bill, force: bool, may_patch: bool = False) -> None:
        """Refresh as part of this question's time."""
        turn.report('refresh')
        try:
            if refresh := self._refresh(force, may_patch, turn.check):
                bill.level = max(bill.level, refresh.level, key=list(Level).index)
        finally:
            turn.lap('refresh_ms')

    def _refresh(self, force: bool, may_patch: bool, check: Check) -> Refresh | None:
        refresh = self._refresher.refresh(self.config, may_patch=may_patch, force=force, check=check)
        if refresh:
            self._on_refresh(self.newest, refresh)
        return refresh

    def _cold_twin(self, turn: Turn) -> State:
        """Compute the kept state's frames from nothing, on a separate cache."""
        turn.report('refresh')
        kept, started_s = self._refresher.state, time.perf_counter()
        keep = self._refresher.keeps_vision(self.config)
        frames = [EncodedFrame.see(self._vlm, encoded.frame, turn.check, keep) for encoded in kept.frames]
        turn.book('refresh_ms', 1e3 * (time.perf_counter() - started_s))
        return twin(build(self._vlm, self._template_for, frames, turn.check), kept.identity)

    def _lag_s(self, now_ns: int) -> float:
        """Seconds from the last frame that showed the stale cells unchanged to the newest frame, or to the question.

        A question that waited may be answered from any frame that was taken after it was asked.
        """
        look = self._refresher.newest
        return max(0.0, look.lag_s + min(0.0, look.frame.since_s(now_ns)))

    def _image_age_s(self, now_ns: int) -> float:
        """Age of what the state shows: of the newest frame, plus the lag of the stale cells."""
        return self.newest.age_s(now_ns) + self._lag_s(now_ns)

    def _source(self, now_ns: int) -> dict[str, Any]:
        """The camera, model and frame of an answer, by the names of `Answer`'s fields."""
        source: dict[str, Any] = {'camera': self._camera, 'model': self._vlm.name}
        if look := self._refresher.newest:
            shown = look.current or look.frame
            source |= {
                'stamp_ns': shown.stamp_ns,
                'frame_id': shown.frame_id,
                'image_age_s': self._image_age_s(now_ns),
                'lag_s': self._lag_s(now_ns),
            }
        return source
