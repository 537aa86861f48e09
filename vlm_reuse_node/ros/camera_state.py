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

"""The record of one camera's counts and current state."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CameraState:
    """One camera's counts since the start, and its current state.

    failure: why the subscription failed; '' when it did not.
    hint: what the ROS graph says about a camera that has sent nothing; '' for nothing.
    publishers: full names of the nodes that publish the topic. way: on which their pictures come, such as 'Fast DDS,
    shared memory'.
    lost: pictures that the middleware began to receive and could not complete; lost_since: after the last usable one.
    missed: pictures that were sent and not received, by their numbers; most of those lost are among them.
    mixed: pictures of a publisher that came again after one of another.
    busy: share of the last second in which the node's thread was busy.
    silent_s: time since the last usable picture, steady clock; None before the first.
    arrival_age_s: age of that picture at its arrival, node clock. Negative: its stamp is in the future.
    incompatible_qos: the policy that a publisher offers and the subscription does not accept; '' for none.
    clock: what is wrong with simulated time. stamps: what is wrong with the newest picture's stamp, so that its
    arrival counts. '' for nothing.
    is_foreign: whether the embedded model looks at a picture that is no generated tabletop.
    callback_ms: duration of the newest image callbacks.
    """

    name: str
    topic: str
    failure: str = ''
    hint: str = ''
    publishers: tuple[str, ...] = ()
    way: str = ''
    received: int = 0
    lost: int = 0
    lost_since: int = 0
    missed: int = 0
    mixed: int = 0
    busy: float = 0.0
    dropped: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    refused_in_a_row: int = 0
    last_refusal: str = ''
    incompatible_qos: str = ''
    silent_s: float | None = None
    arrival_age_s: float = 0.0
    clock: str = ''
    stamps: str = ''
    is_foreign: bool = False
    callback_ms: tuple[float, ...] = ()

    @property
    def refused_total(self) -> int:
        """Number of refused pictures, for all causes."""
        return sum(self.refused.values())

    @property
    def image_age_s(self) -> float:
        """Current age of the newest usable picture."""
        return self.arrival_age_s + (self.silent_s or 0.0)
