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

"""Milliseconds of each stage on this machine: medians of a few runs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from vlm_reuse_node.check.asking import Asker
from vlm_reuse_node.check.levels import STEADY
from vlm_reuse_node.check.questions import TEXT_TOKENS
from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import State, build

PERCENT = (1, 4, 16, 25)
RUNS, LONGEST_S = 5, 6.0
LOOK, IMAGE, VISION, SLOT, QUESTION, TOKEN = 'look', 'image processor', 'vision', 'slot', 'question', 'token'
FRAME_QUESTION, COLD, PATCH_QUESTION = 'frame and question', 'cold question', 'patch and question'


@dataclass(frozen=True)
class Stage:
    """The time of one stage. amount: of what, such as '64 cells'; ''. passes: calls of the language model."""

    name: str
    ms: float
    amount: str = ''
    passes: int = 0
    about: str = ''


class Stages:
    """Measures the stages of one model. choice: the question with choices that is timed. found: so far."""

    def __init__(self, vlm: Vlm, frames: Sequence[Frame], questions: Sequence[Question]) -> None:
        """Take pictures, and questions with choices and without."""
        self._vlm, self._frames = vlm, frames
        self.choice = next(question for question in questions if question.choices)
        self._text = next(question for question in questions if not question.choices and not question.json_schema)
        self._template = vlm.template('', 1)
        self._answerer = Answerer(vlm, self._template)
        self.found: list[Stage] = []

    def ms(self, name: str) -> float:
        """Milliseconds of the first stage of this name; 0 when it was not measured."""
        return next((stage.ms for stage in self.found if stage.name == name), 0.0)

    def measure(self) -> list[Stage]:
        """Measure all stages, the cheapest first."""
        frame = self._frames[0]
        seen = EncodedFrame.see(self._vlm, frame)
        cells, state = seen.grid.cells, self._build(seen)
        tokenized = self._answerer.tokenize(self.choice, STEADY)
        blocks = tokenized.blocks()
        text = self._answerer.tokenize(self._text, STEADY)

        self._look()
        self._add(IMAGE, lambda: self._vlm.family.prepare(frame.rgb), f'{cells} cells', 'pixel values')
        whole = self._time(lambda: self._vlm.see(frame.rgb))[0]
        vision = max(0.0, whole - self.ms(IMAGE))
        self.found.append(Stage(VISION, vision, f'{cells} cells', about='a whole picture'))
        self._cells(frame)

        def slot() -> None:
            state.drop_live()
            state.append(seen)

        def read() -> None:
            state.read(blocks)
            state.restore()

        def both() -> None:
            state.drop_live()
            state.append(seen, later=True)
            read()

        self._add(SLOT, slot, f'{state.tokens} tokens', 'prefill of a picture')
        self._add(QUESTION, read, f'{tokenized.cost} tokens', 'with its choices')
        self._add(FRAME_QUESTION, both, f'{state.tokens + tokenized.cost} tokens', 'both together')
        self._patches(frame, blocks)
        self._decode(state, text.tokens)
        self._cold()
        return self.found

    def _look(self) -> None:
        session = SceneSession(self._vlm, STEADY, measures_time=False)
        session.observe(self._frames[0])
        frames = iter(
            Frame(self._frames[number % 2].rgb, self._frames[-1].stamp_ns + number) for number in range(1, 1000)
        )
        height, width = self._frames[0].size
        self._add(LOOK, lambda: session.look(next(frames)), f'{width} x {height}', 'what changed; no model')

    def _cells(self, frame: Frame) -> None:
        """The vision tower on some cells, where the family can."""
        if not self._vlm.family.encodes_cells:
            return
        older = EncodedFrame.see(self._vlm, frame, keep=True)
        for cells in _shares(older.grid.cells):
            self._add(
                VISION, lambda: older.with_cells(self._vlm, frame, cells), _cells_text(cells), 'cells, and processor'
            )

    def _patches(self, frame: Frame, blocks: list) -> None:
        """Patch and question together, where the model can."""
        if not self._vlm.family.encodes_cells:
            return
        state = self._build(EncodedFrame.see(self._vlm, frame, keep=True))
        if not state.can_rewrite:
            return
        for cells in _shares(state.live.grid.cells):

            def patch() -> None:
                state.rewrite(state.live.with_cells(self._vlm, frame, cells), cells, later=True)
                state.read(blocks)
                state.restore()

            self._add(PATCH_QUESTION, patch, _cells_text(cells), 'vision and one pass')

    def _decode(self, state: State, question: list[int]) -> None:
        """The mean of a decoded text's tokens."""
        vlm, times = self._vlm, []
        for _ in range(3):
            logits = vlm.read(state.cache, question, state.next_position)
            started_s = time.perf_counter()
            ids = vlm.decode(state.cache, logits, state.next_position + len(question), TEXT_TOKENS)
            times.append(1e3 * (time.perf_counter() - started_s) / max(1, len(ids)))
            state.restore()
        self.found.append(Stage(TOKEN, median(times), '1 token', 1, 'decoding a text'))

    def _cold(self) -> None:
        session = SceneSession(self._vlm, STEADY, measures_time=False)
        asker = Asker(self._vlm, session)
        session.observe(self._frames[0])
        answers = []

        def cold() -> None:
            answers.append(asker.session.ask_cold(self.choice, now_ns=self._frames[0].stamp_ns))

        self._add(COLD, cold, f'{self._build_tokens(session)} tokens', 'all from nothing')
        if not answers[-1].text:
            raise InvalidRequestError(answers[-1].message)

    def _build_tokens(self, session: SceneSession) -> int:
        return session.state.tokens + self._answerer.tokenize(self.choice, STEADY).cost

    def _build(self, seen: EncodedFrame) -> State:
        return build(self._vlm, lambda frames: self._template, [seen])

    def _add(self, name: str, call: Callable[[], object], amount: str, about: str) -> None:
        ms, passes = self._time(call)
        self.found.append(Stage(name, ms, amount, passes, about))

    def _time(self, call: Callable[[], object]) -> tuple[float, int]:
        """Median milliseconds of some runs, after one that plans kernels; and the passes of one."""
        before = self._vlm.meter.done.passes
        call()
        passes = self._vlm.meter.done.passes - before
        times: list[float] = []
        began_s = time.perf_counter()
        while len(times) < RUNS and (not times or time.perf_counter() - began_s < LONGEST_S):
            started_s = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - started_s))
        return median(times), passes


def _shares(total: int) -> list[np.ndarray]:
    """The cells of each share of a picture, at least one, each number once."""
    counts = dict.fromkeys(max(1, round(percent * total / 100)) for percent in PERCENT)
    return [np.arange(count) for count in counts]


def _cells_text(cells: np.ndarray) -> str:
    return f'{len(cells)} cell{"s" * (len(cells) > 1)}'
