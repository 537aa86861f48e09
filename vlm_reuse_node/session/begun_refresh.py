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

"""The record of a refresh between its two stages: the frame is encoded, and is not prefilled yet."""

from dataclasses import dataclass

from vlm_reuse_node.scene.lookout import Look
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.scene.refresh_plan import RefreshPlan
from vlm_reuse_node.session.encoded_frame import EncodedFrame


@dataclass(frozen=True, eq=False)
class BegunRefresh:
    """A refresh to the frame of `look` whose first stage is done. reason: for people. vision_ms: of that stage."""

    look: Look
    plan: RefreshPlan
    reason: str
    encoded: EncodedFrame
    vision_ms: float

    def serves(self, newest: Look, may_patch: bool, force: bool) -> bool:
        """Whether it is the refresh that is needed now. Arguments as for `Refresher.refresh`."""
        is_whole = self.plan.level in (Level.FRAME, Level.FULL)
        return self.look.frame is newest.frame and (is_whole or (may_patch and not force))
