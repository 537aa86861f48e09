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

"""The demo's table in the terminal: one line for each question as it is answered, and the sums under it."""

import shutil
from collections.abc import Sequence

from vlm_reuse_node.demo.sidecar import PlannedQuestion
from vlm_reuse_node.demo.summary import Row, Summary
from vlm_reuse_node.plain_text import one_line
from vlm_reuse_node.replay.figures import factor, paid_text, seconds

NO_VALUE = '-'
NUMBERS = (('right', 5), ('age s', 5), ('level', 6), ('reused', 6), ('filled', 6), ('warm ms', 7), ('cold ms', 7))
LONGEST = {'question': 60, 'answer': 26, 'truth': 26}
SHORTEST = 8
GAP = '  '
DENOMINATOR = 'cold-dense on the same picture'
WORK_MEANT = "all the model's time, by the node's own account of everything it was asked"
TIME_MEANT = "the model's own time, without waiting for the model and DDS"


class QuestionTable:
    """Lays out rows for a terminal: texts share the width that numbers leave."""

    def __init__(self, questions: Sequence[PlannedQuestion], width: int = 0) -> None:
        """Choose the widths of the columns. width: characters in a line; 0 takes the terminal's."""
        width = width or shutil.get_terminal_size((150, 24)).columns
        answers = max((len(truth.answer) for question in questions for truth in question.truths), default=6)
        sizes = {
            'question': max((len(question.text) for question in questions), default=8),
            'answer': max(6, answers),
            'truth': max(5, answers),
        }
        sizes = {name: min(size, LONGEST[name]) for name, size in sizes.items()}
        room = width - sum(size for _, size in NUMBERS) - len(GAP) * (len(NUMBERS) + len(sizes) - 1)
        while sum(sizes.values()) > room and max(sizes.values()) > SHORTEST:
            widest = max(sizes, key=lambda name: sizes[name])
            sizes[widest] -= 1
        self._texts = tuple(sizes.items())

    def header(self) -> str:
        """Return the column titles, and a line under them."""
        titles = GAP.join([name.ljust(size) for name, size in self._texts] + [n.rjust(size) for n, size in NUMBERS])
        return f'{titles}\n{"-" * len(titles)}'

    def line(self, row: Row) -> str:
        """Return one question's line; a question without an answer says why."""
        texts = (row.question.text, row.warm.text if row.warm.is_answer else row.warm.status, row.truth or NO_VALUE)
        cells = [_fit(text, size) for text, (_, size) in zip(texts, self._texts)]
        cells += [cell.rjust(size) for cell, (_, size) in zip(number_cells(row), NUMBERS)]
        return GAP.join(cells) + ('' if row.warm.is_answer else f'\n    {one_line(row.warm.message)}')


def number_cells(row: Row) -> tuple[str, ...]:
    """Return a row's figures as text, in the order of NUMBERS."""
    warm = row.warm
    right = {True: 'yes', False: 'NO', None: NO_VALUE}[row.is_right]
    if not warm.is_answer:
        return (right, *[NO_VALUE] * (len(NUMBERS) - 1))
    cold_ms = f'{row.pair[1].model_ms:.1f}' if row.pair else NO_VALUE
    return (
        right,
        f'{warm.image_age_s:.2f}',
        warm.level,
        f'{warm.tokens_reused}',
        f'{warm.tokens_prefilled}',
        f'{warm.model_ms:.1f}',
        cold_ms,
    )


def closing_lines(summary: Summary) -> list[str]:
    """Return the lines under the table: the verdict first."""
    return [conclusion(summary), _work(summary), _answers(summary), _times(summary), _shares(summary)]


def conclusion(summary: Summary) -> str:
    """Return yes or no, with the equal answers, the total work, the speed and the right answers."""
    if summary.speedup is None or summary.work_ratio is None:
        return 'No verdict: the run was too short, or too much failed, to tell whether keeping the state pays.'
    facts = (
        f'{summary.equal} of {len(summary.pairs)} warm answers equal those of cold-dense, for '
        f'{factor(summary.work_ratio)} its work, {factor(summary.speedup)} as fast; {summary.correct} of '
        f'{summary.judged} are right'
    )
    if 2 * summary.correct < summary.judged:
        return f'No, most of its answers are wrong: {facts}.'
    if summary.equal < len(summary.pairs):
        return f'No, not every answer of this run can be trusted: {facts}.'
    if summary.work_ratio >= 1 or summary.speedup <= 1:
        return f'No, it did not pay in this run: {facts}.'
    return f'Yes, keeping the state paid in this run: {facts}.'


def _work(summary: Summary) -> str:
    totals = summary.totals
    if summary.work_ratio is None:
        return 'The node has answered nothing, so there is no work to compare.'
    return (
        f'Total work: {factor(summary.work_ratio)} that of cold-dense ({seconds(totals.work_ms)} against '
        f'{seconds(totals.cold_ms)}; {WORK_MEANT}).'
    )


def _answers(summary: Summary) -> str:
    line = f'{summary.answered} of {summary.questions} questions answered, {summary.correct} right'
    if summary.judged < summary.answered:
        line += f' of {summary.judged} that can be judged'
    return f'{line}; {equality(summary)}.'


def equality(summary: Summary) -> str:
    """Say how many warm answers equal their cold ones, of how many that can be compared."""
    line = f'warm equals {DENOMINATOR} in {summary.equal} of {len(summary.pairs)} pairs'
    return f'{line} ({summary.apart} more had another picture in between)' if summary.apart else line


def _times(summary: Summary) -> str:
    if summary.speedup is None:
        return 'No question has both a warm and a cold time, so there is no speedup.'
    return (
        f'Median answer: warm {summary.warm_ms_median:.1f} ms, {DENOMINATOR} {summary.cold_ms_median:.1f} ms: '
        f'{summary.speedup:.1f} times as fast ({len(summary.pairs)} pairs, {summary.remembered} of them remembered; '
        f'{TIME_MEANT}).'
    )


def _shares(summary: Summary) -> str:
    levels = ', '.join(f'{name} {count}' for name, count in summary.refresh_levels.items()) or 'none'
    return (
        f'{paid_text(summary.tokens_paid, summary.tokens)} of the picture paid for, over {len(summary.looks)} '
        f'pictures looked at ({levels}); {summary.camera.sent} sent, {summary.camera.received} received, '
        f'{summary.camera.dropped} dropped for a newer one, {summary.camera.refused} refused.'
    )


def _fit(text: str, size: int) -> str:
    return one_line(text, size).ljust(size)
