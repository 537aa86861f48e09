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

"""The story of some questions, from their check to their answers: refresh if they need that, answer, book the costs.

Questions with choices that were asked about the same camera go through the model together.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session import freshness
from vlm_reuse_node.session.account import Account
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answer_memory import AnswerMemory
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.auditor import Auditor
from vlm_reuse_node.session.case import Case, cold_work, escalating
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.outcome import Outcome
from vlm_reuse_node.session.refresher import Refresher
from vlm_reuse_node.session.state import State, build, twin
from vlm_reuse_node.session.turn import Halt, SharedTurn
from vlm_reuse_node.session.upkeep import Upkeep

_log = logging.getLogger(__name__)

# Most tokens of questions and choices in one pass. More would let the first question wait too long for the others.
MOST_TOKENS = 256


class Responder:
    """Answers one camera's questions."""

    def __init__(
        self,
        vlm: Vlm,
        camera: str,
        answerer: Answerer,
        refresher: Refresher,
        auditor: Auditor,
        account: Account,
        upkeep: Upkeep,
    ) -> None:
        """Use the parts of one session."""
        self._vlm, self._camera = vlm, camera
        self._answerer, self._refresher, self._auditor = answerer, refresher, auditor
        self._account, self._upkeep = account, upkeep
        self._memory = AnswerMemory()

    def respond(self, cases: Sequence[Case], config: Config, look: Callable[[], None]) -> None:
        """Answer some questions and book the costs; see `SceneSession.ask_together`. Every error becomes a status.

        look: looks at the frame that waits.
        """
        before = self._vlm.meter.done
        try:
            with self._ending(cases):
                # 1. Check the questions and the picture.
                self._check(cases, config, look)
                # 2. Bring the state up to the newest frame if a question needs that.
                self._freshen(_open(cases), config)
                # 3. Answer. If a patched state is not confident enough, compute it whole and answer again.
                self._reply(_open(cases), config)
                if unsure := _open(cases):
                    self._refresh(unsure, config, force=True)
                    self._reply(unsure, config)
        finally:
            spent = self._vlm.meter.done - before
            self._account.book_questions(spent, cold_work(cases, spent), config.upkeep_share)

    def respond_cold(self, case: Case, config: Config, look: Callable[[], None]) -> None:
        """Answer cold-dense; see `SceneSession.ask_cold`. It is a measurement: only the refresh before it is booked."""
        before = self._vlm.meter.done
        measured: Work | None = None
        try:
            with self._ending([case]):
                self._check([case], config, look)
                if case.answer is None:
                    self._freshen([case], config, is_cold=True)
                    case.cold, measured = Work(), self._vlm.meter.done
                    state = self._cold_twin(case)
                    case.reply(self._answerer.answer(state, case.tokenized, case.turn))
                    case.level, case.refreshed_tokens = Level.FULL, state.tokens
                    case.end(self._answer(case, state))
        finally:
            spent = (measured or self._vlm.meter.done) - before
            self._account.book_questions(spent, cold_work([case], spent), config.upkeep_share)

    def _check(self, cases: Sequence[Case], config: Config, look: Callable[[], None]) -> None:
        for case in cases:
            with self._ending([case]):
                case.tokenized = self._answerer.tokenize(case.question, config)
                case.turn.begin(case.tokenized.question.timeout_s)
                self._upkeep.note_question(case.tokenized.question)
        if _open(cases):
            look()
        for case in _open(cases):
            with self._ending([case]):
                freshness.check(self._refresher.newest, self._camera, case.tokenized.question, case.now_ns)

    def _freshen(self, cases: Sequence[Case], config: Config, is_cold: bool = False) -> None:
        """Refresh the kept state if it is too old for one of these questions, or if it may not answer as it is."""
        if not cases:
            return
        may_patch = cache(partial(self._may_patch, cases, config))  # a whole and new state answers without it
        forced_first = sorted(cases, key=lambda case: not case.tokenized.question.force_refresh)
        for question, now_ns in ((case.tokenized.question, case.now_ns) for case in forced_first):
            may_answer = self._refresher.is_exact or is_cold or may_patch()
            is_enough = may_answer and freshness.is_enough(self._refresher.newest, question, now_ns)
            if not is_enough or (question.force_refresh and not self._refresher.is_whole):
                self._refresh(cases, config, question.force_refresh, may_patch(), joins_question=not is_cold)
            age_s = freshness.image_age_s(self._refresher.newest, now_ns)
            if age_s > question.max_age_s:  # the budget has left cells stale for too long
                self._refresh(cases, config, force=True, joins_question=not is_cold)
        if not is_cold:  # what a question that was halted has left is counted, too
            cases[0].refreshed_tokens = cases[0].refreshed_tokens or self._refresher.state.waiting

    def _refresh(
        self, cases: Sequence[Case], config: Config, force: bool, may_patch: bool = False, joins_question: bool = True
    ) -> None:
        """Refresh as part of these questions' time. The first one counts its tokens."""
        turn, prefilled = SharedTurn([case.turn for case in cases]), self._refresher.prefilled
        turn.report('refresh')
        try:
            refresh = self._refresher.refresh(
                config, may_patch=may_patch, force=force, check=turn.check, joins_question=joins_question
            )
        finally:
            turn.lap('refresh_ms')
        cases[0].refreshed_tokens += self._refresher.prefilled - prefilled
        if refresh:
            for case in cases:
                case.level = max(case.level, refresh.level, key=list(Level).index)

    def _reply(self, cases: Sequence[Case], config: Config) -> None:
        """Give each question the remembered answer, or let the model answer; some questions with choices at once.

        Questions to which a patched state gives no answer that is confident enough stay open.
        """
        state = self._refresher.state
        for case in cases:
            with self._ending([case]):
                self._answerer.check_room(state, case.tokenized)
        for batch in self._batches(state, _open(cases)):
            for case in batch:
                case.turn.lap('queue_ms')  # it has waited for the batches before
            asked = [case for case in batch if not self._recall(case, state)]
            with self._ending(batch, failures=False), escalating(asked, state.live.exact, config):
                for case, outcome in zip(asked, self._compute(state, asked, config) if asked else ()):
                    case.reply(outcome)
                    self._memory.remember(state.version, case.tokenized, outcome)
            for case in _open(batch):
                if case.outcome:  # else a patched state found none
                    self._finish(case, state, config)

    def _recall(self, case: Case, state: State) -> bool:
        """Give a question its remembered answer, if there is one."""
        if outcome := self._memory.recall(state.version, case.tokenized):
            case.recall(outcome)
        return outcome is not None

    def _finish(self, case: Case, state: State, config: Config) -> None:
        """Complete the answer and hand a share of all to the audit, unless the question must be asked again."""
        answer = self._answerer.work(state, case.tokenized, case.outcome)
        case.cold = self._refresher.prices.cold(state) + answer
        if not (state.live.exact or case.escalated) and case.outcome.confidence < _least(case, config):
            case.escalated = True
            return
        # Drift of patched states is a statistic: the same answer of the same state must not count again.
        if state.exact or not case.is_remembered:
            self._auditor.note(case.outcome, case.tokenized, state, config)
        case.end(self._answer(case, state))

    def _compute(self, state: State, batch: Sequence[Case], config: Config) -> list[Outcome]:
        if batch[0].tokenized.choices:
            turn = SharedTurn([case.turn for case in batch])
            return self._answerer.choose(state, [case.tokenized for case in batch], turn)
        (case,) = batch
        draft = self._answerer.draft(state, case.tokenized, self._memory.draft(case.tokenized))
        # The credit of a wrong draft must leave that of the next picture: a warm answer saves more than a draft.
        risk = Work(0, len(draft), 0, self._vlm.meter.read.ms(len(draft)))
        risk += self._refresher.prices.frame(state, self._refresher.newest.cells)
        if case.escalated or not state.exact:
            risk += self._patch_risk(batch, config)
        if draft and not self._account.covers_draft(risk):
            draft = []
        case.computed += len(draft)
        return [self._answerer.answer(state, case.tokenized, case.turn, draft)]

    def _may_patch(self, cases: Sequence[Case], config: Config) -> bool:
        """Whether a patched state may answer these questions: only when the credit pays for second answers."""
        is_trusted = all(_least(case, config) < 1 for case in cases) and self._auditor.allows_patches(config)
        return is_trusted and self._account.covers_patch(self._patch_risk(cases, config))

    def _patch_risk(self, cases: Sequence[Case], config: Config) -> Work:
        """What patched answers cost in vain if all of them are unsure that may be."""
        cases = [case for case in cases if _least(case, config) > 0]
        if not cases:
            return Work()
        cells = self._refresher.newest.cells
        patch = self._refresher.prices.patch(self._refresher.state, cells, int(config.max_patch_share * cells))
        return sum((self._answerer.expected(case.tokenized) for case in cases), patch)

    def _batches(self, state: State, cases: Sequence[Case]) -> Iterator[list[Case]]:
        """The questions that go through the model together: those with choices, as many as one pass takes.

        A question that is in the batch already comes in the next one, where its answer is remembered.
        """
        batch: list[Case] = []
        for case in cases:
            together = [*batch, case]
            tokens = sum(each.tokenized.cost for each in together)
            are_choices = all(each.tokenized.choices for each in together)
            is_new = all(each.tokenized.key != case.tokenized.key for each in batch)
            if batch and not (is_new and are_choices and tokens <= MOST_TOKENS and state.can_branch):
                yield batch
                together = [case]
            batch = together
        if batch:
            yield batch

    def _answer(self, case: Case, state: State) -> Answer:
        """The answer with its source and its cost."""
        paid = min(state.tokens, case.refreshed_tokens)
        return Answer(
            Status.OK,
            tokens_reused=state.tokens - paid,
            tokens_prefilled=paid + case.computed,
            tokens_generated=0 if case.is_remembered else len(case.outcome.token_ids),
            cached_stamp_ns=state.live.frame.stamp_ns,
            level=case.level,
            exact=state.exact,
            escalated=case.escalated,
            remembered=case.is_remembered,
            **vars(case.outcome),
            **self._source(case),
            **case.turn.stages,
        )

    def _source(self, case: Case) -> dict[str, Any]:
        """The camera, model and frame of an answer, by the names of `Answer`'s fields."""
        look = self._refresher.newest
        shown = freshness.source(look, case.now_ns) if look else {}
        return {'camera': self._camera, 'model': self._vlm.name, **shown}

    @contextmanager
    def _ending(self, cases: Sequence[Case], failures: bool = True) -> Iterator[None]:
        """End the open ones of these questions with the error that is raised inside, or with their own one.

        failures: whether a failure of the model ends them, too; else it is raised.
        """
        try:
            yield
        except InvalidRequestError as error:
            status, message = Status.INVALID_REQUEST, str(error)
        except Halt as halt:
            status, message = halt.status, str(halt)
        except Exception as error:
            if not failures:
                raise
            self._refresher.drop_state()
            status, message = Status.MODEL_ERROR, f'The model failed: {type(error).__name__}: {error}'
            _log.exception("Camera '%s': the model failed, so its state will be computed again.", self._camera)
        else:
            status, message = Status.OK, ''
        for case in _open(cases):
            own = case.turn.halt
            if own is not None or status is not Status.OK:
                ending, why = own or (status, message)
                case.end(Answer(ending, why, **self._source(case), **case.turn.stages))

    def _cold_twin(self, case: Case) -> State:
        """Compute the kept state's frames from nothing, on a separate cache."""
        case.turn.report('refresh')
        kept, started_s = self._refresher.state, time.perf_counter()
        check = case.turn.check
        frames = [EncodedFrame.see(self._vlm, encoded.frame, check) for encoded in kept.frames]
        case.turn.book('refresh_ms', 1e3 * (time.perf_counter() - started_s))
        return twin(build(self._vlm, kept.template_for, frames, check, later=True), kept.identity)


def _least(case: Case, config: Config) -> float:
    """The probability that a patched state's answer must have; 1: a patched state does not answer this question."""
    return case.tokenized.question.least_confidence(config)


def _open(cases: Sequence[Case]) -> list[Case]:
    """The questions without an answer."""
    return [case for case in cases if case.answer is None]
