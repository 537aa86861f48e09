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

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import mlx.core as mx
from mlx_vlm.models.cache import RotatingKVCache
from timing import timed
from tiny_model import picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import State

QUESTION_TOKENS = 12  # behind the snapshot
ANSWER_TOKENS = 8
QUESTION = 'what color is the square on the left ?'.split()
OTHER = 'how many red or blue objects do you see ?'.split()
SIDE_PX = 240  # of a picture
FEW_FRAMES = 2  # up to so many pictures cold answers are repeated
FEW_RUNS = 3
NEW_PICTURES = 12  # most of them tried until one changes the answer


@dataclass(frozen=True)
class FollowupCase:
    """A session that has seen its pictures, and the two texts it is asked in turn."""

    vlm: Vlm
    session: SceneSession
    question: str
    other: str

    @property
    def state(self) -> Any:
        """The state that the session keeps."""
        return self.session._refresher.state

    @property
    def cold_runs(self) -> int:
        """How often a cold answer is timed: once where it takes long."""
        return FEW_RUNS if len(self.state.frames) <= FEW_FRAMES else 1

    def ask(self, text: str, choices: tuple[str, ...] = (), cold: bool = False) -> Answer:
        """Answer warm or cold. Raises RuntimeError when there is no answer of the expected length."""
        ask = self.session.ask_cold if cold else self.session.ask
        answer = ask(Question(text, choices, max_tokens=ANSWER_TOKENS), now_ns=self.newest_ns)
        if answer.status != Status.OK or (not choices and answer.tokens_generated != ANSWER_TOKENS):
            raise RuntimeError(f'{answer.status}, {answer.tokens_generated} tokens: {answer.message}')
        return answer

    @property
    def newest_ns(self) -> int:
        """Stamp of the newest picture. Raises RuntimeError when there is none."""
        if self.session.newest is None:
            raise RuntimeError('The session has seen no picture.')
        return self.session.newest.stamp_ns


class ColdBuildTimer:
    """Times how a session computes the states of its cold answers, and keeps the newest of these states.

    times_ms: of each. newest: None before the first.
    """

    def __init__(self, session: SceneSession) -> None:
        """Replace the session's own method."""
        self.times_ms: list[float] = []
        self.newest: State | None = None
        self._build: Callable[..., State] = session._responder._cold_twin
        setattr(session._responder, '_cold_twin', self)

    def __call__(self, *arguments: Any) -> State:
        """Compute a state."""
        ms, state = timed(lambda: self._build(*arguments))
        self.times_ms.append(ms)
        self.newest = state
        return state


def make_case(vlm: Vlm, frames: int) -> FollowupCase:
    """Return a session that keeps so many pictures, with its texts."""
    session = SceneSession(vlm, Config(history_frames=frames - 1, keyframe_interval_s=0.0, timeout_s=3600.0))
    for number in range(frames):
        session.observe(picture(number, float(number), size=(SIDE_PX, SIDE_PX)))
    case = FollowupCase(vlm, session, _fitted(vlm, QUESTION), _fitted(vlm, OTHER))
    if len(case.state.frames) != frames:
        raise RuntimeError(f'The session keeps {len(case.state.frames)} pictures; expected {frames}.')
    return case


def build_on_grid(case: FollowupCase, tokens: int, features: list[mx.array]) -> State:
    """Return the state of the kept pictures with these features, prefilled in chunks of at most so many tokens."""
    encoded = [replace(each, features=own, vision=None) for each, own in zip(case.state.frames, features)]
    usual = vlms.PREFILL_CHUNK
    vlms.PREFILL_CHUNK = tokens
    try:
        return states.build(case.vlm, case.session._responder._template_for, encoded)
    finally:
        vlms.PREFILL_CHUNK = usual


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


def replace_newest(case: FollowupCase, runs: int) -> tuple[float, bool]:
    """Put new pictures in the newest one's place until one changes the answer to `other`.

    Returns the median time of a refresh at level `frame`, over at least so many runs, and whether the last of these
    pictures changed the answer.
    """
    old = case.ask(case.other).token_ids
    case.session.config = replace(case.session.config, history_frames=0)  # no more keyframes: each takes the place
    stamp_s = case.newest_ns / 1e9
    times = []
    changed = False
    for number in range(1, NEW_PICTURES + 1):
        new = picture(1000 + number, stamp_s + number, size=(SIDE_PX, SIDE_PX))
        ms, refresh = timed(lambda: case.session.observe(new))
        if refresh.level != Level.FRAME:
            raise RuntimeError(f'{refresh.level}, {refresh.reason}; expected {Level.FRAME}.')
        times.append(ms)
        changed = case.ask(case.other).token_ids != old
        if changed and len(times) >= runs:
            break
    return median(times), changed


def _fitted(vlm: Vlm, words: list[str]) -> str:
    """As many of the words as make a question of QUESTION_TOKENS tokens behind the snapshot."""
    template = vlm.template('', 1)
    for count in range(len(words), 0, -1):
        text = ' '.join(words[:count])
        if len(template.question(text)) == QUESTION_TOKENS:
            return text
    raise RuntimeError(f'No part of {words} makes a question of {QUESTION_TOKENS} tokens.')
