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

"""The verdict in one line: whether to trust the kept state on this recording, and what it costs, all included."""

from vlm_reuse_node.replay.arms import POLICY
from vlm_reuse_node.replay.figures import factor, share_text
from vlm_reuse_node.replay.support import scene_lines

# With less evidence than this nothing is called right: the true drift may be one answer in ten.
MOST_UNSURE = 0.1


def conclusion(results: dict) -> str:
    """Return yes or no, with the answers that drifted, the total work and the speed of auto."""
    if why := why_no_verdict(results):
        return f'No verdict: {why}'
    counts, times = results['counts'][POLICY], results['times']['arms'][POLICY]
    high = results['ratios'][POLICY]['drift']['high']
    bound = f'at most {share_text(high)} with 95 % confidence'
    facts = (
        f'{counts["drifted"]} of {counts["pairs"]} answers drifted ({bound}), for {factor(times["work_ratio"])} '
        f'the work of cold-dense, answers {factor(times["speedup"])} as fast'
    )
    if counts['drifted'] > _most_drift(results) * counts['pairs']:
        said = f'No, do not trust it on this recording: {facts}.'
    elif times['work_ratio'] >= 1 or not is_faster(results, POLICY):
        said = f'No, it does not pay on this recording: {facts}.'
    elif high > MOST_UNSURE:
        said = f'Not yet, these are too few questions to trust it: {facts}.'
    else:
        said = f'Yes, trust it on this recording: {facts}.'
    return said if results['complete'] else f'{said} The replay is not complete.'


def why_no_verdict(results: dict) -> str:
    """Why the results say neither yes nor no; '' when they say one of them."""
    if unknown := scene_lines(results):
        return unknown[0]
    times = results['times']['arms'][POLICY]
    if not times['pairs'] or times['work_ratio'] is None:
        return 'no question was answered by both auto and cold-dense.'
    return ''


def is_faster(results: dict, arm: str) -> bool:
    """Whether an arm's speedup is more than chance, and more than that of cold over itself."""
    times, floor = results['times']['arms'][arm], results['times']['floor']
    least = max(1.0, floor['ratio'] if floor else 1.0)
    return times['speedup'] > least and (times['speedup_low'] is None or times['speedup_low'] > 1)


def floor_text(floor: dict | None) -> str:
    """Say how far two measurements of one answer are apart. floor: `times.floor` of the results."""
    if not floor:
        return 'the timing floor was not measured (arm cold-again)'
    return (
        f'timing floor: cold over cold-again is {factor(floor["ratio"])} (median of {floor["pairs"]} pairs; nine of '
        f'ten from {factor(floor["low"])} to {factor(floor["high"])})'
    )


def floor_sentence(floor: dict | None) -> str:
    """The same as a sentence."""
    text = floor_text(floor)
    return f'{text[0].upper()}{text[1:]}.'


def _most_drift(results: dict) -> float:
    """The share of drift that is no reason for distrust: max_drift, or what cold-dense itself has when asked again."""
    floor = results['counts'].get('cold-again')
    own = floor['drifted'] / floor['pairs'] if floor and floor['pairs'] else 0.0
    return max(results['settings']['config']['max_drift'], own)
