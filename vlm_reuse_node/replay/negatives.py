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

"""Everything that speaks against the engine, or against trusting the figures of a replay."""

from vlm_reuse_node.replay.arms import ARMS, POLICY, REFERENCE
from vlm_reuse_node.replay.figures import counted, factor, milliseconds, p_text, share_text

# Arms that say which answers are exact: those must be as cold-dense's on the same pictures.
EXACT = (POLICY, 'exact', 'on-demand', 'patch', 'eager', 'eager-patch', 'reuse', 'newest')
_COLD = (REFERENCE, 'cold-again', 'cold-cached')  # they compute everything for every question


def negatives(results: dict) -> list[str]:
    """Return a sentence for each thing that went wrong, was slow, drifted or was not measured."""
    found = list(results['problems'])
    if not results['complete']:
        found.append('The replay is not complete: some bags or parts of them are missing.')
    found += (
        _noise(results)
        + _exactness(results)
        + _work(results)
        + _slow(results)
        + _drifted(results)
        + _unanswered(results)
    )
    return found or ['None: no arm was slower or more work than cold-dense, none drifted, nothing was refused.']


def _noise(results: dict) -> list[str]:
    counts = results['counts'].get('cold-again')
    if not counts:
        return ['The noise floor was not measured (arm cold-again).']
    if counts['drifted']:
        return [
            f'Cold-dense itself is not reproducible: {counted(counts["drifted"], counts["pairs"])} of its answers '
            'changed when asked again. A drift of this size in another arm says nothing about that arm.'
        ]
    return []


def _exactness(results: dict) -> list[str]:
    against = results['counts'][POLICY]['against_cached']
    if not against:
        return [
            'Whether the exact answers of auto equal cold-dense on its own pictures was not checked (arm cold-cached).'
        ]
    if against['drifted']:
        return [
            f'Auto is not exact: {counted(against["drifted"], against["pairs"])} of its exact answers differ from '
            'cold-dense on the very pictures it has cached.'
        ]
    return []


def _work(results: dict) -> list[str]:
    """Arms that keep a state and yet did more work than cold-dense, by the model's time or by its tokens."""
    found = []
    for arm, times in results['times']['arms'].items():
        if not times['pairs'] or not ARMS[arm].keeps_state:
            continue
        in_time, in_tokens = times['work_ratio'], results['ratios'][arm]['work_tokens_ratio']
        if max(in_time or 0, in_tokens or 0) > 1:
            tokens = f' and {factor(in_tokens)} its tokens' if in_tokens is not None else ''
            found.append(
                f'{arm}: in total it did more work than cold-dense for the same questions: {factor(in_time)} the model '
                f'time{tokens}.'
            )
    return found


def _slow(results: dict) -> list[str]:
    found = []
    for arm, times in results['times']['arms'].items():
        if not times['pairs'] or arm in (*_COLD, 'newest'):
            continue
        if times['speedup'] <= 1:
            found.append(
                f'{arm}: the median answer was no faster than that of cold-dense: '
                f'{milliseconds(times["median_ms"])} ms against {milliseconds(times["cold_median_ms"])} ms.'
            )
        found += [
            f'{arm}: the first question about a new picture is no faster ({factor(each["speedup"])}).'
            for each in times['sessions']
            if each['questions'] == 1 and each['speedup'] <= 1.005
        ]
    return found


def _drifted(results: dict) -> list[str]:
    found = []
    for arm, counts in results['counts'].items():
        if arm in _COLD or not counts['drifted']:
            continue
        ratios = results['ratios'][arm]
        text = (
            f'{arm}: {counted(counts["drifted"], counts["pairs"])} of its answers drifted from cold-dense '
            f'(the true share may be up to {share_text(ratios["drift"]["high"])})'
        )
        if counts['lost'] + counts['gained']:
            p = p_text(ratios['correctness_drift']['mcnemar_p'])
            text += f'; right answers lost: {counts["lost"]}, gained: {counts["gained"]} ({p})'
        if counts['same_pictures_drifted'] and arm in EXACT:
            text += f'; {counts["same_pictures_drifted"]} of them, called exact, on the very same pictures'
        found.append(f'{text}.')
    return found


def _unanswered(results: dict) -> list[str]:
    found = []
    for arm, counts in results['counts'].items():
        missing = {status: count for status, count in counts['statuses'].items() if status != 'OK'}
        if missing:
            kinds = ', '.join(f'{status} {count}' for status, count in missing.items())
            found.append(f'{arm}: {counted(sum(missing.values()), counts["asked"])} questions got no answer ({kinds}).')
        for name, what in (
            ('parse_failure', 'named none of the choices'),
            ('degenerate', 'were empty or repetitive'),
            ('cut', 'were cut off at the limit of tokens'),
        ):
            if counts[name]:
                found.append(f'{arm}: {counted(counts[name], counts["asked"])} answers {what}.')
    return found
