"""One camera's working state: the cache right before the question, and what it was computed from."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from vlm_reuse_node import kv_cache
from vlm_reuse_node.change import CellAges, ChangeDetector
from vlm_reuse_node.families.base import Grid
from vlm_reuse_node.frame import Frame
from vlm_reuse_node.kv_cache import Snapshot
from vlm_reuse_node.prompt import PromptTemplate
from vlm_reuse_node.vlm import Vlm


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


@dataclass(frozen=True, eq=False)
class State:
    """A cache that ends right before the question, with its snapshot.

    frames: the pictures it was computed from, the live one last. next_position: that of the question's first token.
    vision_ms, prefill_ms: what computing it took.
    """

    identity: Identity
    frames: tuple[Frame, ...]
    cache: list
    snapshot: Snapshot
    next_position: int
    detector: ChangeDetector
    ages: CellAges
    vision_ms: float
    prefill_ms: float

    @property
    def frame(self) -> Frame:
        """The live picture."""
        return self.frames[-1]

    @property
    def grid(self) -> Grid:
        """The live picture's cells."""
        return self.identity.grids[-1]

    @property
    def tokens(self) -> int:
        """Tokens in the cache at the snapshot."""
        return self.snapshot.lengths[0]

    def restore(self) -> None:
        """Forget everything behind the snapshot."""
        kv_cache.restore(self.cache, self.snapshot)


def compute(vlm: Vlm, template: PromptTemplate, frames: Sequence[Frame],
            check: Callable[[], None] = lambda: None, accepted: Callable[[], None] = lambda: None) -> State:
    """Compute a state from nothing: image processor, vision tower, prefill up to the snapshot.

    frames: as many as the template has pictures, history first, the live one last. `check` may raise between two
    pictures or chunks. accepted: called when the image processor has taken the pictures, before anything is held on
    the device. Raises ImageError for a picture the model cannot take.
    """
    started = time.perf_counter()
    features, grids = vlm.see([frame.rgb for frame in frames], check, accepted)
    seen = time.perf_counter()
    ids = vlm.family.expand(template.prefix, grids)
    positions = vlm.family.positions(ids, grids)
    cache = vlm.new_cache()
    vlm.run(cache, ids, positions, embeddings=vlm.family.embed(ids, features), check=check)
    prefilled = time.perf_counter()
    live = frames[-1]
    return State(
        identity=identity(vlm, template, frames, grids), frames=tuple(frames), cache=cache,
        snapshot=kv_cache.take(cache), next_position=int(positions.max()) + 1,
        detector=ChangeDetector(live.rgb, *grids[-1], vlm.family.cell_px), ages=CellAges(*grids[-1], live.stamp_ns),
        vision_ms=1e3 * (seen - started), prefill_ms=1e3 * (prefilled - seen))


def identity(vlm: Vlm, template: PromptTemplate, frames: Sequence[Frame], grids: Sequence[Grid]) -> Identity:
    """Identify the state of these pictures, this model and this prompt."""
    pixels = tuple(blake2b(frame.rgb.tobytes(), digest_size=16).digest() for frame in frames)
    return Identity(pixels, tuple(grids), vlm.fingerprint, tuple(template.prefix))
