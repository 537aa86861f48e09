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


"""What a follow-up question is measured on: a session that keeps some pictures, and the texts it is asked."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_vlm.models.cache import RotatingKVCache
from shapes import Shape
from timing import Run, run, timed
from tiny_model import WORDS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import kv_cache
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Vlm, go_on
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.answerer import Answerer, TokenizedQuestion
from vlm_reuse_node.session.case import Case
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import State
from vlm_reuse_node.session.turn import Turn

ANSWER_TOKENS = 8
CHOICES = ('red', 'green', 'blue', 'yellow')
QUESTION = 'what color is the square on the left ?'.split()
OTHER = 'how many red or blue objects do you see ?'.split()
SIDE_PX = 240  # of a picture
FEW_FRAMES = 2  # up to so many pictures cold answers are repeated
FEW_RUNS = 3
NEW_PICTURES = 12  # most of them tried until one changes the answer
SEED = 0


@dataclass(frozen=True)
class FollowupCase:
    """A session that has seen its pictures, and the texts it is asked.

    question, other: two texts of `question_tokens` tokens behind the snapshot. chance: of everything that is random.
    template: counts tokens in place of the session's own, which must not know a text before it is asked.
    asked: other texts so far.
    """

    vlm: Vlm
    session: SceneSession
    template: PromptTemplate
    question_tokens: int
    question: str
    other: str
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    asked: set[str] = field(default_factory=set)

    @property
    def state(self) -> Any:
        """The state that the session keeps."""
        return self.session._refresher.state

    @property
    def answerer(self) -> Answerer:
        """The answerer of the session."""
        return self.session._responder._answerer

    @property
    def cold_runs(self) -> int:
        """How often a cold answer is timed: once where it takes long."""
        return FEW_RUNS if len(self.state.frames) <= FEW_FRAMES else 1

    @property
    def newest(self) -> Frame:
        """The newest picture. Raises RuntimeError when there is none."""
        if self.session.newest is None:
            raise RuntimeError('The session has seen no picture.')
        return self.session.newest

    def fresh(self) -> str:
        """Return a text of as many tokens as the others that was not asked before."""
        words = [word for word in WORDS if word.isalpha()]
        while True:
            text = ' '.join(self.chance.sample(words, len(self.question.split())))
            if text not in self.asked and len(self.template.question(text)) == self.question_tokens:
                self.asked.add(text)
                return text

    def next_picture(self) -> Frame:
        """Return a picture that the session has not seen, newer than the newest."""
        seed = self.chance.randrange(1000, 1_000_000)
        return picture(seed, self.newest.stamp_ns / 1e9 + 1, size=(SIDE_PX, SIDE_PX))

    def tokenized(self, text: str, choices: tuple[str, ...] = ()) -> TokenizedQuestion:
        """Return a question in tokens."""
        return self.answerer.tokenize(Question(text, choices, max_tokens=ANSWER_TOKENS), self.session.config)

    def run(self, call: Callable[[], Any]) -> Run:
        """Time a call."""
        return run(self.vlm, call)

    def ask(
        self,
        text: str,
        choices: tuple[str, ...] = (),
        cold: bool = False,
        frame: Frame | None = None,
        level: Level | None = None,
    ) -> Answer:
        """Answer warm or cold.

        frame: a newer picture that the session has not looked at yet. level: the expected one; None: any.
        Raises RuntimeError when there is no such answer, or none of the expected length.
        """
        ask = self.session.ask_cold if cold else self.session.ask
        now_ns = (frame or self.newest).stamp_ns
        answer = ask(Question(text, choices, max_tokens=ANSWER_TOKENS), now_ns=now_ns, newest=lambda: frame)
        self.check(answer, level)
        if not choices and len(answer.token_ids) != ANSWER_TOKENS:
            raise RuntimeError(f'{len(answer.token_ids)} tokens; expected {ANSWER_TOKENS}: {answer.message}')
        return answer

    def ask_together(self, texts: list[str]) -> list[Answer]:
        """Answer several questions with choices at once. Raises RuntimeError when one has no answer."""
        cases = [Case(Question(text, CHOICES), self.newest.stamp_ns, Turn()) for text in texts]
        self.session.ask_together(cases)
        for case in cases:
            self.check(case.answer)
        return [case.answer for case in cases]

    def ask_in_turn(self, text: str, frame: Frame | None = None, level: Level | None = None) -> tuple[float, ...]:
        """Answer a question with choices with one pass for each step; return the probabilities of the choices.

        The steps: what changed in a newer frame, if there is one, the question, and the choices.
        """
        if frame is not None and (record := self.session.observe(frame)) and record.level != level:
            raise RuntimeError(f'{record.level}, {record.reason}; expected {level}.')
        return read_in_turn(self.vlm, self.state, self.tokenized(text, CHOICES))

    def check(self, answer: Answer, level: Level | None = None) -> None:
        """Raise RuntimeError when there is no answer, or when it waited for a refresh of another level."""
        if answer.status != Status.OK:
            raise RuntimeError(f'{answer.status}: {answer.message}')
        if level is not None and answer.level != level:
            raise RuntimeError(f'The answer waited for level {answer.level}; expected {level}.')


class ColdBuildTimer:
    """Times how a session computes the states of its cold answers, and keeps the newest of these states.

    runs: of each. newest: None before the first.
    """

    def __init__(self, session: SceneSession) -> None:
        """Replace the session's own method."""
        self._vlm = session._vlm
        self.runs: list[Run] = []
        self.newest: State | None = None
        self._build: Callable[..., State] = session._responder._cold_twin
        setattr(session._responder, '_cold_twin', self)

    def __call__(self, *arguments: Any) -> State:
        """Compute a state."""

        def build() -> State:
            state = self._build(*arguments)
            state.settle()
            return state

        self.runs.append(run(self._vlm, build))
        self.newest = self.runs[-1].result
        return self.newest


def make_case(vlm: Vlm, shape: Shape, frames: int) -> FollowupCase:
    """Return a session that keeps so many pictures, with its texts."""
    # Credit must not decide what is done: how much there is depends on the arms before.
    config = Config(history_frames=frames - 1, keyframe_interval_s=0.0, timeout_s=3600.0, upkeep_share=1000.0)
    session = SceneSession(vlm, config, measures_time=False)
    for number in range(frames):
        session.observe(picture(number, float(number), size=(SIDE_PX, SIDE_PX)))
    template = vlm.template('', 1)
    question, other = (_fitted(template, words, shape.question_tokens) for words in (QUESTION, OTHER))
    case = FollowupCase(vlm, session, template, shape.question_tokens, question, other)
    check_frames(case, frames)
    session.config = config.with_values(keyframe_interval_s=3600.0)  # a new picture takes the newest one's place
    return case


def check_frames(case: FollowupCase, frames: int) -> None:
    """Raise RuntimeError when the session keeps another number of pictures."""
    if len(case.state.frames) != frames:
        raise RuntimeError(f'The session keeps {len(case.state.frames)} pictures; expected {frames}.')


def read_in_turn(vlm: Vlm, state: State, tokenized: TokenizedQuestion) -> tuple[float, ...]:
    """Read what waits, the question and the choices, each in a pass of its own; return the choices' probabilities."""
    state.settle()
    (end,) = state.read(tokenized.blocks()[:1], stay=1).logits
    choices = [block._replace(parent=-1) for block in tokenized.blocks()[1:]]
    start = state.next_position + len(tokenized.tokens)
    logits = state._passes.read(state.cache, None, choices, start, 0, None, go_on).logits
    state.restore()
    return vlm.shares(end, list(zip(tokenized.choices, logits)))


def state_bytes(state: State) -> dict[str, int]:
    """Return the bytes that a state holds, and those that its tokens need."""
    needed = rings = 0
    for entry in state.cache or ():
        is_ring = type(entry) is RotatingKVCache
        rows = min(entry.offset, entry.max_size) if is_ring else entry.offset
        size = (entry.keys[:, :, :1].nbytes + entry.values[:, :, :1].nbytes) * rows
        needed += size
        rings += size if is_ring else 0
    features = sum(each.features.nbytes for each in state.frames)
    return {
        'held_bytes': state.held_bytes - features,
        'needed_bytes': needed,
        'ring_bytes': rings,
        'features_bytes': features,
    }


def snapshot_restore_ms(case: FollowupCase) -> float:
    """Return the milliseconds of taking a snapshot and, once a question has run behind it, of going back."""
    vlm, state = case.vlm, case.state
    take_ms, snapshot = timed(lambda: kv_cache.take(state.cache))
    ids = case.tokenized(case.question).tokens
    vlm.run(state.cache, ids, vlm.family.text_positions(state.next_position, len(ids)))
    restore_ms, _ = timed(lambda: kv_cache.restore(state.cache, snapshot))
    return take_ms + restore_ms


def replace_newest(case: FollowupCase, runs: int) -> tuple[list[Run], bool]:
    """Put new pictures in the newest one's place until one changes the answer to `other`.

    Returns the runs of refreshes at level `frame`, at least so many, and whether the last of these pictures changed the
    answer.
    """
    frames = len(case.state.frames)
    old = case.ask(case.other).token_ids
    times: list[Run] = []
    changed = False
    for _ in range(NEW_PICTURES):
        new = case.next_picture()
        times.append(case.run(lambda: case.session.observe(new)))
        refresh = times[-1].result
        if refresh.level != Level.FRAME:
            raise RuntimeError(f'{refresh.level}, {refresh.reason}; expected {Level.FRAME}.')
        changed = case.ask(case.other).token_ids != old
        if changed and len(times) >= runs:
            break
    check_frames(case, frames)
    return times, changed


def _fitted(template: PromptTemplate, words: list[str], tokens: int) -> str:
    """As many of the words as make a question of so many tokens behind the snapshot."""
    for count in range(len(words), 0, -1):
        text = ' '.join(words[:count])
        if len(template.question(text)) == tokens:
            return text
    raise RuntimeError(f'No part of {words} makes a question of {tokens} tokens.')
