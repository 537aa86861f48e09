"""Keyframes of the past, before the live frame: which are kept, and how a history that is full gets shorter.

A frame that has become a keyframe is never computed again: it stays where it was prefilled, and the next live frame
goes behind it. Only at the limit (of keyframes, of memory, of the model's context) everything moves: then a state with
the newer half is computed beside the kept one, frame by frame while nobody asks, and takes its place.
"""

import logging
import time
from collections.abc import Callable

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Check, Vlm
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.state import State

_log = logging.getLogger(__name__)

# Share of the model's context that frames may take; questions and answers need the rest.
CONTEXT_SHARE = 0.75


class History:
    """Decides for one camera. It holds a second state only while a shorter history is being computed.

    spent_ms: what the last rollover took so far.
    """

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate], camera: str):
        """Start without a rollover."""
        self._vlm, self._template_for, self._camera = vlm, template_for, camera
        self._next: State | None = None
        self._waiting: tuple[EncodedFrame, ...] = ()
        self._can_grow: bool | None = None
        self._at_once = False  # a rollover beside the kept state has failed
        self._said_room: int | None = None
        self.spent_ms = 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes of the state with the shorter history, beside the kept one."""
        return self._next.held_bytes if self._next else 0

    def can_step(self, state: State | None) -> bool:
        """Whether `step` has something to do now; without a live frame the next one decides."""
        return self._next is not None and state is not None and (bool(self._waiting) or state.has_live)

    def is_due(self, state: State, config: Config) -> bool:
        """Whether the next `refresh` is to keep the live frame as a keyframe."""
        return self._room(state, config) > 0 and self._is_due(state, False, config)

    def stop(self) -> None:
        """Give a rollover up."""
        self._next, self._waiting = None, ()

    def fail(self) -> None:
        """Give a rollover up, and from now on compute a shorter history in the kept state's place."""
        self.stop()
        self._at_once = True

    def refresh(self, state: State, encoded: EncodedFrame, scene_changed: bool, config: Config, check: Check) -> int:
        """Put a new live frame behind the history; what was live becomes a keyframe when one is due.

        Returns the prompt tokens that were computed: one slot, unless the history must be cut at once. `check` may
        raise between two chunks: the state has no live frame then, or still the old one, and can be refreshed again.
        """
        room, keyframes = self._room(state, config), len(state.frames) - state.has_live
        is_due = (
            room > 0 and self._is_due(state, scene_changed, config) and encoded.frame is not state.live.frame
        )  # which is only computed again
        if keyframes > room:
            return self._cut(state, state.frames[:keyframes], room, encoded, check)
        paid = self._compute_live_whole(state, check) if is_due and not state.live.exact else 0
        if is_due and keyframes == room:
            kept = max(1, room // 2)
            if self._at_once or self._needed_mb(state, len(state.frames) + kept + 1) > config.max_cache_mb:
                return paid + self._cut(state, state.frames, kept, encoded, check)
            self._next, self._waiting, self.spent_ms = State(self._vlm, self._template_for), state.frames[-kept:], 0.0
            is_due = False
        if not is_due:
            state.drop_live()
        try:
            paid += state.append(encoded, check)
        except BaseException:
            if paid:  # the live frame is another one than what its cells were compared with
                state.drop_live()
            raise
        keyframes = len(state.frames) - 1
        if keyframes > (room := self._room(state, config)):
            paid += self._cut(state, state.frames[:-1], room, encoded, check)
        return paid

    def step(self, state: State, check: Check) -> State | None:
        """Compute one frame of the shorter history. Returns the new state when the live one is in it too.

        `check` may raise between two chunks; the step can be made again.
        """
        started = time.perf_counter()
        newer = self._next
        newer.append(self._waiting[0] if self._waiting else state.live, check)
        self.spent_ms += 1e3 * (time.perf_counter() - started)
        if self._waiting:
            self._waiting = self._waiting[1:]
            return None
        self.stop()
        return newer

    def _is_due(self, state: State, scene_changed: bool, config: Config) -> bool:
        """Whether the live frame is to be kept as a keyframe."""
        if not state.has_live or self._next or not self._grows():
            return False
        if len(state.frames) == 1 or scene_changed:
            return True
        age_ns = state.live.frame.stamp_ns - state.frames[-2].frame.stamp_ns
        return age_ns >= 1e9 * config.keyframe_interval_s

    def _compute_live_whole(self, state: State, check: Check) -> int:
        """Recompute the live frame exactly before it becomes a keyframe. Returns the tokens."""
        whole = EncodedFrame.see(self._vlm, state.live.frame, check, keep=True)  # through the kernels of the others
        state.drop_live()
        return state.append(whole, check)

    def _grows(self) -> bool:
        """Whether the chat template puts each frame right behind the one before."""
        if self._can_grow is None:
            self._can_grow = self._template_for(2).extends(self._template_for(1))
            if not self._can_grow:
                _log.warning(
                    "Camera '%s': the model's chat template does not put a second frame right behind the "
                    'first; no history is kept.',
                    self._camera,
                )
        return self._can_grow

    def _room(self, state: State, config: Config) -> int:
        """Most keyframes before a live frame: by parameter, memory and context, as far as the frames held tell."""
        count, wanted = len(state.frames), config.history_frames
        if count == 0 or wanted == 0:
            return wanted
        each = self._needed_mb(state, 2) - self._needed_mb(state, 1)
        fitting = int((config.max_cache_mb - self._needed_mb(state, 0)) / each) - 1
        if self._vlm.context is not None:
            fitting = min(fitting, int(CONTEXT_SHARE * self._vlm.context * count / state.tokens) - 1)
        room = max(0, min(wanted, fitting))
        if room < wanted and room != self._said_room:
            self._said_room = room
            _log.warning(
                "Camera '%s': the history is kept to %d keyframes of %d (history_frames): a frame takes "
                'about %.1f MB of max_cache_mb %d, and %d tokens.',
                self._camera,
                room,
                wanted,
                self._needed_mb(state, 1),
                config.max_cache_mb,
                state.tokens // count,
            )
        return room

    @staticmethod
    def _needed_mb(state: State, frames: int) -> float:
        """Memory of so many frames, as far as those that are held tell; only the live one has a vision state."""
        vision = state.live.nbytes - state.live.features.nbytes if state.has_live else 0
        return ((state.held_bytes - vision) / len(state.frames) * frames + vision) / 1e6

    def _cut(
        self, state: State, frames: tuple[EncodedFrame, ...], most: int, encoded: EncodedFrame, check: Check
    ) -> int:
        """The newest `most` of the frames as history at once, in the kept state's place. Returns the tokens."""
        self.stop()
        kept = frames[len(frames) - min(most, len(frames)) :]
        state.clear()
        try:
            return sum(state.append(each, check) for each in (*kept, encoded))
        except BaseException:
            state.clear()  # what is half-way has an old frame where the live one belongs
            raise
