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

"""Prompts to learn from: many questions about a story's newest picture, with answers, behind the same pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from tabletop_training.pictures import CELLS, COLUMNS, ROWS, Things
from vlm_reuse_node.demo import scene_truth, tabletop, words
from vlm_reuse_node.demo.questions import TabletopQuestion, single_question, window_question

KINDS = (*words.SINGLE_KINDS, *words.WINDOW_KINDS)
# How often each kind is asked. Left of and right of are asked most, because they are learnt late; counts and lists are
# learnt last, and asked most in LATE_SHARES.
SHARES = {
    'colour': 1.0,
    'shape': 0.6,
    'count': 1.6,
    'exists': 0.8,
    'where': 1.8,
    'relation': 6.0,
    'nearest': 1.2,
    'list': 0.5,
    'missing': 0.6,
    'unknown': 0.3,
}
LATE_SHARES = SHARES | {'count': 4.0, 'relation': 2.5, 'list': 4.0}
# Learnt long before left of and right of, so they are asked less often.
_LEARNT = ('above', 'below')


class PackedPrompts(NamedTuple):
    """Prompts as tensors, (batch, length) but for the positions.

    ids: tokens. labels: the next token, -100: not scored. segments: 0 for pictures, else the number of the question.
    kinds: index in KINDS, -1: none. mentions: the cell of the thing that is named there, or comes next in a list; -1:
    none. relations: at the second of two things that are compared, see `Prompts`; -1 elsewhere.
    positions: M-RoPE, (3, batch, length).
    """

    ids: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    kinds: torch.Tensor
    mentions: torch.Tensor
    relations: torch.Tensor
    positions: torch.Tensor


class _PromptRow(NamedTuple):
    """One prompt of `PackedPrompts` as arrays, (length,); positions (3, length)."""

    ids: np.ndarray
    labels: np.ndarray
    segments: np.ndarray
    kinds: np.ndarray
    mentions: np.ndarray
    relations: np.ndarray
    positions: np.ndarray


class Prompts:
    """Packs questions and answers behind their pictures, many into one prompt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look up the tokens of the chat."""
        token = tokenizer.token_to_id
        self.tokenizer = tokenizer
        self.image: int = token('<|image_pad|>')
        self.pad: int = token('<|endoftext|>')
        self.word_and: int = token('and')
        self.head: list[int] = [token('<|im_start|>'), token('user')]
        self.picture: list[int] = [token('<|vision_start|>')] + [self.image] * CELLS + [token('<|vision_end|>')]
        self.ask: list[int] = [token('<|im_end|>'), token('<|im_start|>'), token('assistant')]
        self.end: list[int] = [token('<|im_end|>')]

    def prefix(self, frames: int) -> tuple[list[int], np.ndarray]:
        """Return the tokens before the question, and their M-RoPE positions, (3, length)."""
        ids = list(self.head)
        places = [np.tile(np.arange(2), (3, 1))]
        at = 2
        row, column = np.divmod(np.arange(CELLS), COLUMNS)
        for _ in range(frames):
            ids += self.picture
            cells = np.stack([np.zeros(CELLS, int), row, column]) + at + 1
            after = at + 1 + max(ROWS, COLUMNS)
            places += [np.full((3, 1), at), cells, np.full((3, 1), after)]
            at = after + 1
        return ids, np.concatenate(places, 1)

    def pack(
        self, frames: int, asked: list[list[TabletopQuestion]], newest: list[Things], device: str
    ) -> PackedPrompts:
        """Pack one prompt for each list of questions. newest: the things in the newest picture of each prompt."""
        head, places = self.prefix(frames)
        rows = [self._row(head, places, questions, things) for questions, things in zip(asked, newest)]
        length = max(len(row.ids) for row in rows)

        def column(arrays: list[np.ndarray], fill: int) -> torch.Tensor:
            padded = [np.pad(array, (0, length - len(array)), constant_values=fill) for array in arrays]
            return torch.from_numpy(np.stack(padded)).to(device)

        padded_positions = [np.pad(row.positions, ((0, 0), (0, length - row.positions.shape[1]))) for row in rows]
        positions = np.ascontiguousarray(np.stack(padded_positions, 1))
        return PackedPrompts(
            column([row.ids for row in rows], self.pad),
            column([row.labels for row in rows], -100),
            column([row.segments for row in rows], -1),
            column([row.kinds for row in rows], -1),
            column([row.mentions for row in rows], -1),
            column([row.relations for row in rows], -1),
            torch.from_numpy(positions).to(device),
        )

    def _row(
        self, head: list[int], places: np.ndarray, questions: list[TabletopQuestion], things: Things
    ) -> _PromptRow:
        """One prompt. head, places: tokens and positions before the questions. things: in the newest picture."""
        ids = list(head)
        labels = [-100] * len(head)
        segments = [0] * len(head)
        kinds = [-1] * len(head)
        mentions = [-1] * len(head)
        relations = [-1] * len(head)
        positions = [places]
        start = int(places.max()) + 1
        for number, question in enumerate(questions, 1):
            prompt = self.tokenizer.encode(question.text).ids + self.ask
            answer = self.tokenizer.encode(question.answer).ids + self.end
            ids += prompt + answer
            # The token before predicts the next one, so labels are shifted here already.
            labels += [-100] * (len(prompt) - 1) + answer + [-100]
            segments += [number] * (len(prompt) + len(answer))
            named = self._mentions(prompt, question.parts, things)
            listed = question.answer.split(' and ') if question.kind == 'list' and things else []
            mentions += self._coming(named + self._mentions(answer, listed, things), prompt + answer, listed, things)
            relations += self._relations(named, question, things) + [-1] * len(answer)
            kinds += [KINDS.index(question.kind)] * (len(prompt) + len(answer))
            positions.append(np.tile(start + np.arange(len(prompt) + len(answer)), (3, 1)))
        return _PromptRow(
            np.array(ids),
            np.array(labels),
            np.array(segments),
            np.array(kinds),
            np.array(mentions),
            np.array(relations),
            np.concatenate(positions, 1),
        )

    def _mentions(self, prompt: list[int], parts: Sequence[str], things: Things) -> list[int]:
        """For the last word of every part that means one thing alone, the cell of its centre; -1 elsewhere."""
        cells = [-1] * len(prompt)
        start = 0
        for part in parts:
            word = self.tokenizer.token_to_id(part.split()[-1])
            thing = scene_truth.find(part, things)
            if word in prompt[start:] and thing:
                start = prompt.index(word, start) + 1
                cells[start - 1] = self._cell(thing)
        return cells

    def _coming(self, cells: list[int], ids: list[int], listed: Sequence[str], things: Things) -> list[int]:
        """The cells, and wherever a list goes on the cell of the thing that comes next."""
        starts = [ids.index(self.ask[-1])] + [index for index, token in enumerate(ids) if token == self.word_and]
        for start, name in zip(starts, listed):
            cells[start] = self._cell(scene_truth.find(name, things))
        return cells

    @staticmethod
    def _cell(thing: tabletop.Thing) -> int:
        """The cell of a thing's centre."""
        return int(thing.y // 28) * COLUMNS + int(thing.x // 28)

    @staticmethod
    def _relations(named: list[int], question: TabletopQuestion, things: Things) -> list[int]:
        """At the second of two compared things: 9 * holds + 3 * across + down, which tell where the first one is.

        holds: 1 where the answer is yes. across and down: 0 too close to call, 1 left or above, 2 right or below.
        """
        marks = [-1] * len(named)
        places = [index for index, cell in enumerate(named) if cell >= 0]
        if question.kind == 'relation' and len(places) == 2:
            one, other = (scene_truth.find(part, things) for part in question.parts)
            across, down = (
                0 if abs(gap) < scene_truth.RELATION_MARGIN else 1 if gap < 0 else 2
                for gap in (one.x - other.x, one.y - other.y)
            )
            marks[places[1]] = 9 * (question.answer == 'yes') + 3 * across + down
        return marks


def ask_about(
    rng: np.random.Generator,
    scenes: list[Things],
    wanted: int,
    window: bool,
    list_share: float,
    shares: dict[str, float],
) -> list[TabletopQuestion]:
    """Return `wanted` questions about the newest picture; with `window` also about what changed since the first.

    list_share: of the prompts that ask for a list. shares: how often each of SINGLE_KINDS is asked beside that.
    """
    proposed: list[TabletopQuestion | None] = []
    if rng.random() < list_share:
        proposed.append(single_question(rng, scenes[-1], 'list'))
    if window:
        proposed += [
            window_question(rng, scenes[0], scenes[-1], kind)
            for kind in (*words.WINDOW_KINDS, 'appeared', 'left', 'left', 'left', 'moved')
        ]
    asked = [question for question in proposed if question]
    weights = np.array([shares[kind] for kind in words.SINGLE_KINDS])
    for _ in range(3 * wanted):
        if len(asked) >= wanted:
            break
        kind = words.SINGLE_KINDS[rng.choice(len(weights), p=weights / weights.sum())]
        question = single_question(rng, scenes[-1], kind)
        if question and not (question.topic in _LEARNT and rng.random() < 0.7):
            asked.append(question)
    return asked


def draw_window(rng: np.random.Generator, windows: float) -> int:
    """Draw how many pictures a prompt has: one, or for a share of `windows` 2 to 4, and in some of these 5 to 8."""
    if rng.random() >= windows:
        return 1
    return int(rng.integers(2, 5)) if rng.random() < 0.85 else int(rng.integers(5, 9))
