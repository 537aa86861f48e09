"""One camera's working state: a cache that ends right before the question, and the pictures it was computed from.

`[system] [history picture 1] ... [live picture] | snapshot |`: every picture has a slot of its own, the live one the
last, so that it can be replaced without touching what lies before it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from vlm_reuse_node import kv_cache
from vlm_reuse_node.families.base import Grid
from vlm_reuse_node.frame import Frame
from vlm_reuse_node.prompt import PromptTemplate
from vlm_reuse_node.vlm import Vlm


def _go_on() -> None:
    """Nothing to check between two steps."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A frame as the model has seen it.

    digest: of the frame's bytes. features: mx (cells, width), kept so that another prefill pays for no vision tower.
    """

    frame: Frame
    digest: bytes
    grid: Grid
    features: Any

    @classmethod
    def see(cls, vlm: Vlm, frame: Frame, check: Callable[[], None] = _go_on) -> 'Picture':
        """Run image processor and vision tower. Raises ImageError for a picture the model cannot take."""
        features, grid = vlm.see(frame.rgb, check)
        return cls(frame, blake2b(frame.rgb.tobytes(), digest_size=16).digest(), grid, features)


@dataclass(frozen=True)
class Identity:
    """What a state was computed from; two states are interchangeable only when all of it is equal.

    pixels: digest of the pictures' bytes, oldest first, the live one last. grids: their cells.
    model: fingerprint of the model, its processor and its chat template. prefix: the prompt's tokens.
    """

    pixels: tuple[bytes, ...]
    grids: tuple[Grid, ...]
    model: str
    prefix: tuple[int, ...]


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
        return Identity(tuple(picture.digest for picture in self.pictures),
                        tuple(picture.grid for picture in self.pictures), self._vlm.fingerprint,
                        tuple(self.template.prefix))

    @property
    def held_bytes(self) -> int:
        """Bytes of cache, snapshots and features."""
        features = sum(picture.features.nbytes for picture in self.pictures)
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
            self._vlm.run(self.cache, slot, positions[:, start:], embeddings=family.embed(slot, picture.features),
                          check=check)
            taken = kv_cache.take(self.cache)
        except BaseException:
            self.restore()
            raise
        self._before_live, self._snapshot = self._snapshot, (taken, len(ids))
        self.pictures, self.has_live, self.tokens = pictures, True, len(ids)
        self.next_position = int(positions.max()) + 1
        return len(slot)

    def drop_live(self) -> None:
        """Take the live picture's slot out, so that another can be appended in its place."""
        if self.has_live:
            self._snapshot = self._before_live
            self.pictures, self.has_live, self.tokens = self.pictures[:-1], False, self._snapshot[1]
            self.restore()

    def restore(self) -> None:
        """Forget everything behind the snapshot."""
        kv_cache.restore(self.cache, self._snapshot[0])


def build(vlm: Vlm, template_for: Callable[[int], PromptTemplate], pictures: Iterable[Picture],
          check: Callable[[], None] = _go_on) -> State:
    """Compute a state from nothing, the last picture the live one. `check` may raise between two chunks."""
    state = State(vlm, template_for)
    for picture in pictures:
        state.append(picture, check)
    return state
