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

"""One camera on its way through a replay: its arms, and what interrupted its pictures."""

from dataclasses import dataclass, field

from vlm_reuse_node.replay.arms import POLICY
from vlm_reuse_node.replay.runners.kept_state import Policy
from vlm_reuse_node.replay.runners.runner import ArmContext, Runner
from vlm_reuse_node.replay.samples import Samples
from vlm_reuse_node.replay.schedule import Schedule
from vlm_reuse_node.replay.video import Video
from vlm_reuse_node.session.embedded_model import MEANS_NOTHING
from vlm_reuse_node.session.session_status import SessionStatus


@dataclass
class CameraRun:
    """One camera's arms.

    samples: pictures of a few questions. stills: how many were kept of each arm's drifted answers.
    last_s: time of the newest picture. has_rested: whether the arms have used the idle time after it.
    restarts: how often time went back. is_foreign: whether the embedded model saw pictures that are no generated
    tabletops. gaps: times without a picture that are longer than an answer's picture may be
    old; longest_gap_s: the longest of them.
    """

    context: ArmContext
    schedule: Schedule
    video: Video
    runners: dict[str, Runner]
    samples: Samples
    stills: dict[str, int] = field(default_factory=dict)
    last_s: float | None = None
    has_rested: bool = False
    restarts: int = 0
    is_foreign: bool = False
    gaps: int = 0
    longest_gap_s: float = 0.0

    def begin(self, at_s: float, restarts: int, max_age_s: float) -> None:
        """Begin with a picture: count the gap before it, and forget all others where time went back."""
        gap_s = at_s - self.last_s if self.last_s is not None else 0.0
        if gap_s > max_age_s:
            self.gaps += 1
            self.longest_gap_s = max(self.longest_gap_s, round(gap_s, 6))
        if restarts > self.restarts:
            self.restarts = restarts
            self.context.window.forget()
            for runner in self.runners.values():
                runner.forget()
        self.last_s, self.has_rested = at_s, False

    @property
    def policy(self) -> SessionStatus:
        """The status of auto: what refresh_policy came to, and why."""
        runner = self.runners[POLICY]
        return runner.session.status if isinstance(runner, Policy) else SessionStatus()

    def row(self) -> dict:
        """What a bag's row says of the camera, beside what the bag itself knows."""
        status = self.policy
        return {
            'refresh_policy': status.policy,
            'policy_reason': status.policy_reason,
            'gaps': self.gaps,
            'longest_gap_s': self.longest_gap_s,
            'questions_skipped': self.schedule.skipped,
        }

    def notes(self, max_age_s: float) -> list[str]:
        """Say what interrupted the pictures, and whether the model can know them."""
        foreign = [f"'{self.context.camera}': {MEANS_NOTHING}"] if self.is_foreign else []
        if not self.gaps and not self.schedule.skipped:
            return foreign
        return [
            *foreign,
            f"Gaps of more than {max_age_s:g} s (max_age_s) in the pictures of '{self.context.camera}': {self.gaps}, "
            f'the longest of {self.longest_gap_s:,.1f} s. {self.schedule.skipped:,} questions were due when the newest '
            'picture was older than that; they were not asked, as the node answers STALE then.',
        ]
