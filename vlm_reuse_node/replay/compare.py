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

"""What changed between two replays: settings, answers, correctness and speed, and whether chance explains it."""

import numpy as np
from scipy import stats

from vlm_reuse_node.replay.arms import REFERENCE
from vlm_reuse_node.replay.bounds import CONFIDENCE, RESAMPLES, SEED, mcnemar_p, share_bounds
from vlm_reuse_node.replay.figures import counted, p_text, share_text
from vlm_reuse_node.replay.rows import differs, is_pair

SIGNIFICANT = 0.05
Pairs = list[tuple[dict, dict]]  # rows of the same answer in the old and the new run
Shares = dict[tuple, float]  # by question and arm: the time of an answer over that of cold
_FEWEST = 6  # with fewer pairs an interval of times says nothing


def compare(old: dict, new: dict) -> dict:
    """Compare the answers that both have: the same bag, camera, moment, text and arm."""
    before = _by_question(old)
    after = _by_question(new)
    arms = [arm for arm in new['counts'] if arm in old['counts']]
    pairs = {arm: [(before[key], after[key]) for key in after if key[-1] == arm and key in before] for arm in arms}
    old_digests = _digests(old)
    new_digests = _digests(new)
    return {
        'settings': _changed(old['settings'], new['settings']),
        'other_pictures': sorted(
            name for name in old_digests.keys() & new_digests.keys() if old_digests[name] != new_digests[name]
        ),
        'questions_in_common': len({key[:-1] for key in before.keys() & after.keys()}),
        'arms': {arm: _answers(pairs[arm]) for arm in arms},
        'times': {arm: _times(_shares(before, arm), _shares(after, arm)) for arm in arms},
    }


def comparison_lines(comparison: dict) -> list[str]:
    """Return the comparison for the terminal."""
    lines = [f'Compared with the earlier run, on {comparison["questions_in_common"]} questions in common:']
    lines += [f'  {each["name"]}: {each["old"]} -> {each["new"]}' for each in comparison['settings']]
    if not comparison['settings']:
        lines.append('  the settings are the same')
    lines += [f"  bag '{name}' has other pictures now" for name in comparison['other_pictures']]
    return lines + [f'  {arm}: {arm_sentence(comparison, arm)}' for arm in comparison['arms']]


def arm_sentence(comparison: dict, arm: str) -> str:
    """Say what changed in one arm."""
    answers = comparison['arms'][arm]
    times = comparison['times'][arm]
    text = (
        f'{counted(answers["changed"], answers["pairs"])} answers changed (the true share may be up to '
        f'{share_text(answers["high"])}); right answers lost: {answers["lost"]}, gained: {answers["gained"]} '
        f'({p_text(answers["mcnemar_p"], SIGNIFICANT)})'
    )
    if arm == REFERENCE:
        return text
    if times is None:
        return f'{text}; too few to compare times'
    return (
        f"{text}; median time as a share of the same run's cold {times['old_share']:.3f} -> {times['new_share']:.3f}, "
        f'question by question new / old {times["ratio"]:.2f} ({times["low"]:.2f} to {times["high"]:.2f}, '
        f'{"significant" if times["is_significant"] else "not significant"})'
    )


def _digests(results: dict) -> dict[str, str]:
    """What tells one bag's pictures from other pictures, by the bag's name."""
    return {bag['bag']: bag['frames_digest'] for bag in results['bags']}


def _by_question(results: dict) -> dict[tuple, dict]:
    questions = {(row['bag'], row['camera'], row['question']): row for row in results['questions']}
    keyed = {}
    for row in results['answers']:
        question = questions[row['bag'], row['camera'], row['question']]
        keyed[row['bag'], row['camera'], question['at_s'], question['text'], row['arm']] = row
    return keyed


def _changed(old: dict, new: dict, prefix: str = '') -> list[dict]:
    """Settings that are not the same, by name; those inside of others with a dot."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before = old.get(name)
        after = new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _changed(before, after, f'{prefix}{name}.')
        elif before != after:
            found.append({'name': f'{prefix}{name}', 'old': before, 'new': after})
    return found


def _answers(pairs: Pairs) -> dict:
    pairs = [(before, after) for before, after in pairs if is_pair(after, before)]
    changed = sum(differs(after, before) for before, after in pairs)
    lost = sum(before['right'] is True and after['right'] is False for before, after in pairs)
    gained = sum(before['right'] is False and after['right'] is True for before, after in pairs)
    low, high = share_bounds(changed, len(pairs))
    p = mcnemar_p(lost, gained)
    return {
        'pairs': len(pairs),
        'changed': changed,
        'low': low,
        'high': high,
        'lost': lost,
        'gained': gained,
        'mcnemar_p': p,
        'is_significant': p < SIGNIFICANT,
    }


def _shares(keyed: dict[tuple, dict], arm: str) -> Shares:
    """An arm's times over those of cold in the same run and session: they do not tell how fast the machine was."""
    shares = {}
    for key, row in keyed.items():
        cold = keyed.get((*key[:-1], REFERENCE))
        if key[-1] != arm or cold is None or not is_pair(row, cold):
            continue
        own, reference = row['times'], cold['times']
        if own['session'] == reference['session'] and own['total_ms'] > 0 and reference['total_ms'] > 0:
            shares[key] = own['total_ms'] / reference['total_ms']
    return shares


def _times(before: Shares, after: Shares) -> dict | None:
    """New over old share of the same question: the median over the questions with its bootstrap interval."""
    common = [key for key in after if key in before and key[-1] != REFERENCE]
    if len(common) < _FEWEST:
        return None
    old, new = (np.array([shares[key] for key in common]) for shares in (before, after))
    logs = np.log(new / old)
    interval = stats.bootstrap(
        (logs,),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method='percentile',
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    low = float(np.exp(interval.low))
    high = float(np.exp(interval.high))
    return {
        'pairs': len(common),
        'old_share': float(np.median(old)),
        'new_share': float(np.median(new)),
        'ratio': float(np.exp(np.median(logs))),
        'low': low,
        'high': high,
        'is_significant': not low <= 1.0 <= high,
    }
