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

"""Derive: ratios of the counts, with their bounds; None where there is nothing to divide by."""

from collections.abc import Iterable

import numpy as np

from vlm_reuse_node.replay.arms import REFERENCE
from vlm_reuse_node.replay.bounds import mcnemar_p, share_bounds
from vlm_reuse_node.replay.row_index import AnswerPair, RowIndex
from vlm_reuse_node.replay.rows import WORK_STAGES


def derive_ratios(rows: RowIndex, counts: dict[str, dict]) -> dict[str, dict]:
    """Return the ratios of each arm. counts: of `count_rows`."""
    return {
        arm: {
            **_drift(arm_counts),
            'right': _share(arm_counts['right'], arm_counts['judged']),
            'work_tokens_ratio': _share(tokens(arm_counts), tokens(counts[REFERENCE]) if REFERENCE in counts else 0),
            **_paid(arm_counts['looks']),
            'against_cached': _drift(arm_counts['against_cached']) if arm_counts['against_cached'] else None,
            'largest_score_difference': _largest_score_difference(rows.pairs(arm)),
        }
        for arm, arm_counts in counts.items()
    }


def tokens(arm_counts: dict) -> int | None:
    """Tokens of an arm through all stages of the model; None where it does not tell."""
    work = arm_counts['work']
    return sum(work[name] for name in WORK_STAGES) if work else None


def _paid(looks: dict | None) -> dict:
    """What an arm that looks at pictures computed of them."""
    paid = _share(looks['visual_tokens_refreshed'], looks['visual_tokens']) if looks else None
    if looks is None or paid is None:
        return {'paid': None, 'effective_pictures': None}
    # Published: 1 + (N - 1)(1 - r_reuse), how many pictures' worth was computed of N.
    return {'paid': paid, 'effective_pictures': round(1 + (looks['pictures'] - 1) * paid, 6)}


def _drift(counts: dict) -> dict:
    ratios = {}
    for name, drifted, of in (
        ('drift', 'drifted', 'pairs'),
        ('choice_drift', 'choice_drifted', 'choice_pairs'),
        ('text_drift', 'text_drifted', 'text_pairs'),
        ('same_pictures_drift', 'same_pictures_drifted', 'same_pictures'),
    ):
        ratios[name] = _bounded_share(counts[drifted], counts[of])
    changed = _bounded_share(counts['lost'] + counts['gained'], counts['judged_pairs'])
    return ratios | {'correctness_drift': changed | {'mcnemar_p': mcnemar_p(counts['lost'], counts['gained'])}}


def _bounded_share(part: int, total: int) -> dict:
    low, high = share_bounds(part, total)
    return {'share': _share(part, total), 'low': low, 'high': high, 'n': total}


def _share(part: int | None, total: int | None) -> float | None:
    return None if part is None or not total else round(part / total, 6)


def _largest_score_difference(pairs: Iterable[AnswerPair]) -> float | None:
    """Of any choice's probability, where both arms had the same pictures; None without such a pair."""
    differences = [
        abs(np.subtract(answer['choice_scores'], reference['choice_scores'])).max()
        for _, answer, reference in pairs
        if answer['pictures_s'] == reference['pictures_s']
        and reference['choice_scores']
        and len(answer['choice_scores']) == len(reference['choice_scores'])
    ]
    return round(float(max(differences)), 6) if differences else None
