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

"""Which refresh_policy a recording supports: the first lines of the report."""

import math
from collections import Counter

from vlm_reuse_node.replay.arms import POLICY
from vlm_reuse_node.replay.figures import factor, share_text
from vlm_reuse_node.session.drift_bounds import LEAST_GAIN, DriftCount
from vlm_reuse_node.session.embedded_model import MEANS_NOTHING

EXACT, PATCH = 'exact', 'patch'
CALIBRATE = 'ros2 run vlm_reuse_node calibrate'


def support_lines(results: dict) -> list[str]:
    """Say which policy the recording supports, and which one auto used and why."""
    return [_supported(results), *_used(results)]


def scene_lines(results: dict) -> list[str]:
    """Say whether the embedded model saw pictures that it cannot know."""
    return [MEANS_NOTHING] if any(MEANS_NOTHING in note for note in results['notes']) else []


def _supported(results: dict) -> str:
    counts, times = results['counts'], results['times']['arms']
    if not {EXACT, PATCH} <= counts.keys():
        return 'Which refresh_policy this recording supports was not measured: that takes both arms, exact and patch.'
    works = times[PATCH]['work_ratio'], times[EXACT]['work_ratio']
    if not counts[PATCH]['pairs'] or None in works:
        return 'Which refresh_policy this recording supports cannot be told: no question was answered.'
    drift = DriftCount(counts[PATCH]['patched_pairs'], counts[PATCH]['patched_drifted'])
    if not drift.answers:
        return 'This recording supports refresh_policy exact: no answer of the arm patch came from a patched state.'
    max_drift = results['settings']['config']['max_drift']
    found = (
        f'{drift.drifted} of {drift.answers} answers from patched states drifted (at most {share_text(drift.high)} '
        f'with 95 % confidence; max_drift is {share_text(max_drift)}), for {factor(works[0])} the work of cold-dense '
        f'against {factor(works[1])} with exact'
    )
    needed = drift.needed(max_drift)
    if works[0] > (1 - LEAST_GAIN) * works[1] or math.isinf(needed):
        return f'This recording supports refresh_policy exact: {found}.'
    if drift.high <= max_drift:
        return f'This recording supports refresh_policy patch: {found}.'
    return (
        f'Whether this recording supports refresh_policy patch cannot be told from so few questions: {found}; about '
        f'{needed} such answers are needed. {CALIBRATE} asks more of them.'
    )


def _used(results: dict) -> list[str]:
    """What auto came to, in how many cameras, and why."""
    cameras = [camera for bag in results['bags'] for camera in bag['cameras']]
    found = Counter((camera['refresh_policy'], camera['policy_reason']) for camera in cameras)
    return [f'{POLICY} used {policy}. {reason}' for (policy, reason), _ in found.most_common() if policy]
