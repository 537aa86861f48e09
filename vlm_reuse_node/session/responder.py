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

"""One question, from its check to its answer: refresh if it needs that, answer, escalate, book the costs."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.lookout import Look
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.account import Account
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answer_memory import AnswerMemory, RememberedAnswer
from vlm_reuse_node.session.answerer import Answerer, TokenizedQuestion
from vlm_reuse_node.session.auditor import Auditor
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.refresher import Refresher
from vlm_reuse_node.session.state import State, build, twin
from vlm_reuse_node.session.turn import Halt, Turn
from vlm_reuse_node.session.upkeep import Upkeep

_log = logging.getLogger(__name__)


@dataclass
class Case:
    """One question while it is answered.

    now_ns: its time on the clock of the frames' stamps. is_cold: answer cold-dense.
    before: the model's meter when it began. cold: the work of cold-dense for its last answer; None before the first.
    measured_from: the meter when a cold answer began; it is a measurement and is booked nowhere.
    level: of the dearest refresh that it waited for. is_complete: whether it got an answer.
    computed: prompt and choice tokens that its answers took. is_remembered: whether the last one was remembered.
    """

    config: Config
    now_ns: int
    turn: Turn
    is_cold: bool
    before: Work
    cold: Work | None = None
    measured_from: Work | None = None
    level: Level = Level.REUSE
    is_complete: bool = False
    computed: int = 0
    is_remembered: bool = False

    def cold_work(self, spent: Work) -> Work:
        """What cold-dense would have spent. spent: what was spent on the question here.

        A question that ended early costs cold-dense as much as it did here, because it would have been cut as early.
        """
        if self.is_complete:
            return self.cold
        return min(self.cold or spent, spent, key=lambda work: work.tokens)


class Responder:
    """Answers one camera's questions."""

    def __init__(
        self,
        vlm: Vlm,
        template_for: Callable[[int], PromptTemplate],
        camera: str,
        answerer: Answerer,
        refresher: Refresher,
        auditor: Auditor,
        account: Account,
        upkeep: Upkeep,
    ) -> None:
        """Use the parts of one session."""
        self._vlm, self._template_for, self._camera = vlm, template_for, camera
        self._answerer, self._refresher, self._auditor = answerer, refresher, auditor
        self._account, self._upkeep = account, upkeep
        self._memory = AnswerMemory()

    def respond(
        self, question: Question, config: Config, now_ns: int, turn: Turn, is_cold: bool, look: Callable[[], None]
    ) -> Answer:
        """Answer and book the costs; see `SceneSession.ask`. Every error becomes the answer's status.

        look: looks at the frame that waits.
        """
        case = Case(config, now_ns, turn, is_cold, self._vlm.meter.done)
        try:
            return self._respond(question, case, look)
        except InvalidRequestError as error:
            status, message = Status.INVALID_REQUEST, str(error)
        except Halt as halt:
            status, message = halt.status, str(halt)
        except Exception as error:
            self._refresher.drop_state()
            status, message = Status.MODEL_ERROR, f'The model failed: {type(error).__name__}: {error}'
            _log.exception("Camera '%s': the model failed, so its state will be computed again.", self._camera)
        finally:
            spent = (case.measured_from or self._vlm.meter.done) - case.before
            self._account.book_question(spent, case.cold_work(spent), config.upkeep_share)
        return Answer(status, message, **self._source(now_ns), **turn.stages)

    def _respond(self, question: Question, case: Case, look: Callable[[], None]) -> Answer:
        # 1. Check the question and the picture.
        tokenized = self._answerer.tokenize(question, case.config)
        case.turn.begin(tokenized.question.timeout_s)
        self._upkeep.note_question(tokenized.question)
        look()
        self._check_picture(tokenized.question, case.now_ns)
        # 2. Bring the state up to the newest frame if the question needs that. A cold answer uses a state of its own.
        prefilled_before = self._refresher.prefilled
        self._freshen(tokenized, case)
        case.measured_from = self._vlm.meter.done if case.is_cold else None
        state = self._cold_twin(case) if case.is_cold else self._refresher.state
        # 3. Answer. If a patched state is not confident enough, compute it whole and answer again.
        outcome = self._answer(state, tokenized, case)
        escalated = not case.is_cold and not state.live.exact and outcome.confidence < case.config.min_confidence
        if escalated:
            self._refresh(case, force=True)
            state = self._refresher.state
            outcome = self._answer(state, tokenized, case)
        # 4. Hand a share of the answers to the audit.
        if case.is_cold:
            case.cold = Work()
        else:
            self._auditor.note(outcome, tokenized, state, case.config)
        case.is_complete = True
        # 5. Record the answer's source and cost.
        paid = state.tokens if case.is_cold else min(state.tokens, self._refresher.prefilled - prefilled_before)
        return Answer(
            Status.OK,
            tokens_reused=state.tokens - paid,
            tokens_prefilled=paid + case.computed,
            tokens_generated=0 if case.is_remembered else len(outcome.token_ids),
            cached_stamp_ns=state.live.frame.stamp_ns,
            level=Level.FULL if case.is_cold else case.level,
            exact=state.exact,
            escalated=escalated,
            remembered=case.is_remembered,
            **vars(outcome),
            **self._source(case.now_ns),
            **case.turn.stages,
        )

    def _check_picture(self, question: Question, now_ns: int) -> None:
        """Refuse the question when there is no picture, or none that is new enough."""
        if self._refresher.newest is None:
            raise Halt(
                Status.NO_IMAGE, f"Camera '{self._camera}' has sent no picture since the start or the last reset."
            )
        age_s = self._refresher.newest.frame.age_s(now_ns)
        if age_s > question.max_age_s:
            raise Halt(
                Status.STALE,
                f"The newest picture of camera '{self._camera}' is {age_s:.2f} s old, more "
                f'than max_age {question.max_age_s:g} s; check the camera or raise max_age.',
            )

    def _freshen(self, tokenized: TokenizedQuestion, case: Case) -> None:
        """Refresh the kept state if it is too old for this question, or if it may not answer as it is.

        A patched state answers only when the credit pays for a second answer.
        """
        question, now_ns = tokenized.question, case.now_ns
        cells, patched = self._refresher.newest.cells, case.config.max_patch_share
        patch = self._refresher.prices.patch(self._refresher.state, cells, int(patched * cells))
        may_patch = self._auditor.allows_patches(case.config) and self._account.covers_patch(
            patch + self._answerer.expected(tokenized)
        )
        may_answer = self._refresher.is_exact or may_patch or case.is_cold
        is_enough = may_answer and self._is_fresh(question, now_ns)
        if not is_enough or (question.force_refresh and not self._refresher.is_whole):
            self._refresh(case, force=question.force_refresh, may_patch=may_patch)
        image_age_s = _image_age_s(self._refresher.newest, now_ns)
        if image_age_s > question.max_age_s:  # the budget has left cells stale for too long
            self._refresh(case, force=True)

    def _is_fresh(self, question: Question, now_ns: int) -> bool:
        """Whether the state is new enough: no stale cell that matters to this question."""
        look = self._refresher.newest
        if look.change is None or _image_age_s(look, now_ns) > question.max_age_s:
            return False
        return look.agreed(now_ns) or (look.lag_s > 0 and _lag_s(look, now_ns) <= question.max_lag_s)

    def _refresh(self, case: Case, force: bool, may_patch: bool = False) -> None:
        """Refresh as part of this question's time."""
        case.turn.report('refresh')
        try:
            refresh = self._refresher.refresh(case.config, may_patch=may_patch, force=force, check=case.turn.check)
        finally:
            case.turn.lap('refresh_ms')
        if refresh:
            case.level = max(case.level, refresh.level, key=list(Level).index)

    def _answer(self, state: State, tokenized: TokenizedQuestion, case: Case) -> Outcome:
        """Recall the answer, or compute it. A cold answer is a measurement: it is always computed, and not kept."""
        answer = None if case.is_cold else self._memory.recall(state.version, tokenized)
        case.is_remembered = answer is not None
        if answer is None:
            before = self._vlm.meter.done
            outcome = self._answerer.answer(state, tokenized, case.turn)
            answer = RememberedAnswer(outcome, self._vlm.meter.done - before)
            case.computed += tokenized.cost
            if not case.is_cold:
                self._memory.remember(state.version, tokenized, answer)
        else:
            if not tokenized.choices:
                case.turn.report('decode', answer.outcome.text)
            case.turn.lap('prefill_ms')
        case.cold = self._refresher.prices.cold(self._refresher.state) + answer.work
        return answer.outcome

    def _cold_twin(self, case: Case) -> State:
        """Compute the kept state's frames from nothing, on a separate cache."""
        case.turn.report('refresh')
        kept, started_s = self._refresher.state, time.perf_counter()
        keep, check = self._refresher.keeps_vision(case.config), case.turn.check
        frames = [EncodedFrame.see(self._vlm, encoded.frame, check, keep) for encoded in kept.frames]
        case.turn.book('refresh_ms', 1e3 * (time.perf_counter() - started_s))
        return twin(build(self._vlm, self._template_for, frames, check), kept.identity)

    def _source(self, now_ns: int) -> dict[str, Any]:
        """The camera, model and frame of an answer, by the names of `Answer`'s fields."""
        source: dict[str, Any] = {'camera': self._camera, 'model': self._vlm.name}
        if look := self._refresher.newest:
            shown = look.current or look.frame
            source |= {
                'stamp_ns': shown.stamp_ns,
                'frame_id': shown.frame_id,
                'image_age_s': _image_age_s(look, now_ns),
                'lag_s': _lag_s(look, now_ns),
            }
        return source


def _lag_s(look: Look, now_ns: int) -> float:
    """Seconds that the state's cells had been known to differ from the newest frame when the question was asked.

    A frame that was taken later does not count: a question that waited asks about what was there to be seen.
    """
    return 0.0 if look.agreed(now_ns) else max(0.0, look.lag_s + min(0.0, look.frame.since_s(now_ns)))


def _image_age_s(look: Look, now_ns: int) -> float:
    """Age of what the state shows, when the question was asked: of the newest frame, plus the lag."""
    if look.agreed(now_ns):
        return look.current.age_s(now_ns)
    return look.frame.age_s(now_ns) + _lag_s(look, now_ns)
