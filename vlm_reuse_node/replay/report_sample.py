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

"""The report's sample: a few pictures, what was asked about them, and what was answered."""

from pathlib import Path

from vlm_reuse_node.replay.arms import POLICY, REFERENCE
from vlm_reuse_node.replay.figures import NO_VALUE
from vlm_reuse_node.replay.report_drift import picture_uri, shortened
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.samples import sampled
from vlm_reuse_node.session.answer import Status

MOST = 12  # on the page


def sample_view(rows: RowIndex, folders: dict[str, Path]) -> list[dict]:
    """Return the sample in the order of asking, as many of each bag. folders: of the bags, by name."""
    pictures = {name: sampled(folder / 'pictures') for name, folder in folders.items()}
    each = max(1, MOST // max(1, len(pictures)))
    views = []
    for bag, of_bag in pictures.items():
        asked = [row for row in rows.questions if row['bag'] == bag and row['question'] in of_bag]
        step = max(1, -(-len(asked) // each))
        views += [_view(rows, row, of_bag[row['question']]) for row in asked[::step]]
    return views[:MOST]


def _view(rows: RowIndex, question: dict, picture: Path) -> dict:
    key = question['bag'], question['camera'], question['question']
    own, cold = (rows.of.get(arm, {}).get(key) for arm in (POLICY, REFERENCE))
    return {
        'question': question['text'],
        'choices': ' / '.join(question['choices']),
        'at': f'{question["camera"]}, {question["at_s"]:.1f} s',
        'own': _said(own),
        'cold': _said(cold),
        'truth': question['truth'] or NO_VALUE,
        'picture': picture_uri(picture),
    }


def _said(answer: dict | None) -> str:
    """What an arm answered, or why it did not."""
    if answer is None:
        return NO_VALUE
    if answer['status'] != Status.OK:
        return shortened(f'{answer["status"]}: {answer["message"]}')
    return shortened(answer['text'])
