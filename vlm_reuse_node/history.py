"""Keyframes of the past, before the live picture: which are kept, and how a history that is full gets shorter.

A picture that has become a keyframe is never computed again: it stays where it was prefilled, and the next live picture
goes behind it. Only at the limit (of keyframes, of memory, of the model's context) everything moves: then a state with
the newer half is computed beside the kept one, picture by picture while nobody asks, and takes its place.
"""

import logging
import time
from collections.abc import Callable

from vlm_reuse_node.config import Config
from vlm_reuse_node.prompt import PromptTemplate
from vlm_reuse_node.state import Picture, State
from vlm_reuse_node.vlm import Vlm

_log = logging.getLogger(__name__)

# Share of the model's context that pictures may take; questions and answers need the rest.
CONTEXT_SHARE = 0.75


class History:
    """Decides for one camera. It holds a second state only while a shorter history is being computed.

    spent_ms: what the last rollover took so far.
    """

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate], camera: str):
        """Start without a rollover."""
        self._vlm, self._template_for, self._camera = vlm, template_for, camera
        self._next: State | None = None
        self._waiting: list[Picture] = []
        self._can_grow = None
        self.spent_ms = 0.0

    @property
    def is_rolling_over(self) -> bool:
        """Whether a state with a shorter history is being computed."""
        return self._next is not None

    @property
    def held_bytes(self) -> int:
        """Bytes of the state with the shorter history, beside the kept one."""
        return self._next.held_bytes if self._next else 0

    def can_step(self, state: State | None) -> bool:
        """Whether `step` has something to do now; without a live picture the next one decides."""
        return self.is_rolling_over and (bool(self._waiting) or (state is not None and state.has_live))

    def stop(self) -> None:
        """Give a rollover up."""
        self._next, self._waiting = None, []

    def refresh(self, state: State, picture: Picture, scene_changed: bool, config: Config,
                check: Callable[[], None]) -> int:
        """Put a new live picture behind the history; what was live becomes a keyframe when one is due.

        Returns the prompt tokens that were computed: one slot, unless memory is so short that a shorter history must be
        computed at once. `check` may raise between two chunks: the state has no live picture then, or still the old
        one, and can be refreshed again.
        """
        if not self._is_due(state, scene_changed, config):
            state.drop_live()
        elif not self._has_room(state, config):
            kept = state.pictures[-max(1, (len(state.pictures) - 1) // 2):]
            if self._needed_mb(state, len(state.pictures) + len(kept) + 1) > config.max_cache_mb:
                return self._cut(state, kept, picture, check)
            self._next, self._waiting, self.spent_ms = State(self._vlm, self._template_for), list(kept), 0.0
            state.drop_live()
        paid = state.append(picture, check)
        count = len(state.pictures)
        if count > 1 and self._needed_mb(state, count) > config.max_cache_mb:
            self._say_short(state, count, config)
            paid += self._cut(state, state.pictures[1 + count // 2:-1], picture, check)
        return paid

    def step(self, state: State) -> State | None:
        """Compute one picture of the shorter history. Returns the new state when the live one is in it too."""
        started = time.perf_counter()
        newer = self._next
        newer.append(self._waiting[0] if self._waiting else state.live)
        self.spent_ms += 1e3 * (time.perf_counter() - started)
        if self._waiting:
            self._waiting = self._waiting[1:]
            return None
        self.stop()
        return newer

    def _is_due(self, state, scene_changed, config):
        """Whether the live picture is to be kept as a keyframe."""
        if not state.has_live or config.history_frames == 0 or self.is_rolling_over or not self._grows():
            return False
        if len(state.pictures) == 1 or scene_changed:
            return True
        age_ns = state.live.frame.stamp_ns - state.pictures[-2].frame.stamp_ns
        return age_ns >= 1e9 * config.keyframe_interval_s

    def _grows(self):
        """Whether the chat template puts each picture right behind the one before."""
        if self._can_grow is None:
            self._can_grow = self._template_for(2).extends(self._template_for(1))
            if not self._can_grow:
                _log.warning("Camera '%s': the model's chat template does not put a second picture right behind the "
                             'first; no history is kept.', self._camera)
        return self._can_grow

    def _has_room(self, state, config):
        """Whether one more picture may be kept."""
        count = len(state.pictures)
        if count > config.history_frames:
            return False
        if self._needed_mb(state, count + 1) > config.max_cache_mb:
            self._say_short(state, count + 1, config)
            return False
        return self._vlm.context is None or state.tokens * (count + 1) / count <= CONTEXT_SHARE * self._vlm.context

    @staticmethod
    def _needed_mb(state, pictures):
        """Memory of so many pictures, as far as those that are held tell."""
        return state.held_bytes / len(state.pictures) * pictures / 1e6

    def _say_short(self, state, pictures, config):
        _log.warning("Camera '%s': the state of %d pictures takes about %.0f MB, more than max_cache_mb %d; the "
                     'history is kept shorter.', self._camera, pictures, self._needed_mb(state, pictures),
                     config.max_cache_mb)

    def _cut(self, state, kept, picture, check):
        """A shorter history at once, in the kept state's place: there is no memory for both. Returns the tokens."""
        self.stop()
        state.clear()
        return sum(state.append(each, check) for each in (*kept, picture))
