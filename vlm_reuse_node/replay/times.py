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

"""What a replay times: total work and latency against cold-dense, each stage, and sessions of several questions."""

from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np

from vlm_reuse_node.replay.arms import REFERENCE
from vlm_reuse_node.replay.bounds import ratio_bounds
from vlm_reuse_node.replay.row_index import AnswerPair, RowIndex

SESSIONS = (1, 2, 5, 10, 50)  # questions on one picture
STAGES = ('change_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'other_ms')
_LOOK_STAGES = ('change_ms', 'vision_ms', 'prefill_ms')
_WHOLE_LEVELS = ('frame', 'full')  # levels that compute the whole picture


def measure_times(rows: RowIndex) -> dict[str, dict]:
    """Return the times of each arm, milliseconds, beside those of the answers it is compared with."""
    return {arm: _arm_times(rows, arm) for arm in rows.arms}


def timing_floor(rows: RowIndex) -> dict | None:
    """Return how far two measurements of the same answer are apart: cold over cold-again, pair by pair.

    low and high: nine of ten ratios are between them. slower: in how many pairs cold took longer. None without a pair.
    """
    pairs = rows.pairs('cold-again') if 'cold-again' in rows.of else []
    times = [(pair.reference['times']['total_ms'], pair.answer['times']['total_ms']) for pair in pairs]
    ratios = [cold / again for cold, again in times if again > 0]
    if not ratios:
        return None
    low, middle, high = np.percentile(ratios, (5, 50, 95)).tolist()
    return {
        'pairs': len(ratios),
        'ratio': middle,
        'low': low,
        'high': high,
        'slower': sum(ratio > 1 for ratio in ratios),
    }


def _arm_times(rows: RowIndex, arm: str) -> dict:
    pairs = rows.pairs(arm)
    if not pairs:
        return {'pairs': 0}
    own = [pair.answer['times']['total_ms'] for pair in pairs]
    cold = [pair.reference['times']['total_ms'] for pair in pairs]
    stages = {stage: [pair.answer['times'][stage] for pair in pairs] for stage in STAGES}
    looks = rows.looks(arm)
    upkeep_ms = _work_ms(row for row in rows.upkeep if row['arm'] == arm)
    work_ms = upkeep_ms + _work_ms(rows.of[arm].values())
    cold_work_ms = _work_ms(rows.of[REFERENCE].values())
    remembered = [pair.answer['remembered'] for pair in pairs]
    warm = [
        each
        for each, pair, is_remembered in zip(own, pairs, remembered)
        if not pair.answer['visual_tokens_computed'] and not is_remembered
    ]
    low, high = ratio_bounds(cold, own)
    return {
        'pairs': len(pairs),
        'median_ms': median(own),
        'p95_ms': float(np.percentile(own, 95)),
        'remembered': sum(remembered),
        'warm': len(warm),
        'warm_median_ms': median(warm) if warm else None,
        'cold_median_ms': median(cold),
        'speedup': median(cold) / median(own),
        'speedup_low': low,
        'speedup_high': high,
        'answers_ms': sum(own),
        'cold_answers_ms': sum(cold),
        'work_ms': work_ms,
        'upkeep_ms': upkeep_ms,
        'cold_work_ms': cold_work_ms,
        'work_ratio': work_ms / cold_work_ms if cold_work_ms else None,
        'stages_median_ms': {stage: median(values) for stage, values in stages.items()},
        'stages_ms': {stage: sum(values) for stage, values in stages.items()},
        'ceiling': _ceiling(pairs),
        'sessions': _sessions(looks, own_ms=median(warm), cold_ms=median(cold)) if warm else [],
    }


def _work_ms(rows: Iterable[dict]) -> float:
    return sum(row['times']['work_ms'] for row in rows)


def _look_ms(row: dict) -> float:
    """What one picture cost an arm that looked at it."""
    return sum(row['times'][stage] for stage in _LOOK_STAGES)


def _ceiling(pairs: Sequence[AnswerPair]) -> dict | None:
    """What the arm's answers would take if each stage cost what it does in cold-dense, in proportion to its tokens.

    Vision goes by visual tokens, prefill by prompt tokens, decode by generated tokens. residual_ms: what the answers
    take beyond that, all together: the price of keeping the state, or of smaller calls.
    """
    if any(pair.answer['visual_tokens_computed'] is None for pair in pairs):
        return None
    predicted_ms = sum(_predicted_ms(pair) for pair in pairs)
    cold_ms = sum(pair.reference['times']['total_ms'] for pair in pairs)
    own_ms = sum(pair.answer['times']['total_ms'] for pair in pairs)
    return {
        'predicted_ms': predicted_ms,
        'measured_ms': own_ms,
        'residual_ms': own_ms - predicted_ms,
        'predicted_speedup': cold_ms / predicted_ms if predicted_ms > 0 else None,
        'measured_speedup': cold_ms / own_ms,
    }


def _predicted_ms(pair: AnswerPair) -> float:
    """One answer of the ceiling; a remembered one has no stage at all.

    The choices' own tokens are scored by both arms, so they are no prefill to save.
    """
    question, answer, reference = pair
    if answer['remembered']:
        return 0.0
    times = reference['times']
    choices = question['choice_tokens']
    visual_share = answer['visual_tokens_computed'] / max(1, reference['visual_tokens_computed'])
    prefill_share = (answer['tokens_prefilled'] - choices) / (reference['tokens_prefilled'] - choices)
    both_generated = answer['tokens_generated'] and reference['tokens_generated']
    decode_share = answer['tokens_generated'] / reference['tokens_generated'] if both_generated else 1.0
    return times['vision_ms'] * visual_share + times['prefill_ms'] * prefill_share + times['decode_ms'] * decode_share


def _sessions(looks: Sequence[dict], own_ms: float, cold_ms: float) -> list[dict]:
    """Setup-inclusive speedup of n questions on one new picture, from medians.

    The setup is the refresh of a whole picture; without one there is nothing to tell. own_ms: of an answer that was
    computed and waited for no refresh.
    """
    setups = [_look_ms(row) for row in looks if row['level'] in _WHOLE_LEVELS]
    if not setups:
        return []
    setup_ms = median(setups)
    return [
        {
            'questions': number,
            'setup_ms': setup_ms,
            'speedup': number * cold_ms / (setup_ms + number * own_ms),
        }
        for number in SESSIONS
    ]
