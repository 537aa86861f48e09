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

"""An answer as a person reads it, and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from vlm_reuse_node.plain_text import printable
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.embedded_model import MEANS_NOTHING


def answer_lines(answer: Answer, choices: tuple[str, ...]) -> Iterator[str]:
    """Yield whether it means anything, the answer, how sure it is, the picture it comes from, and what it cost.

    Each is one harmless line. A text is not cut: it is what was asked for.
    """
    if answer.status is not Status.OK:
        yield f'{answer.status}: {_plain(answer.message)}'
        return
    message = answer.message
    if MEANS_NOTHING in message:
        yield MEANS_NOTHING
        message = message.replace(MEANS_NOTHING, '').strip()
    yield _plain(answer.text)
    if answer.choice_scores:
        ranked = sorted(zip(answer.choice_scores, choices, strict=True), reverse=True)
        yield '  ' + ', '.join(f'{_plain(choice)} {score:.2f}' for score, choice in ranked)
    else:
        yield f'  least likely token {answer.confidence:.2f}' + (f'; {_plain(message)}' if message else '')
    yield (
        f'  {"exact" if answer.exact else "approximate (patched)"}, picture {answer.image_age_s:.2f} s old, camera '
        f'{_plain(answer.camera)}, model {_plain(answer.model)}'
    )
    yield f'  {answer.total_ms:.0f} ms: {_cost(answer)}'


def _cost(answer: Answer) -> str:
    if answer.remembered:
        return 'the same question had this answer before'
    waited = f'{answer.level} refresh' if answer.level else ''
    again = ', given again after an unsure one' if answer.escalated else ''
    return (
        f'{waited}{again}, {answer.tokens_prefilled} prompt tokens computed, {answer.tokens_reused} reused, '
        f'{answer.tokens_generated} generated'
    )


def as_json(answer: Answer) -> dict[str, Any]:
    """Every field of the answer, by its name in `session/answer.py`."""
    fields = asdict(answer)
    return fields | {'status': str(answer.status), 'level': str(answer.level or ''), 'total_ms': answer.total_ms}


def _plain(text: str) -> str:
    """Text from outside as one line without control characters."""
    return printable(text).strip()
