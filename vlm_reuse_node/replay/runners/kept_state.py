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

"""Runners that answer from a state they keep: the engine's default policy, reuse alone, and refresh on demand."""

from dataclasses import replace

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.replay.arm_answer import ArmAnswer
from vlm_reuse_node.replay.runners.runner import ArmContext, ReplaySession, timed, visual_tokens_of
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.question import Question


class Policy:
    """The engine as the node runs it: it sees every picture, and answers from the kept state."""

    def __init__(self, context: ArmContext, config: Config | None = None) -> None:
        """Start without a picture. config: None takes the context's."""
        self._paid: list[Refresh] = []
        self.session = ReplaySession(
            context.vlm,
            config or context.config,
            context.camera,
            on_refresh=lambda _, refresh: self._paid.append(refresh),
        )

    def see(self, frame: Frame) -> list[Refresh]:
        """Observe the picture, and do at once the rollovers that a node does while nobody asks."""
        self._paid.clear()
        self.session.observe(frame)
        while self.session.work() == 0:
            pass
        return list(self._paid)

    def ask(self, question: Question, now_ns: int) -> ArmAnswer:
        """Answer from the kept state."""
        self._paid.clear()
        ms, answer = timed(lambda: self.session.ask(question, now_ns=now_ns))
        return self._with_costs(answer, ms)

    def _with_costs(self, answer: Answer, ms: float) -> ArmAnswer:
        return ArmAnswer(
            answer,
            self.session.frames,
            tuple(self._paid),
            visual_tokens_of(self._paid),
            answer.tokens_reused,
            answer.tokens_prefilled,
            ms,
        )


class StaleReuse(Policy):
    """Reuse alone: one state for everything until it is `max_cell_age_s` old, whatever changes meanwhile."""

    def see(self, frame: Frame) -> list[Refresh]:
        """Observe a picture only when the state is too old; the others are not even looked at."""
        newest = self.session.newest
        if newest is not None:
            age_s = (frame.stamp_ns - newest.stamp_ns) / 1e9
            if age_s < self.session.config.max_cell_age_s:
                return [self._without_look(frame, age_s)]
        self._paid.clear()
        self.session.observe(frame, force=newest is not None)
        return list(self._paid)

    def ask(self, question: Question, now_ns: int) -> ArmAnswer:
        """Answer from the kept state; no question pays for its refresh."""
        ms, answer = timed(lambda: self.session.ask(question, now_ns=now_ns))
        return ArmAnswer(answer, self.session.frames, (), 0, answer.tokens_reused, answer.tokens_prefilled, ms)

    def _without_look(self, frame: Frame, age_s: float) -> Refresh:
        nothing = np.zeros(self._paid[0].refreshed.shape, bool)
        return Refresh(
            frame.camera,
            frame.stamp_ns,
            frame.frame_id,
            Level.REUSE,
            'not looked at',
            refreshed=nothing,
            stale=nothing,
            changed=nothing,
            oldest_cell_age_s=age_s,
        )


class OnDemand(Policy):
    """No picture is looked at before a question needs it; the question pays for the newest one's slot."""

    def __init__(self, context: ArmContext) -> None:
        """Start without a picture."""
        super().__init__(context)
        self._window = context.window

    def see(self, frame: Frame) -> list[Refresh]:
        """Do nothing before a question."""
        return []

    def ask(self, question: Question, now_ns: int) -> ArmAnswer:
        """Refresh, then answer."""
        self._paid.clear()
        question = replace(question, force_refresh=True)
        ms, answer = timed(
            lambda: self.session.ask(question, now_ns=now_ns, newest=lambda: self._window.newest),
        )
        return self._with_costs(answer, ms)
