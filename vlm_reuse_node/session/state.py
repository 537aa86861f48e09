"""One camera's working state: a cache that ends right before the question, and the pictures it was computed from.

`[system] [history picture 1] ... [live picture] | snapshot |`: every picture has a slot of its own, the live one the
last, so that it can be replaced without touching what lies before it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import mlx.core as mx
import numpy as np

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import kv_cache, kv_rewrite
from vlm_reuse_node.model.families.base import Grid, VisionState
from vlm_reuse_node.model.families.sparse_vision import padded
from vlm_reuse_node.model.prompt import PromptTemplate
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame


def _go_on() -> None:
    """Nothing to check between two steps."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A frame as the model has seen it.

    digest: of the frame's bytes. features: mx (cells, width), kept so that another prefill pays for no vision tower.
    vision: with them, what it takes to encode some cells of a newer frame; None when it is not to be kept.
    exact: whether all cells were encoded from this frame; else some are what an older one showed there.
    """

    frame: Frame
    digest: bytes
    grid: Grid
    features: Any
    vision: VisionState | None = None
    exact: bool = True

    @classmethod
    def see(cls, vlm: Vlm, frame: Frame, check: Callable[[], None] = _go_on, keep: bool = False) -> 'Picture':
        """Run image processor and vision tower; keep: what `with_cells` needs. Raises ImageError as `Vlm.see` does."""
        if not keep:
            return cls(frame, _digest(frame), *reversed(vlm.see(frame.rgb, check)))
        vision, grid = vlm.see_all_cells(frame.rgb, check)
        return cls(frame, _digest(frame), grid, vision.features, vision)

    def with_cells(self, vlm: Vlm, frame: Frame, cells: np.ndarray, check: Callable[[], None] = _go_on) -> 'Picture':
        """Encode some cells of a newer frame of the same size, (cells,) ascending; the others stay what they are."""
        vision = vlm.see_cells(frame.rgb, self.grid, cells, self.vision, check)
        return Picture(frame, _digest(frame), self.grid, vision.features, vision, exact=False)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of it beside the frame."""
        return self.vision.nbytes if self.vision else self.features.nbytes


def _digest(frame):
    return blake2b(frame.rgb.tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Identity:
    """What a state was computed from; two states are interchangeable only when all of it is equal, and exact.

    pixels: digest of the pictures' bytes, oldest first, the live one last. grids: their cells.
    model: fingerprint of the model, its processor and its chat template. prefix: the prompt's tokens.
    exact: whether everything was computed from these pictures; False when something is kept of older ones.
    """

    pixels: tuple[bytes, ...]
    grids: tuple[Grid, ...]
    model: str
    prefix: tuple[int, ...]
    exact: bool


class State:
    """A cache with its snapshot. Every slot is prefilled by itself, whichever way the state came about.

    pictures: in the cache, oldest first. has_live: whether the last of them is the live one; False while it is being
    replaced, or when that was given up half-way. tokens: in the cache at the snapshot. next_position: that of the
    question's first token. cache: the model's, one entry a layer.
    """

    def __init__(self, vlm: Vlm, template_for: Callable[[int], PromptTemplate]):
        """Start with nothing in the cache. template_for: the prompt with so many pictures."""
        self._vlm, self._template_for = vlm, template_for
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.pictures: tuple[Picture, ...] = ()
        self.has_live, self.tokens, self.next_position = False, 0, 0
        self._ids, self._positions = [], None  # of the prompt up to the snapshot, while there is a live picture
        self.cache = None  # before there is another
        self.cache = self._vlm.new_cache()
        self._snapshot = self._before_live = kv_cache.take(self.cache), 0

    @property
    def live(self) -> Picture:
        """The live picture."""
        return self.pictures[-1]

    @property
    def template(self) -> PromptTemplate:
        """The prompt that this state is the beginning of."""
        return self._template_for(len(self.pictures))

    @property
    def identity(self) -> Identity:
        """Of these pictures, this model and this prompt."""
        return Identity(
            tuple(picture.digest for picture in self.pictures),
            tuple(picture.grid for picture in self.pictures),
            self._vlm.fingerprint,
            tuple(self.template.prefix),
            self.exact,
        )

    @property
    def exact(self) -> bool:
        """Whether this is what a cold-dense pass over these pictures computes."""
        return all(picture.exact for picture in self.pictures)

    @property
    def held_bytes(self) -> int:
        """Bytes of cache, snapshots and features, the live picture's vision state with them."""
        features = sum(picture.nbytes for picture in self.pictures)
        return features + kv_cache.held_bytes(self.cache, self._snapshot[0], self._before_live[0])

    def append(self, picture: Picture, check: Callable[[], None] = _go_on) -> int:
        """Prefill a picture behind those that are here; it is the live one then. Returns the tokens of its slot.

        `check` may raise between two chunks. Whatever is raised, the state is what it was before.
        """
        pictures = (*self.pictures, picture)
        family, grids = self._vlm.family, [each.grid for each in pictures]
        ids = family.expand(self._template_for(len(pictures)).prefix, grids)
        start, positions = self.tokens, family.positions(ids, grids)
        slot = ids[start:]
        try:
            self._vlm.run(
                self.cache, slot, positions[:, start:], embeddings=family.embed(slot, picture.features), check=check
            )
            taken = kv_cache.take(self.cache)
        except BaseException:
            self.restore()
            raise
        self._before_live, self._snapshot = self._snapshot, (taken, len(ids))
        older = tuple(replace(each, vision=None) for each in self.pictures)  # they are never patched again
        if not kv_rewrite.is_possible(self.cache):
            picture = replace(picture, vision=None)
        self.pictures, self.has_live, self.tokens = (*older, picture), True, len(ids)
        self._ids, self._positions = ids, positions
        self.next_position = int(positions.max()) + 1
        return len(slot)

    @property
    def can_rewrite(self) -> bool:
        """Whether `rewrite` is right here: there is a live picture, and every token's row is where its number says."""
        return self.has_live and self._vlm.family.encodes_cells and kv_rewrite.is_possible(self.cache)

    def rewrite(self, picture: Picture, cells: np.ndarray, check: Callable[[], None] = _go_on) -> int:
        """Put a newer picture of the same grid in the live one's place, and compute some cells' tokens anew.

        cells: their numbers, ascending; with all of them the slot is what `append` computes. What follows the cells in
        the slot is computed too. Returns the tokens. `check` may raise between two chunks: then, and whatever is
        raised, there is no live picture.
        """
        family, ids = self._vlm.family, self._ids  # those of a picture of this grid
        live = family.cells(ids)[-picture.grid.cells :]
        rows = np.concatenate([live[cells], np.arange(live[-1] + 1, len(ids))])
        rows, paid = padded(rows, len(ids)), len(rows)
        given = [ids[row] for row in rows]
        features = picture.features[mx.array(np.searchsorted(live, rows[family.cells(given)]))]
        try:
            self._vlm.rewrite(
                self.cache, given, family.embed(given, features), self._positions[:, rows], rows, live, check
            )
            self._snapshot = kv_cache.take(self.cache), self.tokens
        except BaseException:
            self.drop_live()
            raise
        exact = picture.exact and len(cells) == picture.grid.cells
        self.pictures = (*self.pictures[:-1], replace(picture, exact=exact))
        return paid

    def drop_live(self) -> None:
        """Take the live picture's slot out, so that another can be appended in its place."""
        if self.has_live:
            self._snapshot = self._before_live
            self.pictures, self.has_live, self.tokens = self.pictures[:-1], False, self._snapshot[1]
            self.restore()

    def restore(self) -> None:
        """Forget everything behind the snapshot."""
        kv_cache.restore(self.cache, self._snapshot[0])


def build(
    vlm: Vlm,
    template_for: Callable[[int], PromptTemplate],
    pictures: Iterable[Picture],
    check: Callable[[], None] = _go_on,
) -> State:
    """Compute a state from nothing, the last picture the live one. `check` may raise between two chunks."""
    state = State(vlm, template_for)
    for picture in pictures:
        state.append(picture, check)
    return state


def twin(computed: State, identity: Identity) -> State:
    """A state that was computed from nothing, if its pictures are still those of this identity.

    Raises ModelError when they are not: a picture was changed in place meanwhile.
    """
    if computed.identity != replace(identity, exact=True):
        raise ModelError('The cached picture was changed in place since it was observed; hand over a copy.')
    return computed
