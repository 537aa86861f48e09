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

"""Simulates a live node on given times: which pictures it would drop, and when its answers would come.

The rules are those of `serving/`. Of each camera only the newest picture waits, for its conversion on the executor's
thread and for the looks' thread. A question waits for those before it, for the stage of upkeep that is running, and for
a look at its camera that is running. Then it looks at the picture that waits. Upkeep is done while no question waits.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

# Stages of a refresh: vision and prefill. A question that comes waits for the end of the one that is running.
UPKEEP_STAGES = 2


@dataclass(frozen=True)
class LivePicture:
    """A picture that comes at a time, and what it costs. All times are seconds.

    upkeep_s: of the model, in idle time after the picture.
    """

    at_s: float
    look_s: float
    camera: str = ''
    convert_s: float = 0.0
    upkeep_s: float = 0.0


@dataclass(frozen=True)
class LiveQuestion:
    """A question that comes at a time. answer_s: from its turn to its answer, seconds."""

    at_s: float
    answer_s: float
    camera: str = ''


@dataclass(frozen=True)
class LiveRun:
    """What a live node would have done. answers_s: from each question to its answer, in the order of the answers."""

    pictures: int
    dropped: int
    answers_s: tuple[float, ...]


def simulate(pictures: Iterable[LivePicture], questions: Iterable[LiveQuestion]) -> LiveRun:
    """Return what a node with these pictures and questions does until the last of them is done."""
    node = _LiveNode()
    received = 0
    for received, picture in enumerate(pictures, 1):
        node.at(picture.at_s, node.receive, picture)
    for question in questions:
        node.at(question.at_s, node.ask, question)
    node.run()
    return LiveRun(received, node.dropped, tuple(node.answers_s))


class _LiveNode:
    """Three threads: the executor's, that of the looks, and the model's."""

    def __init__(self) -> None:
        self.dropped = 0
        self.answers_s: list[float] = []
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = count()
        # By camera; the one that has waited longest comes first.
        self._to_convert: dict[str, LivePicture] = {}
        self._to_look: dict[str, LivePicture] = {}
        self._stages: dict[str, list[float]] = {}  # of upkeep, seconds
        self._questions: deque[LiveQuestion] = deque()
        self._converts = self._model_is_busy = False
        self._looked_at: str | None = None  # by the looks' thread
        self._held: str | None = None  # by the model's thread

    def at(self, time_s: float, act: Callable[[Any], None], what: Any) -> None:
        """Let something happen at a time."""
        heappush(self._events, (time_s, next(self._order), act, what))

    def run(self) -> None:
        """Let everything happen."""
        while self._events:
            self._now_s, _, act, what = heappop(self._events)
            act(what)
            self._convert()
            self._serve()
            self._look()

    def receive(self, picture: LivePicture) -> None:
        """Take a picture."""
        self._put(self._to_convert, picture)

    def ask(self, question: LiveQuestion) -> None:
        """Take a question."""
        self._questions.append(question)

    def _put(self, waiting: dict[str, LivePicture], picture: LivePicture) -> None:
        self.dropped += picture.camera in waiting
        waiting[picture.camera] = picture

    def _after(self, seconds: float, act: Callable[[Any], None], what: Any) -> None:
        self.at(self._now_s + seconds, act, what)

    def _convert(self) -> None:
        if self._to_convert and not self._converts:
            self._converts = True
            picture = self._to_convert.pop(next(iter(self._to_convert)))
            self._after(picture.convert_s, self._converted, picture)

    def _converted(self, picture: LivePicture) -> None:
        self._converts = False
        self._put(self._to_look, picture)

    def _look(self) -> None:
        camera = next((camera for camera in self._to_look if camera != self._held), None)
        if camera is not None and self._looked_at is None:
            self._looked_at, picture = camera, self._to_look.pop(camera)
            self._after(picture.look_s, self._looked, picture)

    def _looked(self, picture: LivePicture) -> None:
        self._looked_at = None
        self._plan_upkeep(picture)

    def _plan_upkeep(self, picture: LivePicture) -> None:
        """Upkeep of the camera's older picture is not needed any more."""
        if picture.upkeep_s:
            self._stages[picture.camera] = [picture.upkeep_s / UPKEEP_STAGES] * UPKEEP_STAGES

    def _serve(self) -> None:
        """Give the model's thread its next work: a question, else a stage of upkeep."""
        if self._model_is_busy:
            return
        if self._questions:
            if self._questions[0].camera != self._looked_at:
                self._answer(self._questions.popleft())
        elif self._stages:
            camera = next(iter(self._stages))
            stages = self._stages.pop(camera)
            self._model_is_busy = True
            self._after(stages.pop(), self._kept_up, None)
            if stages:
                self._stages[camera] = stages

    def _answer(self, question: LiveQuestion) -> None:
        self._model_is_busy = True
        look_s = 0.0
        if picture := self._to_look.pop(question.camera, None):
            self._held, look_s = question.camera, picture.look_s
            self._after(look_s, self._let_go, None)
            self._stages.pop(question.camera, None)  # the answer computes what it needs
        self._after(look_s + question.answer_s, self._answered, question)

    def _let_go(self, _: None) -> None:
        self._held = None

    def _answered(self, question: LiveQuestion) -> None:
        self._model_is_busy = False
        self.answers_s.append(self._now_s - question.at_s)

    def _kept_up(self, _: None) -> None:
        self._model_is_busy = False
