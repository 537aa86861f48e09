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

"""One camera's working state: a KV cache that ends right before the question, and the frames it was computed from.

`[system] [history frame 1] ... [live frame] | snapshot |`. Every frame has its own slot. The live frame is last, so it
can be replaced without changing the slots before it.

A new live frame, or changed cells of it, may wait: then they go through the language model in one pass with the next
question.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import kv_cache, pass_cache
from vlm_reuse_node.model.one_pass import Passes, Reading, WaitingTokens
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.model.vlm import Check, Vlm, go_on
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.identity import Identity
from vlm_reuse_node.session.live_slot import MOST_CHECKPOINTS, LiveSlot, Restart


class State:
    """A cache with its snapshot. Every slot is prefilled in its own chunks, both in a new and in a refreshed state.

    version: a number that no other content of any state has. Every change up to the snapshot changes it.
    frames: in the cache or waiting, oldest first.
    template_for: returns the prompt template for a number of frames, as it was when the first of them was put in: a
        template may hold a date.
    has_live: whether the last frame is the live one. False while it is replaced, or after an interrupted replacement.
    tokens: number of tokens up to the snapshot, the waiting ones included.
    next_position: position of the question's first token.
    cache: the model's KV cache, one entry for each layer.
    spare_bytes: most bytes that checkpoints in the live slot may take, see `LiveSlot`.
    """

    _versions = count()

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate]) -> None:
        """Start with an empty cache. template_for: returns today's prompt template for a number of frames."""
        self._vlm, self._todays_template = vlm, template_for
        self._passes, self.spare_bytes = Passes(vlm), math.inf
        self.clear()

    def clear(self) -> None:
        """Empty the cache and forget all frames."""
        self.version = next(self._versions)
        self.frames: tuple[EncodedFrame, ...] = ()
        self.template_for = self._todays_template
        self.has_live, self.tokens, self.next_position = False, 0, 0
        self.cache = self._vlm.new_cache()
        self._restarts = pass_cache.can_restart(self.cache)
        self._snapshot = self._before_live = kv_cache.take(self.cache), 0
        self._slot = LiveSlot(self._snapshot[0])
        self._waiting: WaitingTokens | None = None

    @property
    def live(self) -> EncodedFrame:
        """The live frame."""
        return self.frames[-1]

    @property
    def template(self) -> PromptTemplate:
        """The template of the prompt that this state is a prefix of."""
        return self.template_for(len(self.frames))

    @property
    def identity(self) -> Identity:
        """The identity of these frames, this model and this prompt."""
        return Identity(
            tuple(encoded.digest for encoded in self.frames),
            tuple(encoded.grid for encoded in self.frames),
            self._vlm.fingerprint,
            tuple(self.template.prefix),
            self.exact,
        )

    @property
    def exact(self) -> bool:
        """Whether a cold-dense pass over these frames computes the same state."""
        return all(encoded.exact for encoded in self.frames)

    @property
    def waiting(self) -> int:
        """Number of tokens that wait."""
        return len(self._waiting.ids) if self._waiting else 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all that is kept, once nothing waits: `array_bytes`, and pixels, from which audits compute again."""
        return self.array_bytes + sum(encoded.frame.rgb.nbytes for encoded in self.frames)

    @property
    def array_bytes(self) -> int:
        """Bytes of cache, snapshots and features, with the live frame's vision state, once nothing waits."""
        features = sum(encoded.nbytes for encoded in self.frames)
        held = kv_cache.held_bytes(self.cache, self._snapshot[0], self._before_live[0], *self._slot.checkpoints)
        held += kv_cache.growth_bytes(self.cache, self.tokens - self._snapshot[1])
        return features + held + self._coming * kv_cache.snapshot_bytes(self.cache)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the checkpoints in the live slot, once nothing waits any more."""
        return (len(self._slot.checkpoints) + self._coming) * kv_cache.snapshot_bytes(self.cache)

    @property
    def can_rewrite(self) -> bool:
        """Whether `rewrite` is possible: there is a live frame, and the cache has the rows of its tokens."""
        return self.has_live and self._has_rows(self._before_live[1], self.tokens)

    def append(self, encoded: EncodedFrame, check: Check = go_on, *, later: bool = False) -> int:
        """Prefill a frame behind the others; it becomes the live frame. Returns the number of tokens of its slot.

        later: let the slot wait for `read` or `settle`. `check` may raise between two chunks. After any exception the
        state is what it was before.
        """
        self.settle(check)
        before = dict(vars(self))
        frames = (*self.frames, encoded)
        if len(frames) == 1:
            self.template_for = self._todays_template(1).of
        family, grids = self._vlm.family, [frame.grid for frame in frames]
        ids = family.expand(self.template_for(len(frames)).prefix, grids)
        start, positions = self.tokens, family.positions(ids, grids)
        older = tuple(replace(frame, vision=None) for frame in self.frames)  # keyframes are never patched
        if not self._has_rows(start, len(ids)):
            encoded = replace(encoded, vision=None)
        self.frames, self.has_live, self.tokens = (*older, encoded), True, len(ids)
        self.next_position = int(positions.max()) + 1
        self._before_live = self._snapshot
        self._slot = LiveSlot(self._snapshot[0], ids, positions, start + family.cells(ids[start:]))
        self._wait_from_snapshot(encoded)
        if not later:
            try:
                self.settle(check)
            except BaseException:
                vars(self).update(before)
                raise
        return len(ids) - start

    def rewrite(self, encoded: EncodedFrame, cells: np.ndarray, check: Check = go_on, *, later: bool = False) -> int:
        """Replace the live frame by a newer one with the same grid, and recompute the tokens of some cells in place.

        cells: indices of the cells, ascending. With all cells the slot equals the one that `append` computes. The
        tokens behind the cells in the slot are recomputed too; of a recurrent model all tokens from `restart` on, with
        the features that `encoded` has. Returns the number of tokens computed.
        later: let the tokens wait for `read` or `settle`. `check` may raise between two chunks. After any exception
        there is no live frame.
        """
        try:
            if self._restarts:
                paid = self._go_back(encoded, int(cells[0]))
            else:
                self.settle(check)
                self._waiting, paid = self._slot.cells_and_end(cells, encoded.features, self._vlm.family)
                self.version = next(self._versions)
            exact = encoded.exact and len(cells) == encoded.grid.cells
            self.frames = (*self.frames[:-1], replace(encoded, exact=exact))
            if not later:
                self.settle(check)
        except BaseException:
            self.drop_live()
            raise
        return paid

    def restart(self, cell: int) -> Restart | None:
        """Where `rewrite` starts computing if this is its first cell; None: it computes its cells in place."""
        return self._slot.restart(cell) if self.has_live and self._restarts else None

    def limit_checkpoints(self, spare_bytes: float) -> None:
        """Keep no more checkpoints than take so many bytes, now and later."""
        self.spare_bytes = spare_bytes
        self._slot = self._slot.with_checkpoints((), self._most_checkpoints)

    def settle(self, check: Check = go_on) -> None:
        """Compute the tokens that wait, if any, in passes of their own.

        `check` may raise between two chunks: then they wait on.
        """
        if self._waiting is None:
            return
        try:
            snapshots = self._passes.settle(self.cache, self._waiting, self._before_live[0].parts, check)
        except BaseException:
            self.restore()
            raise
        self._end_wait(snapshots)

    def read(self, blocks: Sequence[Block], *, stay: int = 0, check: Check = go_on) -> Reading:
        """Run blocks of text behind the snapshot, in one pass with the tokens that wait, where that is possible.

        blocks: a parent comes before its children. stay: so many of the first blocks stay behind the snapshot until
        `restore`; each follows the one before it.
        `check` may raise between two calls. After any exception the cache ends at the snapshot.
        """
        try:
            if not self.can_read_at_once(blocks):
                self.settle(check)
            reading = self._passes.read(
                self.cache, self._waiting, blocks, self.next_position, stay, self._before_live[0].parts, check
            )
            if self._waiting is not None:
                reading.keep(0)
                self._end_wait(reading.snapshots)
            reading.keep(sum(len(block.ids) for block in blocks[:stay]))
        except BaseException:
            self.restore()
            raise
        return reading

    @property
    def can_branch(self) -> bool:
        """Whether one pass can compute blocks that do not see each other."""
        return self._passes.can_branch(self.cache)

    def can_read_at_once(self, blocks: Sequence[Block]) -> bool:
        """Whether `read` computes all blocks in one call, with the last chunk of the tokens that wait."""
        return self._passes.fit(self.cache, blocks, self._waiting)

    def drop_live(self) -> None:
        """Remove the live frame's slot, so that another frame can be appended in its place."""
        if self.has_live:
            self.version = next(self._versions)
            self._snapshot, self._waiting = self._before_live, None
            self._slot = LiveSlot(self._snapshot[0])
            self.frames, self.has_live, self.tokens = self.frames[:-1], False, self._snapshot[1]
            self.restore()

    def restore(self) -> None:
        """Remove everything behind the snapshot."""
        kv_cache.restore(self.cache, self._snapshot[0])

    def _go_back(self, encoded: EncodedFrame, first: int) -> int:
        """Let the live slot wait from before its cell `first` on, in place of what waits. Returns the tokens."""
        point = self._slot.point_before(first)
        self._snapshot, self._slot = (point, point.tokens), self._slot.up_to(point.tokens)
        self.restore()
        self._wait_from_snapshot(encoded)
        return self.tokens - point.tokens

    def _wait_from_snapshot(self, encoded: EncodedFrame) -> None:
        """Let the live slot's tokens behind the snapshot wait. Checkpoints are for a frame that can be patched."""
        most = self._most_checkpoints if self._restarts and encoded.vision is not None else 0
        self._waiting = self._slot.tokens_from(self._snapshot[1], encoded.features, encoded.grid, most)
        self.version = next(self._versions)

    def _end_wait(self, snapshots: Sequence[kv_cache.Snapshot]) -> None:
        """Take the snapshot behind the tokens that waited, and keep those on the way: the cache ends there."""
        self._waiting, self._snapshot = None, (kv_cache.take(self.cache), self.tokens)
        self._slot = self._slot.with_checkpoints(snapshots, self._most_checkpoints)

    @property
    def _most_checkpoints(self) -> int:
        """How many checkpoints fit; the most there are while it is not known what one takes."""
        size = kv_cache.snapshot_bytes(self.cache)
        return int(max(0, min(self.spare_bytes, MOST_CHECKPOINTS * size)) // size) if size else MOST_CHECKPOINTS

    @property
    def _coming(self) -> int:
        """Number of checkpoints that are taken with the tokens that wait."""
        return len(self._waiting.cuts) if self._waiting else 0

    def _has_rows(self, first: int, end: int) -> bool:
        """Whether the cache keeps the rows of these tokens, once all are computed, and the family can rewrite them."""
        can = self._restarts or pass_cache.can_rewrite(self.cache, end - first)
        return self._vlm.family.encodes_cells and can


def build(
    vlm: Vlm,
    template_for: Callable[[int], PromptTemplate],
    frames: Iterable[EncodedFrame],
    check: Check = go_on,
    *,
    later: bool = False,
) -> State:
    """Compute a state from nothing. The last frame is the live one. later, check: as for `State.append`."""
    state = State(vlm, template_for)
    for encoded in frames:
        state.append(encoded, check, later=True)
    if not later:
        state.settle(check)
    return state


def twin(computed: State, identity: Identity) -> State:
    """Return a state that was computed from nothing, after checking that its frames match this identity.

    Raises ModelError when they do not: a frame was modified in place in the meantime.
    """
    if computed.identity != replace(identity, exact=True):
        raise ModelError('The cached frame was modified in place after it was observed; pass a copy to observe().')
    return computed
