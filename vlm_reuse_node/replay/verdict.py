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

"""The first screen of the report: the figures that decide, and what they mean in words."""

from vlm_reuse_node.replay.arms import POLICY, REFERENCE
from vlm_reuse_node.replay.conclusion import floor_text
from vlm_reuse_node.replay.figures import counted, factor, milliseconds, paid_text, seconds, share_text, span_text
from vlm_reuse_node.replay.ratios import tokens

DENOMINATOR = 'cold-dense on the newest picture'


def verdict(results: dict) -> list[dict]:
    """Return the figures, each with its unit and what it is a share of: work, speed, drift, and computed pictures."""
    return [_work(results), _speed(results), _drift(results), _paid(results)]


def sentence(results: dict) -> str:
    """Say in words what the figures mean."""
    times = results['times']['arms'][POLICY]
    if not is_answered(results):
        return f'No question got an answer. {" ".join(results["problems"])}'.rstrip()
    if not times['pairs']:
        return 'Too few questions were answered to tell whether keeping the state pays.'
    return (
        f'{_work_meaning(results)} {_speed_meaning(times)}, and {_drift_meaning(results["ratios"][POLICY]["drift"])}.'
    )


def is_answered(results: dict) -> bool:
    """Whether any arm gave any answer."""
    return any(counts['statuses'].get('OK') for counts in results['counts'].values())


def may_be_chance(times: dict) -> bool:
    """Whether the interval of an arm's speedup includes 1."""
    return times['speedup_low'] is not None and times['speedup_low'] <= 1 <= times['speedup_high']


def _work(results: dict) -> dict:
    times = results['times']['arms'][POLICY]
    if not times['pairs'] or times['work_ratio'] is None:
        return {'figure': 'no pair', 'label': 'No question was answered by both auto and cold-dense.'}
    untimed = sum(each['of'] - each['questions'] for each in results['times']['sessions'].values())
    asked = results['counts'][POLICY]['asked'] - untimed
    own, cold = (tokens(results['counts'][arm]) for arm in (POLICY, REFERENCE))
    return {
        'figure': factor(times['work_ratio']),
        'label': (
            f"the total work of cold-dense: {seconds(times['work_ms'])} of the model's time against "
            f'{seconds(times["cold_work_ms"])} for the same {asked} questions; {seconds(times["upkeep_ms"])} of it was '
            f'spent between questions. {factor(results["ratios"][POLICY]["work_tokens_ratio"])} its tokens ({own:,} '
            f'against {cold:,})'
        ),
    }


def _speed(results: dict) -> dict:
    times = results['times']['arms'][POLICY]
    if not times['pairs']:
        return {'figure': 'no pair', 'label': 'No question was answered by both auto and cold-dense.'}
    interval = ''
    if times['speedup_low'] is not None:
        chance = ', which includes 1' if may_be_chance(times) else ''
        interval = f' (95 % interval {factor(times["speedup_low"])} to {factor(times["speedup_high"])}{chance})'
    return {
        'figure': factor(times['speedup']),
        'label': (
            f'as fast as {DENOMINATOR}{interval}: median answer {milliseconds(times["median_ms"])} ms against '
            f'{milliseconds(times["cold_median_ms"])} ms, n = {times["pairs"]}; {_remembered(times)}; '
            f'{floor_text(results["times"]["floor"])}'
        ),
    }


def _remembered(times: dict) -> str:
    """How many answers needed no model at all, and how fast those are that did."""
    text = f'{times["remembered"]} of these answers were remembered'
    if not times['warm']:
        return f'{text}, and none was computed without a refresh'
    return (
        f'{text}; the median of the {times["warm"]} that were computed without a refresh is '
        f'{milliseconds(times["warm_median_ms"])} ms'
    )


def _drift(results: dict) -> dict:
    drift = results['ratios'][POLICY]['drift']
    counts = results['counts'][POLICY]
    label = f'answers differ from {DENOMINATOR}: {span_text(drift["low"], drift["high"])} with 95 % confidence'
    if counts['judged_pairs']:
        changed = counts['lost'] + counts['gained']
        label += (
            f'; of {counts["judged_pairs"]} with a known truth {changed} changed between right and wrong '
            f'({counts["lost"]} lost, {counts["gained"]} gained)'
        )
    floor = results['counts'].get('cold-again')
    if floor and floor['drifted']:
        label += f'; noise floor: asked again, cold-dense changed {counted(floor["drifted"], floor["pairs"])}'
    return {'figure': f'{counts["drifted"]} of {counts["pairs"]}', 'label': label}


def _paid(results: dict) -> dict:
    looks = results['counts'][POLICY]['looks']
    if not looks:
        return {'figure': 'none', 'label': 'No picture was looked at.'}
    levels = ', '.join(f'{name} {count}' for name, count in looks['levels'].items())
    return {
        'figure': paid_text(looks['visual_tokens_refreshed'], looks['visual_tokens']),
        'label': (
            f'of the pictures was paid for: {looks["visual_tokens_refreshed"]:,} of {looks["visual_tokens"]:,} visual '
            f'tokens in {looks["pictures"]:,} pictures ({levels})'
        ),
    }


def _work_meaning(results: dict) -> str:
    ratio = results['times']['arms'][POLICY]['work_ratio']
    more_tokens = results['ratios'][POLICY]['work_tokens_ratio'] > 1
    if ratio > 1:
        return f'Keeping the state was more work than answering from nothing: {factor(ratio)} its model time.'
    text = f'All work together took {share_text(ratio)} of the model time of cold-dense'
    return f'{text}, but more tokens went through the model.' if more_tokens else f'{text}.'


def _speed_meaning(times: dict) -> str:
    if times['speedup'] <= 1:
        return 'The median answer from the kept state was no faster on this bag'
    text = (
        f'A planner waits {milliseconds(times["median_ms"])} ms for an answer instead of '
        f'{milliseconds(times["cold_median_ms"])} ms'
    )
    if times['remembered']:
        text += f', {counted(times["remembered"], times["pairs"])} remembered answers included'
    return f'{text} (chance alone could make this difference)' if may_be_chance(times) else text


def _drift_meaning(drift: dict) -> str:
    if drift['share'] == 0:
        return (
            f'none of {drift["n"]} answers changed; with only {drift["n"]} questions a true drift of up to '
            f'{share_text(drift["high"])} cannot be excluded'
        )
    return (
        f'{share_text(drift["share"])} of the answers differ from those on a fresh picture (the true share may be up '
        f'to {share_text(drift["high"])})'
    )
