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

"""What the diagnostics and the log say about a camera. The functions here only turn counts into texts."""

from collections.abc import Sequence

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus

from vlm_reuse_node.ros.camera_state import CameraState
from vlm_reuse_node.ros.diagnostics import ERROR, OK, WARN, status
from vlm_reuse_node.ros.middleware import remedy
from vlm_reuse_node.session.embedded_model import MEANS_NOTHING

FUTURE_S = 1.0
# Warn when more than this share of the pictures is lost, and more than a few.
MOST_LOST, FEW = 0.1, 2
# A thread that is busy for more than this share of the time takes pictures too late.
MOST_BUSY = 0.2


def camera_trouble(state: CameraState, max_age_s: float) -> tuple[bytes, str]:
    """Level and message of what keeps this camera from answering, with the remedy; (OK, '') when nothing does."""
    level, message = _picture_trouble(state, max_age_s)
    if state.clock:
        return max(level, WARN), f'{state.clock} {message}'.rstrip()
    return level, message


def _picture_trouble(state: CameraState, max_age_s: float) -> tuple[bytes, str]:
    if state.failure:
        return ERROR, f'{state.failure} Correct it, then remove and add the camera again (parameter cameras).'
    if state.incompatible_qos and state.silent_s is None:
        return ERROR, (
            f'A publisher on {state.topic} offers a {state.incompatible_qos} policy that the subscription '
            'does not accept; change the publisher or qos_overrides.'
        )
    if state.received == 0 and state.lost:
        return (
            ERROR,
            f'All {state.lost} pictures on {state.topic} were lost on their way ({state.way}). {remedy(state.way)}',
        )
    if state.received == 0 and state.hint:
        return WARN, state.hint
    if state.received == 0:
        return WARN, f"No picture yet on {state.topic}; compare the QoS with 'ros2 topic info -v {state.topic}'."
    if state.silent_s is None:
        return ERROR, f'All {state.received} pictures were refused. The last: {state.last_refusal}'
    if state.silent_s > max_age_s:
        level, why = _why_silent(state)
        return level, f'No usable picture for {state.silent_s:.1f} s on {state.topic}. {why}'
    return (OK, '') if state.clock else _clock_trouble(state, max_age_s)


def _why_silent(state: CameraState) -> tuple[bytes, str]:
    if state.refused_in_a_row:
        return ERROR, f'All {state.refused_in_a_row} since then were refused. The last: {state.last_refusal}'
    if state.publishers and state.lost_since:
        return ERROR, f'{state.lost_since} were lost on their way since then ({state.way}). {remedy(state.way)}'
    if state.publishers:
        return WARN, 'Its publisher exists but is silent or slow; check the camera driver, or raise max_age_s.'
    return ERROR, 'Its publisher is gone; start the camera again.'


def _clock_trouble(state: CameraState, max_age_s: float) -> tuple[bytes, str]:
    if state.arrival_age_s > max_age_s:
        return ERROR, (
            f'Pictures are {state.arrival_age_s:.1f} s old when they arrive. Synchronise the clocks; for a '
            'bag, play it with --clock and set use_sim_time.'
        )
    if state.arrival_age_s < -FUTURE_S:
        return WARN, (
            f'Pictures are stamped {-state.arrival_age_s:.1f} s in the future. Synchronise the clocks; with '
            'use_sim_time, check that /clock is published.'
        )
    return OK, ''


def camera_status(
    node: str, state: CameraState, earlier: Sequence[CameraState], seconds: float, max_age_s: float
) -> DiagnosticStatus:
    """Status of a camera. earlier: its last states, the oldest first; the newest is `seconds` old."""
    before = earlier[-1]
    received = state.received - before.received
    refused = state.refused_total - before.refused_total
    level, message = camera_trouble(state, max_age_s)
    if level == OK and (loss := _loss(state, earlier)):
        level, message = WARN, loss
    if level == OK and refused:
        level, message = WARN, f'{refused} of {received} pictures were refused. The last: {state.last_refusal}'
    if level == OK and (notices := standing_notices(state, earlier)):
        level, message = WARN, ' '.join(notices.values())
    values = {
        'topic': state.topic,
        'publishers': len(state.publishers),
        'transport': state.way or 'no publisher',
        'rate': f'{received / seconds:.1f} Hz',
        'image age': 'no image' if state.silent_s is None else f'{state.image_age_s:.2f} s',
        'pictures received': state.received,
        'pictures lost': state.lost,
        'pictures dropped': state.dropped,
        'pictures missed': state.missed,
        'pictures refused': state.refused_total,
        **{f'refused: {cause}': count for cause, count in sorted(state.refused.items())},
        'callback median': _milliseconds(state.callback_ms, 50),
        'callback p95': _milliseconds(state.callback_ms, 95),
    }
    return status(
        f'{node}: camera {state.name}',
        level,
        message or f'{received / seconds:.1f} pictures/s',
        values,
        hardware_id=state.name,
    )


def _loss(state: CameraState, earlier: Sequence[CameraState]) -> str:
    """Say that pictures get lost between the publisher and this node, where, and what to do; '' when few do."""
    received, lost, missed = (
        getattr(state, name) - getattr(earlier[0], name) for name in ('received', 'lost', 'missed')
    )
    was_idle = max(each.busy for each in (*earlier, state)) < MOST_BUSY
    if was_idle:  # else they may have arrived, and been replaced by newer ones
        lost = max(lost, missed)
    if lost <= max(FEW, MOST_LOST * received):
        return ''
    return (
        f'{lost} pictures were lost between {" and ".join(state.publishers) or "the publisher"} and this node while '
        f'{received} arrived ({state.way}). {remedy(state.way)}'
    )


def standing_notices(state: CameraState, earlier: Sequence[CameraState]) -> dict[str, str]:
    """What is wrong with a camera that does send pictures, by a key that stays the same.

    earlier: as for `camera_status`.
    """
    found = {}
    if len(state.publishers) > 1 and state.mixed > earlier[0].mixed:
        found['several publishers'] = (
            f'{len(state.publishers)} publishers send pictures on {state.topic} ({", ".join(state.publishers)}), and '
            f'those of several cameras mix; remap all but one.'
        )
    if state.is_foreign:
        found['foreign'] = f"Camera '{state.name}': {MEANS_NOTHING}"
    if state.stamps:
        found[state.stamps] = (
            f"Camera '{state.name}' {state.stamps}; the time of arrival is used instead. Correct the driver."
        )
    return found


def camera_notices(state: CameraState, earlier: Sequence[CameraState]) -> dict[str, str]:
    """What an operator should read in the log once, by a key that stays the same. earlier: as for `camera_status`."""
    found = standing_notices(state, earlier)
    if state.hint:
        found[state.hint] = f"Camera '{state.name}' has sent nothing. {state.hint}"
    if loss := _loss(state, earlier):
        found['lost'] = f"Camera '{state.name}': {loss}"
    return {f'{state.name}: {key}': text for key, text in found.items()}


def _milliseconds(times: tuple[float, ...], percentile: int) -> str:
    return f'{np.percentile(times, percentile):.2f} ms' if times else 'none yet'
