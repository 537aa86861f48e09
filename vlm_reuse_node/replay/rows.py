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

"""What a replay records: one JSON object for each question, each answer, each look and refresh, and all upkeep.

Everything that differs from run to run is under `times`; the rest is the same for the same bag. results.schema.json
describes fields and units.
"""

import resource
import sys
from collections.abc import Iterable, Iterator

from vlm_reuse_node.model.work import Work
from vlm_reuse_node.replay.answer_text import is_degenerate, plain
from vlm_reuse_node.replay.arm_answer import ArmAnswer
from vlm_reuse_node.replay.schedule import DueQuestion
from vlm_reuse_node.replay.truth import truth_at
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.answer import Status

# Counts of tokens, by the names of `Work`'s fields.
WORK_STAGES = ('vision_tokens', 'prefill_tokens', 'decode_tokens')
_MB = 1e6 if sys.platform == 'darwin' else 1e3  # ru_maxrss counts bytes there, else kilobytes


def question_row(number: int, due: DueQuestion, camera: str, picture_s: float, choice_tokens: int) -> dict:
    """Make the row of a question. choice_tokens: tokens of all its choices together."""
    entry = due.entry
    return {
        'row': 'question',
        'camera': camera,
        'question': number,
        'at_s': due.at_s,
        'picture_s': picture_s,
        'text': entry.text,
        'choices': list(entry.choices),
        'kind': entry.kind,
        'tags': list(entry.tags),
        'truth': truth_at(entry.truths, picture_s),
        'choice_tokens': choice_tokens,
    }


def answer_row(question: dict, arm: str, arm_answer: ArmAnswer, pictures_s: list[float], work: Work) -> dict:
    """Make the row of one arm's answer to a question.

    pictures_s: when the pictures in its prompt were taken. work: what the model's meter counted meanwhile.
    """
    is_counted = arm_answer.visual_tokens is not None
    answer = arm_answer.answer
    choices = question['choices']
    is_answer = answer.status == Status.OK
    said = choices[answer.choice_index] if choices and answer.choice_index >= 0 else answer.text
    right = None if not is_answer or question['truth'] is None else plain(said) == plain(question['truth'])
    return {
        'row': 'answer',
        'camera': question['camera'],
        'question': question['question'],
        'arm': arm,
        'status': str(answer.status),
        'message': answer.message,
        'text': answer.text,
        'choice': answer.choice_index,
        'choice_scores': [round(score, 6) for score in answer.choice_scores],
        'right': right,
        'parse_failure': bool(is_answer and choices and answer.choice_index < 0),
        'degenerate': bool(is_answer and not choices and is_degenerate(answer.text)),
        'cut': bool(is_answer and answer.message),
        'level': str(answer.level or ''),
        'exact': answer.exact,
        'confidence': round(answer.confidence, 6),
        'escalated': answer.escalated,
        'remembered': answer.remembered,
        'pictures_s': pictures_s,
        'token_ids': list(answer.token_ids),
        'visual_tokens_computed': arm_answer.visual_tokens,
        'tokens_reused': arm_answer.tokens_reused,
        'tokens_prefilled': arm_answer.tokens_prefilled,
        'tokens_generated': answer.tokens_generated,
        'work': _tokens(work) if is_counted else None,
        'times': _answer_times(arm_answer) | {'work_ms': work.ms if is_counted else arm_answer.total_ms},
    }


def _answer_times(arm_answer: ArmAnswer) -> dict[str, float]:
    """Milliseconds by stage; other_ms is what no stage accounts for."""
    answer = arm_answer.answer
    paid = arm_answer.refreshes
    stages = {
        'change_ms': sum(refresh.change_ms for refresh in paid),
        'vision_ms': sum(refresh.vision_ms for refresh in paid),
        'prefill_ms': sum(refresh.prefill_ms for refresh in paid) + answer.prefill_ms,
        'decode_ms': answer.decode_ms,
    }
    total_ms = arm_answer.total_ms
    return {'total_ms': total_ms, **stages, 'other_ms': total_ms - sum(stages.values())}


def picture_rows(
    camera: str,
    arm: str,
    picture_s: float,
    refreshes: Iterable[Refresh],
    held: tuple[int, int],
    question: int | None = None,
) -> Iterator[dict]:
    """Make the rows of an arm's looks at a picture, and of its refreshes from it.

    held: pictures and bytes that it keeps then. question: number of the question that waited for the refresh.
    """
    for refresh in refreshes:
        yield {
            'row': 'picture',
            'camera': camera,
            'arm': arm,
            'picture_s': picture_s,
            'question': question,
            'level': str(refresh.level),
            'reason': refresh.reason,
            'visual_tokens': refresh.visual_tokens_total,
            'visual_tokens_refreshed': refresh.visual_tokens_refreshed,
            'visual_tokens_stale': refresh.visual_tokens_stale,
            'oldest_cell_age_s': round(refresh.oldest_cell_age_s, 6),
            'held_pictures': held[0],
            'held_bytes': held[1],
            'times': {
                'change_ms': refresh.change_ms,
                'vision_ms': refresh.vision_ms,
                'prefill_ms': refresh.prefill_ms,
                'peak_process_mb': peak_process_mb(),
            },
        }


def upkeep_row(camera: str, arm: str, picture_s: float, work: Work) -> dict:
    """Make the row of work that an arm did for no question, after the picture of that time."""
    return {
        'row': 'upkeep',
        'camera': camera,
        'arm': arm,
        'picture_s': picture_s,
        'work': _tokens(work),
        'times': {'work_ms': work.ms},
    }


def _tokens(work: Work) -> dict[str, int]:
    return {name: getattr(work, name) for name in WORK_STAGES}


def peak_process_mb() -> float:
    """Return the most memory this process had so far, megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MB


def is_pair(row: dict, reference: dict) -> bool:
    """Whether both are answers, and can be compared."""
    return row['status'] == reference['status'] == Status.OK


def differs(row: dict, reference: dict) -> bool:
    """Whether an answer differs from the reference: in its choice, or in its text where there are no choices."""
    if row['choice'] >= 0 or reference['choice'] >= 0:
        return row['choice'] != reference['choice']
    return row['text'] != reference['text']
