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

"""One way to keep the state, at work on one camera: patched without limits, within limits, or exact; and cold-dense."""

from collections.abc import Sequence
from itertools import count

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.runners.runner import ReplaySession
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.case import Case
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.turn import Turn

_numbers = count()  # of states


class Arm:
    """A session that begins anew with every stretch of a recording. It looks at every picture.

    state: its number, another one in every arm. patches: since the state was last whole; largest_share: of the cells
    of a picture, the most that one of them computed. paid_share: of the cells, computed for the last questions.
    last: the last answer to each question.
    work_ms, cold_ms: the model's work, and that of cold-dense for the same questions, of all stretches that have ended.
    """

    def __init__(self, vlm: Vlm, config: Config, does_upkeep: bool = False) -> None:
        """Start without a picture. does_upkeep: whether it works between questions, as the node does."""
        self._vlm, self._config, self._does_upkeep = vlm, config, does_upkeep
        self._session: ReplaySession | None = None
        self._now_ns = 0
        self.last: dict[Question, Answer] = {}
        self.state, self.patches, self.largest_share, self.paid_share = next(_numbers), 0, 0.0, 0.0
        self.work_ms, self.cold_ms = 0.0, 0.0

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The pictures in the prompt, oldest first."""
        return self._session.frames if self._session else ()

    def see(self, frame: Frame, is_first: bool) -> bool:
        """Look at a picture. is_first: of a stretch. Returns whether the model can take it."""
        if is_first or self._session is None:
            self.end()
            self._session = ReplaySession(
                self._vlm,
                self._config,
                frame.camera,
                on_refresh=self._note,
                clock=lambda: self._now_ns / 1e9,
                measures_time=False,
            )
        elif self._does_upkeep:
            self._session.keep_up()  # in the time before this picture
        self._now_ns = frame.stamp_ns
        try:
            self._session.look(frame)
        except ImageError:
            return False
        return True

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Ask some questions about the newest picture."""
        self.paid_share = 0.0
        cases = [Case(question, self._now_ns, Turn()) for question in questions]
        self._session.ask_together(cases)
        answers = [case.answer for case in cases]
        self.last |= zip(questions, answers, strict=True)
        return answers

    def end(self) -> tuple[float, float]:
        """End a stretch. Returns the model's work and that of cold-dense so far, milliseconds."""
        if self._session is not None:
            totals = self._session.status.totals
            self.work_ms += totals.work_ms
            self.cold_ms += totals.cold_ms
        self._session = None
        self.patches, self.largest_share = 0, 0.0
        return self.work_ms, self.cold_ms

    def _note(self, _: Frame, refresh: Refresh) -> None:
        share = refresh.visual_tokens_refreshed / refresh.visual_tokens_total
        self.paid_share += share
        if share:
            self.state = next(_numbers)
        if refresh.level is Level.PATCH:
            self.patches += 1
            encoded_share = refresh.visual_tokens_encoded / refresh.visual_tokens_total
            self.largest_share = max(self.largest_share, encoded_share)
        elif share:
            self.patches, self.largest_share = 0, 0.0


class Reference:
    """Cold-dense answers: every picture of the prompt and every question is computed from nothing."""

    def __init__(self, vlm: Vlm, config: Config) -> None:
        """Start without a picture. config: with refresh_policy exact."""
        self._session = ReplaySession(vlm, config.with_values(keyframe_interval_s=0.0))
        self._frames: tuple[Frame, ...] = ()
        self._answers: dict[Question, Answer] = {}

    def ask(self, frames: Sequence[Frame], questions: Sequence[Question]) -> list[Answer]:
        """Answer about these pictures, oldest first. What was asked about the same ones before is remembered."""
        frames = tuple(frames)
        # By identity: pictures of other cameras and recordings may have the same stamps.
        if tuple(map(id, frames)) != tuple(map(id, self._frames)):
            self._frames, self._answers = frames, {}
        missing = [question for question in questions if question not in self._answers]
        if missing:
            self._session.reset()
            self._session.config = self._session.config.with_values(history_frames=len(frames) - 1)
            for frame in frames:
                self._session.observe(frame, force=True)
            cases = [Case(question, frames[-1].stamp_ns, Turn()) for question in missing]
            self._session.ask_together(cases)
            self._answers |= {case.question: case.answer for case in cases}
        return [self._answers[question] for question in questions]
