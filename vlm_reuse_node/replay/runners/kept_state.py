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

"""Runners that answer from a state they keep: the engine's policies, the eager way, and reuse alone."""

from collections.abc import Callable

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.replay.arm_answer import ArmAnswer
from vlm_reuse_node.replay.runners.runner import ArmContext, ReplaySession, timed, visual_tokens_of
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session.question import Question


class Policy:
    """The engine as the node runs it: it looks at every picture, computes for questions, and does upkeep in between.

    Its clock is the recording's time, and its credit is counted in tokens alone: it does the same in every replay.
    """

    def __init__(self, context: ArmContext, config: Config | None = None) -> None:
        """Start without a picture. config: None takes the context's."""
        self._noted: list[Refresh] = []
        self._now_ns = 0
        self.session = ReplaySession(
            context.vlm,
            config or context.config,
            context.camera,
            on_refresh=lambda _, refresh: self._noted.append(refresh),
            clock=lambda: self._now_ns / 1e9,
            measures_time=False,
        )

    def see(self, frame: Frame) -> list[Refresh]:
        """Look at the picture; compute nothing."""
        self._now_ns = frame.stamp_ns
        return self._note(lambda: self.session.look(frame))

    def rest(self) -> list[Refresh]:
        """Do upkeep, as far as the credit pays for it."""
        return self._note(self.session.keep_up)

    def forget(self) -> None:
        """Forget the picture and the state, as the node does."""
        self.session.reset()

    def ask(self, question: Question, now_ns: int) -> ArmAnswer:
        """Answer; refresh the kept state first if the question needs that."""
        self._now_ns = now_ns
        self._noted.clear()
        ms, answer = timed(lambda: self.session.ask(question, now_ns=now_ns))
        return ArmAnswer(
            answer,
            self.session.frames,
            tuple(self._noted),
            visual_tokens_of(self._noted),
            answer.tokens_reused,
            answer.tokens_prefilled,
            ms,
        )

    def _note(self, call: Callable[[], object]) -> list[Refresh]:
        """Call. Returns the looks and refreshes that the session did meanwhile."""
        self._noted.clear()
        call()
        return list(self._noted)


class Eager(Policy):
    """Every changed picture is computed at once, asked or not, and all upkeep is done at once."""

    def see(self, frame: Frame) -> list[Refresh]:
        """Compute the picture if it has changed."""
        self._now_ns = frame.stamp_ns
        return self._note(lambda: self._keep_up_with(frame))

    def rest(self) -> list[Refresh]:
        """Do nothing: everything is done."""
        return []

    def _keep_up_with(self, frame: Frame) -> None:
        self.session.observe(frame)
        while self.session.work() == 0:
            pass


class StaleReuse(Policy):
    """Reuse alone: one state for everything until it is `max_cell_age_s` old, whatever changes meanwhile."""

    def see(self, frame: Frame) -> list[Refresh]:
        """Compute a picture only when the state is too old; the others are not even looked at."""
        newest = self.session.newest
        if newest is not None:
            age_s = (frame.stamp_ns - newest.stamp_ns) / 1e9
            if age_s < self.session.config.max_cell_age_s:
                return [self._without_look(frame, age_s)]
        return self._note(lambda: self.session.observe(frame, force=True))

    def rest(self) -> list[Refresh]:
        """Do nothing."""
        return []

    def _without_look(self, frame: Frame, age_s: float) -> Refresh:
        nothing = np.zeros(self.session.grid, bool)
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
