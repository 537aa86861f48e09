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

"""What every arm's runner is given, and what it can do."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.arm_answer import ArmAnswer
from vlm_reuse_node.replay.window import Window
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

T = TypeVar('T')


@dataclass(frozen=True)
class ArmContext:
    """What the runners of one camera share. config: with the replay's own limits, see `replay_config`."""

    vlm: Vlm
    config: Config
    camera: str
    window: Window


class Runner(Protocol):
    """One arm at work on one camera. It belongs to the thread that loaded the model."""

    def see(self, frame: Frame) -> list[Refresh]:
        """Take the next picture. Returns what the arm found and computed, if it does anything then."""
        ...

    def rest(self) -> list[Refresh]:
        """Use the idle time before the next picture or question. Returns what the arm computed."""
        ...

    def ask(self, question: Question, now_ns: int) -> ArmAnswer:
        """Answer now."""
        ...

    def forget(self) -> None:
        """Forget all pictures, because the camera's time went back."""
        ...


class WaitsForQuestions:
    """The part of a runner that does nothing before a question, and keeps nothing of its own."""

    def see(self, frame: Frame) -> list[Refresh]:
        """Do nothing."""
        return []

    def rest(self) -> list[Refresh]:
        """Do nothing."""
        return []

    def forget(self) -> None:
        """Do nothing: the window of pictures is the context's."""


class ReplaySession(SceneSession):
    """A session that shows which pictures it keeps, and does a replay's share of upkeep."""

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The pictures in the prompt, oldest first."""
        state = self._refresher.state
        return tuple(encoded.frame for encoded in state.frames) if state else ()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the cells of the newest picture."""
        rows, columns = self._refresher.newest.stale.shape
        return rows, columns

    def keep_up(self) -> None:
        """Do at most one refresh, with both of its stages, or one other stage of upkeep.

        A replay does not measure how much idle time there is, so that it does the same every time.
        """
        self.work()
        if self._refresher.is_between_stages:
            self.work()


def replay_config(config: Config) -> Config:
    """Return a configuration that refuses nothing for its age or time and audits nothing: a replay measures these."""
    return config.with_values(max_age_s=86_400.0, timeout_s=3600.0, audit_share=0.0)


def visual_tokens_of(refreshes: Iterable[Refresh]) -> int:
    """Visual tokens that these refreshes computed."""
    return sum(refresh.visual_tokens_refreshed for refresh in refreshes)


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Call; return the milliseconds it took, and its result."""
    started = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - started), result
