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

"""Plays pictures and questions to one session in simulated time, and answers every question cold-dense too.

The session is the real one. Only time is simulated: it goes on by the processor time of what the session does, so the
machine's other programs do not disturb it. Pictures are looked at beside the model, as the node's own thread does.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import median

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answerer import Answerer, TokenizedQuestion
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import build
from vlm_reuse_node.session.turn import Halt, Turn

SECOND_NS = 1_000_000_000
BURST, BURST_GAP_S = 4, 0.3  # follow-up questions of a burst, and the time between them
MOST_COLD = 16  # cold-dense answers of a stream, spread evenly; the work of the others follows from their tokens


def question_times(pattern: str, rate: float, seconds: float, rng: np.random.Generator) -> list[float]:
    """When questions are asked, `rate` a second on average. pattern: steady, poisson or burst."""
    if pattern == 'steady':
        first = rng.uniform(0, 1 / rate)
        return [at + rng.normal(0, 0.05 / rate) for at in np.arange(first, seconds, 1 / rate)]
    times, at = [], 0.0
    per_event = BURST if pattern == 'burst' else 1
    while (at := at + rng.exponential(per_event / rate)) < seconds:
        times += [at + number * BURST_GAP_S for number in range(per_event)]
    return sorted(each for each in times if each < seconds)


@dataclass
class Tally:
    """What a stream cost, and how its questions were answered. Times are milliseconds of the processor.

    work: the model's, of the policy. cold: of the questions that were answered cold-dense too. cold_tokens: tokens that
    cold-dense takes for all questions. latencies_ms, cold_latencies_ms: of each answer. lags_s: of each answer.
    drifted: answers that differ from cold-dense. remembered: answers that needed no model. change_ms: of the looks.
    """

    work: Work = Work()
    cold: Work = Work()
    cold_tokens: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    cold_latencies_ms: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    drifted: int = 0
    remembered: int = 0
    change_ms: float = 0.0
    looks: int = 0

    @property
    def cold_ms(self) -> float:
        """Time of cold-dense for all questions, from the time per token of those that were answered."""
        return self.cold.ms * self.cold_tokens / self.cold.tokens

    @property
    def warm_share(self) -> float:
        """Share of the answers within half of cold-dense's median latency."""
        most_ms = median(self.cold_latencies_ms) / 2
        return sum(latency_ms <= most_ms for latency_ms in self.latencies_ms) / len(self.latencies_ms)


class Stream:
    """One camera, its planners, and one model."""

    def __init__(
        self, vlm: Vlm, config: Config, is_eager: bool = False, ms_of: Callable[[Work], float] | None = None
    ) -> None:
        """Start at time 0. is_eager: compute every changed picture at once.

        ms_of: the time that work takes; None measures processor time. A test counts tokens: the same in every run.
        """
        self._vlm, self._is_eager, self._ms_of = vlm, is_eager, ms_of
        self._now_s = 0.0
        config = config.with_values(max_age_s=86_400.0, timeout_s=3600.0)
        self.session = SceneSession(vlm, config, clock=lambda: self._now_s, measures_time=ms_of is None)
        self._template_for = cache(lambda frames: vlm.template(config.system_prompt, frames))
        self._answerer = Answerer(vlm, self._template_for(1))
        self.tally = Tally()

    def play(self, frames: Sequence[tuple[float, Frame]], questions: Sequence[tuple[float, Question]]) -> Tally:
        """Play pictures and questions, each with its time in seconds, ascending."""
        coming = iter(frames)
        self._coming, self._next_frame = coming, next(coming, None)
        every = -(-len(questions) // MOST_COLD)
        for number, (at_s, question) in enumerate(questions):
            self._idle(at_s)
            self._now_s = max(self._now_s, at_s)
            self._look()
            self._ask(at_s, question, is_compared=number % every == 0)
        return self.tally

    def _idle(self, until_s: float) -> None:
        """Do what the model does while nobody asks."""

        def check() -> None:
            if started_s is not None and self._now_s + time.process_time() - started_s >= until_s:
                raise Halt(Status.BUSY, 'A question waits.')

        while self._now_s < until_s:
            self._look()
            started_s = time.process_time() if self._ms_of is None else None
            before = self._vlm.meter.done
            wait_s = self._eager_step() if self._is_eager else self.session.work(check)
            spent = self._vlm.meter.done - before
            self.tally.work += spent
            if wait_s == 0:
                self._pass(started_s, spent)
            else:
                next_s = self._next_frame[0] if self._next_frame else until_s
                self._now_s = min(until_s, next_s, self._now_s + wait_s if wait_s else until_s)

    def _eager_step(self) -> float | None:
        look = self.session._refresher.newest
        if look is None or look.is_current:
            return None
        config = self.session.config
        may_patch = self.session._auditor.allows_patches(config)
        self.session._refresher.refresh(config, may_patch=may_patch)
        return 0.0

    def _look(self) -> None:
        """Look at the pictures that were taken until now. Of several that waited, the newest is looked at."""
        newest = None
        while self._next_frame and self._next_frame[0] <= self._now_s:
            if newest is not None:  # a look takes less time than there is between two pictures
                self._look_at(newest)
            newest = self._next_frame
            self._next_frame = next(self._coming, None)
        if newest is not None:
            self._look_at(newest)

    def _look_at(self, coming: tuple[float, Frame]) -> None:
        at_s, frame = coming
        started_s = time.process_time()
        self.session.look(replace(frame, stamp_ns=round(at_s * SECOND_NS), received_ns=0))
        self.tally.change_ms += 1e3 * (time.process_time() - started_s)
        self.tally.looks += 1

    def _ask(self, at_s: float, question: Question, is_compared: bool) -> None:
        if self.session.newest is None:
            return
        before, started_s = self._vlm.meter.done, time.process_time() if self._ms_of is None else None
        # An eager state answers as it is: nothing is newer than what it has seen.
        asked = replace(question, max_lag_s=3600.0) if self._is_eager and self.session.status.frames else question
        answer = self.session.ask(asked, now_ns=round(at_s * SECOND_NS), turn=Turn())
        assert answer.status == Status.OK, answer.message
        spent = self._vlm.meter.done - before
        self.tally.work += spent
        self._pass(started_s, spent)
        self.tally.latencies_ms.append(1e3 * (self._now_s - at_s))
        self.tally.lags_s.append(answer.lag_s)
        tokenized = self._answerer.tokenize(question, self.session.config)
        refresher = self.session._refresher
        self.tally.cold_tokens += refresher.prices.cold(refresher.state).tokens + tokenized.cost
        self.tally.cold_tokens += max(0, len(answer.token_ids) - 1)
        self.tally.remembered += answer.remembered
        if is_compared:
            self._ask_cold(tokenized, answer)

    def _ask_cold(self, tokenized: TokenizedQuestion, answer: Answer) -> None:
        """Answer cold-dense: on the session's keyframes, and on the newest picture behind them."""
        kept = self.session._refresher.state.frames
        frames = [*(encoded.frame for encoded in kept[:-1]), self.session.newest]
        before, started_s = self._vlm.meter.done, time.process_time()
        state = build(self._vlm, self._template_for, [EncodedFrame.see(self._vlm, frame) for frame in frames])
        outcome = self._answerer.answer(state, tokenized, Turn())
        spent = self._vlm.meter.done - before
        self.tally.cold += spent
        ms = 1e3 * (time.process_time() - started_s) if self._ms_of is None else self._ms_of(spent)
        self.tally.cold_latencies_ms.append(ms)
        self.tally.drifted += (outcome.choice_index, outcome.token_ids) != (answer.choice_index, answer.token_ids)

    def _pass(self, started_s: float | None, spent: Work) -> None:
        """Let time go on by what was done."""
        self._now_s += time.process_time() - started_s if started_s is not None else self._ms_of(spent) / 1e3


def timed_frames(frames: Sequence[Frame], rate_hz: float) -> Iterator[tuple[float, Frame]]:
    """The pictures of a recording with their times, thinned out to at most `rate_hz`."""
    first_ns, next_s = frames[0].stamp_ns, 0.0
    for frame in frames:
        at_s = (frame.stamp_ns - first_ns) / SECOND_NS
        if at_s >= next_s - 1e-6:
            yield at_s, frame
            next_s += 1 / rate_hz
