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

"""Which rows may be timed together: those of one session. A resumed run has several, maybe on a busier machine."""

from collections import Counter

from vlm_reuse_node.replay.arms import REFERENCE
from vlm_reuse_node.replay.row_index import RowIndex


def choose_sessions(rows: RowIndex) -> dict[str, dict]:
    """Return for each bag how many sessions answered, and which is timed: the one with the most questions."""
    sessions: dict[str, Counter[int]] = {}
    for row in rows.of.get(REFERENCE, {}).values():
        sessions.setdefault(row['bag'], Counter())[row['times']['session']] += 1
    found = {}
    for bag, questions in sessions.items():
        timed, count = max(questions.items(), key=lambda each: (each[1], each[0]))
        found[bag] = {
            'sessions': len(questions),
            'timed': timed,
            'questions': count,
            'of': questions.total(),
        }
    return found


def timed_rows(rows: RowIndex, sessions: dict[str, dict]) -> RowIndex:
    """Return the rows whose times may be compared. sessions: of `choose_sessions`."""
    timed = {bag: each['timed'] for bag, each in sessions.items()}
    return RowIndex(
        [
            *rows.bags,
            *rows.questions,
            *(
                row
                for row in (*rows.answers, *rows.pictures, *rows.upkeep)
                if row['times']['session'] == timed.get(row['bag'])
            ),
        ]
    )


def session_lines(sessions: dict[str, dict]) -> list[str]:
    """Say of each bag that was resumed which of its questions are timed."""
    return [
        f"Bag '{bag}' was replayed in {each['sessions']} sessions. Times are those of one session only, with "
        f'{each["questions"]} of its {each["of"]} questions; answers, drift and tokens are of all of them.'
        for bag, each in sessions.items()
        if each['sessions'] > 1
    ]
