"""Prompts to learn from: questions about a story's newest picture, and their answers, many behind the same pictures."""

import numpy as np
import torch

from tabletop_training.pictures import CELLS, COLUMNS, ROWS
from vlm_reuse_node.demo import questions, scene_truth, words

KINDS = (*words.SINGLE_KINDS, *words.WINDOW_KINDS)
# Left of and right of are learnt last but one, so they are asked most until then; counts and lists are learnt last.
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
# Learnt long before left of and right of, which are asked more often for it.
_LEARNT = ('above', 'below')


class Prompts:
    """Questions and answers packed behind their pictures, many to a prompt."""

    def __init__(self, tokenizer):
        self.tokenizer, token = tokenizer, tokenizer.token_to_id
        self.image, self.pad = token('<|image_pad|>'), token('<|endoftext|>')
        self.word_and = token('and')
        self.head = [token('<|im_start|>'), token('user')]
        self.picture = [token('<|vision_start|>')] + [self.image] * CELLS + [token('<|vision_end|>')]
        self.ask, self.end = [token('<|im_end|>'), token('<|im_start|>'), token('assistant')], [token('<|im_end|>')]

    def prefix(self, frames: int) -> tuple[list[int], np.ndarray]:
        """Tokens before the question and their M-RoPE positions, (3, length)."""
        ids, places, at = list(self.head), [np.tile(np.arange(2), (3, 1))], 2
        row, column = np.divmod(np.arange(CELLS), COLUMNS)
        for _ in range(frames):
            ids += self.picture
            cells = np.stack([np.zeros(CELLS, int), row, column]) + at + 1
            after = at + 1 + max(ROWS, COLUMNS)
            places += [np.full((3, 1), at), cells, np.full((3, 1), after)]
            at = after + 1
        return ids, np.concatenate(places, 1)

    def pack(self, frames: int, asked: list[list], newest: list[tuple], device):
        """Tensors (batch, length): ids, labels (-100: not scored), segments (0: pictures), kinds, mentions, relations.

        Last, positions: (3, batch, length). newest: the things in the newest picture of each prompt.
        """
        head, places = self.prefix(frames)
        rows = [self._row(head, places, group, things) for group, things in zip(asked, newest)]
        length = max(len(row[0]) for row in rows)
        fill = (self.pad, -100, -1, -1, -1, -1)
        flat = [
            np.stack([np.pad(row[i], (0, length - len(row[i])), constant_values=fill[i]) for row in rows])
            for i in range(6)
        ]
        position = np.stack([np.pad(row[6], ((0, 0), (0, length - row[6].shape[1]))) for row in rows], 1)
        return [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (*flat, position)]

    def _row(self, head, places, group, things):
        ids, labels, segments, kinds = list(head), [-100] * len(head), [0] * len(head), [-1] * len(head)
        mentions, relations = [-1] * len(head), [-1] * len(head)
        positions, start = [places], int(places.max()) + 1
        for number, question in enumerate(group, 1):
            prompt = self.tokenizer.encode(question.text).ids + self.ask
            answer = self.tokenizer.encode(question.answer).ids + self.end
            ids += prompt + answer
            # The token before predicts the next one, so labels are shifted here already.
            labels += [-100] * (len(prompt) - 1) + answer + [-100]
            segments += [number] * (len(prompt) + len(answer))
            named = self._mentions(prompt, question.parts, things)
            listed = question.answer.split(' and ') if question.kind == 'list' and things else ()
            mentions += self._coming(named + self._mentions(answer, listed, things), prompt + answer, listed, things)
            relations += self._relations(named, question, things) + [-1] * len(answer)
            kinds += [KINDS.index(question.kind)] * (len(prompt) + len(answer))
            positions.append(np.tile(start + np.arange(len(prompt) + len(answer)), (3, 1)))
        return (
            *(np.array(row) for row in (ids, labels, segments, kinds, mentions, relations)),
            np.concatenate(positions, 1),
        )

    def _mentions(self, prompt, parts, things) -> list[int]:
        """For the last word of every part that means one thing alone, the cell of its centre; -1 elsewhere."""
        cells, start = [-1] * len(prompt), 0
        for part in parts:
            word = self.tokenizer.token_to_id(part.split()[-1])
            thing = scene_truth.find(part, things)
            if word in prompt[start:] and thing:
                start = prompt.index(word, start) + 1
                cells[start - 1] = self._cell(thing)
        return cells

    def _coming(self, cells, ids, listed, things) -> list[int]:
        """The cells, with that of the thing that comes next wherever a list goes on."""
        starts = [ids.index(self.ask[-1])] + [index for index, token in enumerate(ids) if token == self.word_and]
        for start, name in zip(starts, listed):
            cells[start] = self._cell(scene_truth.find(name, things))
        return cells

    @staticmethod
    def _cell(thing):
        """The cell of a thing's centre."""
        return int(thing.y // 28) * COLUMNS + int(thing.x // 28)

    @staticmethod
    def _relations(named, question, things) -> list[int]:
        """At the second of two things that are compared: 9 * holds + 3 * across + down, of the first seen from there.

        holds: 1 where the answer is yes. across and down: 0 too close to call, 1 left or above, 2 right or below.
        """
        marks, places = [-1] * len(named), [index for index, cell in enumerate(named) if cell >= 0]
        if question.kind == 'relation' and len(places) == 2:
            one, other = (scene_truth.find(part, things) for part in question.parts)
            across, down = (
                0 if abs(gap) < scene_truth.RELATION_MARGIN else 1 if gap < 0 else 2
                for gap in (one.x - other.x, one.y - other.y)
            )
            marks[places[1]] = 9 * (question.answer == 'yes') + 3 * across + down
        return marks


def ask_about(rng, scenes, wanted: int, window: bool, list_share: float, shares: dict[str, float]) -> list:
    """`wanted` questions about the newest picture, among them what changed since the first where `window`.

    list_share: of the prompts that ask for a list. shares: how often each kind is asked beside that, of SINGLE_KINDS.
    """
    asked = []
    if rng.random() < list_share:
        asked += [questions.single_question(rng, scenes[-1], 'list')]
    if window:
        asked += [
            questions.window_question(rng, scenes[0], scenes[-1], kind)
            for kind in (*words.WINDOW_KINDS, 'appeared', 'left', 'left', 'left', 'moved')
        ]
    asked = [question for question in asked if question]
    weights = np.array([shares[kind] for kind in words.SINGLE_KINDS])
    for _ in range(3 * wanted):
        if len(asked) >= wanted:
            break
        kind = words.SINGLE_KINDS[rng.choice(len(weights), p=weights / weights.sum())]
        question = questions.single_question(rng, scenes[-1], kind)
        if question and not (question.topic in _LEARNT and rng.random() < 0.7):
            asked.append(question)
    return asked


def draw_window(rng, windows: float) -> int:
    """How many pictures a prompt has: one, or for a share of `windows` 2 to 4, some 5 to 8."""
    if rng.random() >= windows:
        return 1
    return int(rng.integers(2, 5)) if rng.random() < 0.85 else int(rng.integers(5, 9))
