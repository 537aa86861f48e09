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

"""The history of keyframes before the live frame: which frames are kept, and how a full history is shortened.

A live frame that becomes a keyframe stays where it was prefilled, and the next live frame is appended behind it. At the
limit (of keyframes, of memory or of the model's context) the history rolls over: a second state with the newer half of
the keyframes is computed, frame by frame while the model is idle. Until it is complete, the old state answers.
"""

import logging
import time
from collections.abc import Callable

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Check, Vlm
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.state import State

_log = logging.getLogger(__name__)

# Share of the model's context that frames may use. The rest is for questions and answers.
CONTEXT_SHARE = 0.75


class History:
    """The history of one camera. It holds a second state only during a rollover.

    spent_ms: time spent on the last rollover so far.
    """

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate], camera: str) -> None:
        """Start without a rollover."""
        self._vlm, self._template_for, self._camera = vlm, template_for, camera
        self._next: State | None = None
        self._waiting: tuple[EncodedFrame, ...] = ()
        self._can_grow: bool | None = None
        self._at_once = False  # computing a second state has failed: shorten the history in place
        self._logged_room: int | None = None
        self.spent_ms = 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes of the second state, without its pixels, which the old state holds too; 0 without a rollover."""
        following = self._next  # another thread may ask for it while the model's thread ends the rollover
        return following.array_bytes if following else 0

    @property
    def left(self) -> tuple[int, int]:
        """Number of frames that a rollover has still to compute, and that it has computed; 0 without one."""
        return (len(self._waiting) + 1, len(self._next.frames)) if self._next else (0, 0)

    def can_step(self, state: State | None) -> bool:
        """Whether `step` has work now. The last step needs a live frame in the old state."""
        return self._next is not None and state is not None and (bool(self._waiting) or state.has_live)

    def is_due(self, state: State, config: Config) -> bool:
        """Whether the next `refresh` keeps the live frame as a keyframe."""
        return self._room(state, config) > 0 and self._is_due(state, False, config)

    def expected(self, state: State, scene_changed: bool, config: Config) -> tuple[int, int]:
        """How many slots the next `refresh` prefills, and how many it keeps before them.

        The first is at most so many, unless a larger frame leaves less room for the others.
        """
        room, keyframes = self._room(state, config), len(state.frames) - state.has_live
        if keyframes > room:
            return room + 1, 0
        is_due = room > 0 and self._is_due(state, scene_changed, config) and state.live.exact
        if is_due and keyframes == room and self._is_cut_at_once(state, config):
            return 1 + max(1, room // 2), 0
        return 1, keyframes

    def stop(self) -> None:
        """Cancel the rollover."""
        self._next, self._waiting = None, ()

    def fail(self) -> None:
        """Cancel the rollover. From now on, shorten the history in place of the old state, not beside it."""
        self.stop()
        self._at_once = True

    def refresh(self, state: State, encoded: EncodedFrame, scene_changed: bool, config: Config, check: Check) -> int:
        """Put a new live frame behind the history, where it waits. The old one becomes a keyframe when one is due.

        A patched live frame never does, because a keyframe stays: the whole frame that replaces it may become one next.
        Returns the number of prompt tokens computed: one slot, unless the history must be cut at once.
        `check` may raise between two chunks. Then the state has no live frame or still the old one, and can be
        refreshed again.
        """
        room, keyframes = self._room(state, config), len(state.frames) - state.has_live
        is_due = (
            room > 0
            and self._is_due(state, scene_changed, config)
            and state.live.exact
            and encoded.frame is not state.live.frame
        )  # the same frame again does not become a keyframe
        if keyframes > room:
            return self._cut(state, state.frames[:keyframes], room, encoded, check)
        if is_due and keyframes == room:
            kept = max(1, room // 2)
            if self._is_cut_at_once(state, config):
                return self._cut(state, state.frames, kept, encoded, check)
            self._next, self._waiting, self.spent_ms = State(self._vlm, self._template_for), state.frames[-kept:], 0.0
            is_due = False
        if not is_due:
            state.drop_live()
        paid = state.append(encoded, check, later=True)
        keyframes = len(state.frames) - 1
        if keyframes > (room := self._room(state, config)):
            paid += self._cut(state, state.frames[:-1], room, encoded, check)
        return paid

    def step(self, state: State, check: Check) -> State | None:
        """Compute one frame of the second state. Returns that state once the live frame is in it too.

        `check` may raise between two chunks. The step can then be repeated.
        """
        started = time.perf_counter()
        newer = self._next
        newer.spare_bytes = state.spare_bytes
        newer.append(self._waiting[0] if self._waiting else state.live, check)
        self.spent_ms += 1e3 * (time.perf_counter() - started)
        if self._waiting:
            self._waiting = self._waiting[1:]
            return None
        self.stop()
        return newer

    @staticmethod
    def spare_bytes(state: State, config: Config) -> float:
        """Bytes that are left for checkpoints in the live slot, beside the state and a second one.

        The second one is that of a rollover or of an audit.
        """
        return 1e6 * config.max_cache_mb - 2 * (state.held_bytes - state.checkpoint_bytes)

    def _is_due(self, state: State, scene_changed: bool, config: Config) -> bool:
        """Whether the live frame should become a keyframe."""
        if not state.has_live or self._next or not self._grows():
            return False
        if len(state.frames) == 1 or scene_changed:
            return True
        age_ns = state.live.frame.stamp_ns - state.frames[-2].frame.stamp_ns
        return age_ns >= 1e9 * config.keyframe_interval_s

    def _is_cut_at_once(self, state: State, config: Config) -> bool:
        """Whether a full history is shortened in place, because there is no upkeep or no memory for a second state."""
        frames = len(state.frames) + max(1, self._room(state, config) // 2) + 1
        return self._at_once or config.upkeep_share == 0 or self._needed_mb(state, frames) > config.max_cache_mb

    def _grows(self) -> bool:
        """Whether the chat template puts each frame directly behind the previous one."""
        if self._can_grow is None:
            one, reason = self._template_for(1), 'it does not put a second frame directly behind the first'
            try:
                self._can_grow = one.of(2).extends(one)
            except ModelError as error:
                self._can_grow, reason = False, str(error).rstrip('.')
            if not self._can_grow:
                _log.warning(
                    "Camera '%s': no history is kept, because of the model's chat template: %s.", self._camera, reason
                )
        return self._can_grow

    def _room(self, state: State, config: Config) -> int:
        """Largest number of keyframes: history_frames, limited by the estimated use of memory and context."""
        count, limit = len(state.frames), config.history_frames
        if count == 0 or limit == 0:
            return limit
        frame_mb, vision_mb = self._frame_and_vision_mb(state)
        fitting = int((config.max_cache_mb - vision_mb) / frame_mb) - 1
        if self._vlm.context is not None:
            fitting = min(fitting, int(CONTEXT_SHARE * self._vlm.context * count / state.tokens) - 1)
        room = max(0, min(limit, fitting))
        if room < limit and room != self._logged_room:
            self._logged_room = room
            _log.warning(
                "Camera '%s': only %d of %d keyframes (history_frames) fit. A frame takes about %.1f MB of "
                "max_cache_mb %d, and %d tokens of the model's context.",
                self._camera,
                room,
                limit,
                self._needed_mb(state, 1),
                config.max_cache_mb,
                state.tokens // count,
            )
        return room

    def _needed_mb(self, state: State, frames: int) -> float:
        """Estimated memory of this many frames."""
        frame_mb, vision_mb = self._frame_and_vision_mb(state)
        return frame_mb * frames + vision_mb

    @staticmethod
    def _frame_and_vision_mb(state: State) -> tuple[float, float]:
        """Memory of a frame, from the held frames, and of the vision state, which only the live frame has.

        Without checkpoints: there are fewer of them where memory is short, see `spare_bytes`.
        """
        vision = state.live.nbytes - state.live.features.nbytes if state.has_live else 0
        return (state.held_bytes - vision - state.checkpoint_bytes) / len(state.frames) / 1e6, vision / 1e6

    def _cut(
        self, state: State, frames: tuple[EncodedFrame, ...], most: int, encoded: EncodedFrame, check: Check
    ) -> int:
        """Recompute the state in place with the newest `most` of the frames as history. Returns the tokens computed."""
        self.stop()
        kept = frames[len(frames) - min(most, len(frames)) :]
        state.clear()
        try:
            return sum(state.append(frame, check, later=True) for frame in (*kept, encoded))
        except BaseException:
            state.clear()  # an incomplete state has a keyframe in the live slot
            raise
