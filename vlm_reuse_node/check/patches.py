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

"""What can be claimed of patches, and the drift that they are approximate by.

Two kinds of patch are exact: one of cells that have not changed, and one of all cells. They hold the whole machinery
to cold-dense. Any other patch is approximate, and how far its answers drift is a measurement.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from vlm_reuse_node.check.asking import CHOICES, Asker, compare, compare_arrays
from vlm_reuse_node.check.claim import Claim
from vlm_reuse_node.check.cold import Cold, log_of
from vlm_reuse_node.check.levels import STEADY, guarded
from vlm_reuse_node.config import PATCH_POLICY
from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answerer import Answerer, TokenizedQuestion
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import State, build

SHARE = 0.1
PATCHING = STEADY.with_values(
    refresh_policy=PATCH_POLICY,
    max_patches=1000,
    max_patch_share=1.0,
    min_confidence=0.0,
    min_text_confidence=0.0,
    history_frames=0,
)


class PatchCheck:
    """Patches states of one model."""

    def __init__(self, vlm: Vlm, frames: Sequence[Frame], questions: Sequence[Question]) -> None:
        """Take two pictures, and all questions."""
        self._vlm, self._first, self._second = vlm, frames[0], frames[1]
        self._questions = questions
        self._template = vlm.template('', 1)
        self._answerer = Answerer(vlm, self._template)

    def check(self, exact: int, drift: int) -> list[Claim]:
        """Return the two exact claims, with so many questions each, and the drift of so many answers."""
        same = Claim('patch same', 'a patch of cells that have not changed changes nothing')
        whole = Claim('patch all', 'a patch of all cells is the new picture')
        drifted = Claim('patch drift', f'answers after a patch of {SHARE:.0%} of the cells', is_measurement=True)
        claims = [same, whole, drifted]
        with guarded(*claims):
            why = self._why_not()
        if why:
            for claim in claims:
                claim.reason = why
        if why or same.faults:
            return claims
        with guarded(same):
            cells = len(self._seen().features)
            middle = np.arange(cells // 2, cells // 2 + max(1, cells // 4))
            self._patch(same, self._newer(self._first), middle, exact)
        with guarded(whole):
            self._patch(whole, self._newer(self._second_like_first()), None, exact)
        with guarded(drifted):
            self._measure_drift(drifted, drift)
        return claims

    def _why_not(self) -> str:
        """Why this model gets no patches; '' when it does."""
        if not self._vlm.family.encodes_cells:
            return 'its family cannot encode single cells: a changed picture is computed whole'
        if not build(self._vlm, self._template_for, [self._seen()]).can_rewrite:
            return 'its sliding window keeps fewer tokens than a picture has: a changed picture is computed whole'
        return ''

    def _patch(self, claim: Claim, newer: Frame, cells: np.ndarray | None, count: int) -> None:
        """Patch some cells (None: all) of a state of the first picture, and compare it with a cold newer one."""
        state = build(self._vlm, self._template_for, [self._seen()])
        cells = np.arange(state.live.grid.cells) if cells is None else cells[cells < state.live.grid.cells]
        state.rewrite(state.live.with_cells(self._vlm, newer, cells), cells, later=True)
        asked = [question for question in self._questions if question.choices][:count]
        tokenized = [self._answerer.tokenize(question, PATCHING) for question in asked]
        found = [self._scores(state, each) for each in tokenized]
        cold = Cold(self._vlm, [newer], self._template, [state.live.features], by_cells=True)
        claim.asked = len(found)
        compare_arrays(claim, cold, state)
        difference = cold.difference(
            found, lambda run: [cold.scores(run, each.tokens, each.choices) for each in tokenized]
        )
        claim.compare(CHOICES, difference)
        for warm, each in zip(found, tokenized):
            right = cold.scores(cold.run(), each.tokens, each.choices)
            gap = float(right.max() - right[warm.argmax()])
            claim.equal += gap < difference.bound
            claim.ties += 0 < gap < difference.bound

    def _scores(self, state: State, question: TokenizedQuestion) -> np.ndarray:
        """Log-probabilities of the choices; the first question's pass takes the patch along."""
        try:
            end, *later = state.read(question.blocks()).logits
        finally:
            state.restore()
        return log_of(self._vlm.shares(end, list(zip(question.choices, later))))

    def _measure_drift(self, claim: Claim, count: int) -> None:
        """Change a part of the picture, let a session patch it, and compare its answers with cold ones."""
        asker = Asker(self._vlm, SceneSession(self._vlm, PATCHING, measures_time=False))
        # Documents are given by whole states only.
        first, *others = [question for question in self._questions if not question.json_schema][:count]
        asker.ask(first, Level.FULL, self._first)
        for question in others:  # what they save is the credit that pays for a patch
            asker.ask(question, Level.REUSE)
        newer = partly(self._first, self._second_like_first(), asker.state.live.grid, SHARE)
        asked = [asker.ask(first, Level.PATCH, newer)]
        if (level := asked[0].answer.level) is not None and level != Level.PATCH:
            claim.reason = f'the changed picture was refreshed at level {level}, not patched'
            return
        asked += [asker.ask(question, Level.REUSE) for question in others]
        compare(claim, asked, Cold(self._vlm, [newer], self._template), None)

    def _seen(self) -> EncodedFrame:
        return EncodedFrame.see(self._vlm, self._first, keep=True)

    def _template_for(self, frames: int) -> PromptTemplate:
        return self._template

    def _second_like_first(self) -> Frame:
        """The second picture, if it has the size of the first; else the first one upside down."""
        same_size = self._second.rgb.shape == self._first.rgb.shape
        differs = same_size and not np.array_equal(self._second.rgb, self._first.rgb)
        return self._second if differs else Frame(self._first.rgb[::-1].copy(), self._first.stamp_ns + 1)

    def _newer(self, frame: Frame) -> Frame:
        return Frame(frame.rgb, self._second.stamp_ns + 1, frame.frame_id, frame.camera)


def partly(older: Frame, newer: Frame, grid: Grid, share: float) -> Frame:
    """Return the older picture with a part of the newer one: about this share of the cells, where most has changed.

    Where nothing has, the part is the older one's negative.
    """
    rows, columns = (max(1, round(side * share**0.5)) for side in grid)
    height, width = older.size
    change = np.abs(older.rgb.astype(np.int16) - newer.rgb).max(axis=2).astype(np.float32)
    by_cell = cv2.resize(change, (grid.columns, grid.rows), interpolation=cv2.INTER_AREA)
    corners = [(top, left) for top in range(grid.rows - rows + 1) for left in range(grid.columns - columns + 1)]
    top, left = max(corners, key=lambda at: by_cell[at[0] : at[0] + rows, at[1] : at[1] + columns].sum())
    inside = (
        slice(top * height // grid.rows, (top + rows) * height // grid.rows),
        slice(left * width // grid.columns, (left + columns) * width // grid.columns),
    )
    rgb = older.rgb.copy()
    has_changed = by_cell[top : top + rows, left : left + columns].max() >= STEADY.change_threshold
    rgb[inside] = newer.rgb[inside] if has_changed else 255 - rgb[inside]
    return Frame(rgb, max(older.stamp_ns, newer.stamp_ns) + 1, older.frame_id, older.camera)
