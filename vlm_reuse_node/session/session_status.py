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

"""The record of what a session holds and has done."""

from dataclasses import dataclass

from vlm_reuse_node.scene.refresh import Totals
from vlm_reuse_node.session.drift_audit import AuditCounts


@dataclass(frozen=True)
class SessionStatus:
    """What one camera's session holds and has done.

    frames: number of frames in the state, with the live frame. held_bytes: for them and for an audit.
    audits: counts of the drift audit.
    policy: the refresh_policy that is used, exact or patch. policy_reason: why, in one sentence.
    is_calibration_refused: whether there is a calibration that may not be used.
    """

    frames: int = 0
    held_bytes: int = 0
    audits: AuditCounts = AuditCounts()
    totals: Totals = Totals()
    policy: str = ''
    policy_reason: str = ''
    is_calibration_refused: bool = False
