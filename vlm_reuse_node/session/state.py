"""One camera's working state: a cache that ends right before the question, and the frames it was computed from.

`[system] [history frame 1] ... [live frame] | snapshot |`: every frame has a slot of its own, the live one the
last, so that it can be replaced without touching what lies before it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import kv_cache, kv_rewrite
from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.families.sparse_vision import padded
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Check, Vlm, go_on
from vlm_reuse_node.session.encoded_frame import EncodedFrame


@dataclass(frozen=True)
class Identity:
    """What a state was computed from; two states are interchangeable only when all of it is equal, and exact.

    pixels: digest of the frames' bytes, oldest first, the live one last. grids: their cells.
    model: fingerprint of the model, its processor and its chat template. prefix: the prompt's tokens.
    exact: whether everything was computed from these frames; False when something is kept of older ones.
    """

    pixels: tuple[bytes, ...]
    grids: tuple[Grid, ...]
    model: str
    prefix: tuple[int, ...]
    exact: bool


class State:
    """A cache with its snapshot. Every slot is prefilled by itself, whichever way the state came about.

    frames: in the cache, oldest first. has_live: whether the last of them is the live one; False while it is being
    replaced, or when that was given up half-way. tokens: in the cache at the snapshot. next_position: that of the
    question's first token. cache: the model's, one entry a layer.
    """

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate]):
        """Start with nothing in the cache. template_for: the prompt with so many frames."""
        self._vlm, self._template_for = vlm, template_for
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.frames: tuple[EncodedFrame, ...] = ()
        self.has_live, self.tokens, self.next_position = False, 0, 0
        # Of the prompt up to the snapshot, while there is a live frame.
        self._ids: list[int] = []
        self._positions: np.ndarray | None = None
        self.cache = self._vlm.new_cache()
        self._snapshot = self._before_live = kv_cache.take(self.cache), 0

    @property
    def live(self) -> EncodedFrame:
        """The live frame."""
        return self.frames[-1]

    @property
    def template(self) -> PromptTemplate:
        """The prompt that this state is the beginning of."""
        return self._template_for(len(self.frames))

    @property
    def identity(self) -> Identity:
        """Of these frames, this model and this prompt."""
        return Identity(
            tuple(encoded.digest for encoded in self.frames),
            tuple(encoded.grid for encoded in self.frames),
            self._vlm.fingerprint,
            tuple(self.template.prefix),
            self.exact,
        )

    @property
    def exact(self) -> bool:
        """Whether this is what a cold-dense pass over these frames computes."""
        return all(encoded.exact for encoded in self.frames)

    @property
    def held_bytes(self) -> int:
        """Bytes of cache, snapshots and features, the live frame's vision state with them."""
        features = sum(encoded.nbytes for encoded in self.frames)
        return features + kv_cache.held_bytes(self.cache, self._snapshot[0], self._before_live[0])

    def append(self, encoded: EncodedFrame, check: Check = go_on) -> int:
        """Prefill a frame behind those that are here; it is the live one then. Returns the tokens of its slot.

        `check` may raise between two chunks. Whatever is raised, the state is what it was before.
        """
        frames = (*self.frames, encoded)
        family, grids = self._vlm.family, [each.grid for each in frames]
        ids = family.expand(self._template_for(len(frames)).prefix, grids)
        start, positions = self.tokens, family.positions(ids, grids)
        slot = ids[start:]
        try:
            self._vlm.run(
                self.cache, slot, positions[:, start:], embeddings=family.embed(slot, encoded.features), check=check
            )
            taken = kv_cache.take(self.cache)
        except BaseException:
            self.restore()
            raise
        self._before_live, self._snapshot = self._snapshot, (taken, len(ids))
        older = tuple(replace(each, vision=None) for each in self.frames)  # they are never patched again
        if not kv_rewrite.is_possible(self.cache):
            encoded = replace(encoded, vision=None)
        self.frames, self.has_live, self.tokens = (*older, encoded), True, len(ids)
        self._ids, self._positions = ids, positions
        self.next_position = int(positions.max()) + 1
        return len(slot)

    @property
    def can_rewrite(self) -> bool:
        """Whether `rewrite` is right here: there is a live frame, and every token's row is where its number says."""
        return self.has_live and self._vlm.family.encodes_cells and kv_rewrite.is_possible(self.cache)

    def rewrite(self, encoded: EncodedFrame, cells: np.ndarray, check: Check = go_on) -> int:
        """Put a newer frame of the same grid in the live one's place, and compute some cells' tokens anew.

        cells: their numbers, ascending; with all of them the slot is what `append` computes. What follows the cells in
        the slot is computed too. Returns the tokens. `check` may raise between two chunks: then, and whatever is
        raised, there is no live frame.
        """
        family, ids = self._vlm.family, self._ids  # those of a frame of this grid
        live = family.cells(ids)[-encoded.grid.cells :]
        rows = np.concatenate([live[cells], np.arange(live[-1] + 1, len(ids))])
        rows, paid = padded(rows, len(ids)), len(rows)
        given = [ids[row] for row in rows]
        features = encoded.features[mx.array(np.searchsorted(live, rows[family.cells(given)]))]
        try:
            self._vlm.rewrite(
                self.cache, given, family.embed(given, features), self._positions[:, rows], rows, live, check
            )
            self._snapshot = kv_cache.take(self.cache), self.tokens
        except BaseException:
            self.drop_live()
            raise
        exact = encoded.exact and len(cells) == encoded.grid.cells
        self.frames = (*self.frames[:-1], replace(encoded, exact=exact))
        return paid

    def drop_live(self) -> None:
        """Take the live frame's slot out, so that another can be appended in its place."""
        if self.has_live:
            self._snapshot = self._before_live
            self.frames, self.has_live, self.tokens = self.frames[:-1], False, self._snapshot[1]
            self.restore()

    def restore(self) -> None:
        """Forget everything behind the snapshot."""
        kv_cache.restore(self.cache, self._snapshot[0])


def build(
    vlm: Vlm,
    template_for: Callable[[int], PromptTemplate],
    frames: Iterable[EncodedFrame],
    check: Check = go_on,
) -> State:
    """Compute a state from nothing, the last frame the live one. `check` may raise between two chunks."""
    state = State(vlm, template_for)
    for encoded in frames:
        state.append(encoded, check)
    return state


def twin(computed: State, identity: Identity) -> State:
    """A state that was computed from nothing, if its frames are still those of this identity.

    Raises ModelError when they are not: a frame was changed in place meanwhile.
    """
    if computed.identity != replace(identity, exact=True):
        raise ModelError('The cached frame was changed in place since it was observed; hand over a copy.')
    return computed
