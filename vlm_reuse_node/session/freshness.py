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

"""How old is what the state shows, and whether it is new enough for a question.

In all functions, look is the one at the newest frame, and now_ns the time of the question on the clock of the frames'
stamps.
"""

from typing import Any

from vlm_reuse_node.scene.lookout import Look
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.turn import Halt


def check(look: Look | None, camera: str, question: Question, now_ns: int) -> None:
    """Refuse the question (Halt) when there is no picture, or none that is new enough."""
    if look is None:
        raise Halt(Status.NO_IMAGE, f"Camera '{camera}' has sent no picture since the start or the last reset.")
    age_s = look.frame.age_s(now_ns)
    if age_s > question.max_age_s:
        raise Halt(
            Status.STALE,
            f"The newest picture of camera '{camera}' is {age_s:.2f} s old, more "
            f'than max_age {question.max_age_s:g} s; check the camera or raise max_age.',
        )


def is_enough(look: Look, question: Question, now_ns: int) -> bool:
    """Whether the state is new enough: no stale cell that matters to this question."""
    if look.change is None or image_age_s(look, now_ns) > question.max_age_s:
        return False
    return look.agreed(now_ns) or (look.lag_s > 0 and lag_s(look, now_ns) <= question.max_lag_s)


def lag_s(look: Look, now_ns: int) -> float:
    """Seconds that the state's cells had been known to differ from the newest frame when the question was asked.

    A frame that was taken later does not count: a question that waited asks about what was there to be seen.
    """
    return 0.0 if look.agreed(now_ns) else max(0.0, look.lag_s + min(0.0, look.frame.since_s(now_ns)))


def image_age_s(look: Look, now_ns: int) -> float:
    """Age of what the state shows, when the question was asked: of the newest frame, plus the lag."""
    if look.agreed(now_ns):
        return look.current.age_s(now_ns)
    return look.frame.age_s(now_ns) + lag_s(look, now_ns)


def source(look: Look, now_ns: int) -> dict[str, Any]:
    """The frame of an answer, by the names of `Answer`'s fields."""
    shown = look.current or look.frame
    return {
        'stamp_ns': shown.stamp_ns,
        'frame_id': shown.frame_id,
        'image_age_s': image_age_s(look, now_ns),
        'lag_s': lag_s(look, now_ns),
    }
