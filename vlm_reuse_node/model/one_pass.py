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

"""Runs what belongs together through the language model in one pass.

These are the tokens of the live frame that wait, a question or several, and their choices. What does not fit into one
call, or needs a cache that cannot branch, goes through in turn: each block behind the one it follows, from a snapshot.
A quantised cache cannot branch, a recurrent state only where the family sees to it (`families.gated_delta`), and a few
models take no mask (`families.generic`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from vlm_reuse_node.model import kv_cache, pass_cache
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.families.base import Family
from vlm_reuse_node.model.kv_cache import Snapshot
from vlm_reuse_node.model.token_tree import NO_ROWS, Block, TokenTree
from vlm_reuse_node.model.vlm import Check, Vlm, go_on


@dataclass(frozen=True, eq=False)
class WaitingTokens:
    """Tokens of the live frame that are not computed yet: its slot, or some cells in it.

    features: of the cells among them, mx (cells, width). positions: (axes, tokens).
    rows: the rows of the cache that they replace, (tokens,) ascending; (0,) for a slot, which is added behind
        the cache.
    picture: rows of all cells of the frame.
    cuts: of a slot, how many of the tokens precede each point at which a snapshot is wanted, ascending.
    """

    ids: list[int]
    features: mx.array
    positions: np.ndarray
    rows: np.ndarray
    picture: np.ndarray
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Reading:
    """What a pass found.

    logits: of each block, mx (1, vocabulary), or mx (tokens, vocabulary) of one that is an answer.
    keep: cuts the cache behind so many of the blocks' tokens. May be called again until something else is added.
    snapshots: of the cache at the cuts of the tokens that waited.
    """

    logits: list[mx.array]
    keep: Callable[[int], None]
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def joined(self) -> mx.array:
        """The logits of all blocks, one behind the other."""
        return mx.concatenate(self.logits)


class Passes:
    """Runs tokens on one model's caches. It serves any state.

    In its methods, `before` is what `pass_cache.stand_ins` needs to write over the rows of a ring.
    """

    def __init__(self, vlm: Vlm) -> None:
        """Use this model."""
        self._vlm, self._family = vlm, vlm.family

    def can_branch(self, cache: list) -> bool:
        """Whether one call can compute blocks that do not see each other."""
        return self._family.branches and pass_cache.is_possible(cache, self._family.branches_recurrent)

    def fit(self, cache: list, blocks: Sequence[Block], waiting: WaitingTokens | None = None) -> bool:
        """Whether one call can compute all blocks, together with the last chunk of the tokens that wait."""
        chunk = self._chunks(waiting)[-1]
        count = chunk.stop - chunk.start + sum(len(block.ids) for block in blocks)
        return self.can_branch(cache) and count <= vlms.PREFILL_CHUNK

    def settle(
        self, cache: list, waiting: WaitingTokens, before: Sequence[Any] | None, check: Check = go_on
    ) -> tuple[Snapshot, ...]:
        """Compute the tokens that wait, in passes of their own. `check` may raise between two chunks.

        Returns snapshots of the cache at their cuts.
        """
        if not len(waiting.rows) and not waiting.cuts:
            embeddings = self._family.embed(waiting.ids, waiting.features)
            self._vlm.run(cache, waiting.ids, waiting.positions, embeddings=embeddings, check=check)
            return ()
        return self._run_chunks(cache, waiting, self._chunks(waiting), before, check)

    def read(
        self,
        cache: list,
        waiting: WaitingTokens | None,
        blocks: Sequence[Block],
        position: int,
        stay: int,
        before: Sequence[Any] | None,
        check: Check,
    ) -> Reading:
        """Run blocks of text behind the cache, with the tokens that wait, if any: then all must `fit`.

        blocks: a parent comes before its children. position: of the first text token.
        stay: so many of the first blocks stay in the cache; each follows the one before it. Others may stay, too, until
        `Reading.keep` is called. `check` may raise between two calls.
        """
        if waiting is None:
            return self._read_in_turn(cache, blocks, position, stay, check)
        *chunks, last = self._chunks(waiting)
        snapshots = self._run_chunks(cache, waiting, chunks, before, check)
        check()
        rest = _part(self._family, waiting, last)
        reading = self._run(cache, rest, blocks, before, position)
        return replace(reading, snapshots=(*snapshots, *_snapshots(cache, rest, reading)))

    def _run_chunks(
        self, cache: list, waiting: WaitingTokens, chunks: list[slice], before: Sequence[Any] | None, check: Check
    ) -> tuple[Snapshot, ...]:
        """Compute some chunks of the tokens that wait, one call each. Returns snapshots of the cache at their cuts."""
        snapshots: list[Snapshot] = []
        for chunk in chunks:
            check()
            part = _part(self._family, waiting, chunk)
            reading = self._run(cache, part, [], before)
            snapshots += _snapshots(cache, part, reading)
            reading.keep(0)
        return tuple(snapshots)

    def _read_in_turn(self, cache: list, blocks: Sequence[Block], position: int, stay: int, check: Check) -> Reading:
        """Run blocks in one call if they fit, else one after the other, each with what follows it."""
        check()
        if self.fit(cache, blocks):
            return self._run(cache, None, blocks, None, position)
        here = kv_cache.take(cache)
        logits: dict[int, mx.array] = {}
        roots = [number for number, block in enumerate(blocks) if block.parent < 0]
        for root in (*roots[1:], 0):  # the first one last, because it may stay
            kv_cache.restore(cache, here)
            ids, (numbers, followers) = blocks[root].ids, _behind(blocks, root)
            positions = self._family.text_positions(position, len(ids))
            logits[root] = self._vlm.run(
                cache, ids, positions, keep=len(ids) if blocks[root].is_answer else 1, check=check
            )
            if numbers:
                later = max(0, stay - 1) if root == 0 else 0
                reading = self._read_in_turn(cache, followers, position + len(ids), later, check)
                reading.keep(sum(len(block.ids) for block in followers[:later]))
                logits |= dict(zip(numbers, reading.logits))
        if not stay:
            kv_cache.restore(cache, here)

        def keep(tokens: int) -> None:
            if not tokens:
                kv_cache.restore(cache, here)

        return Reading([logits[number] for number in range(len(blocks))], keep)

    def _run(
        self,
        cache: list,
        waiting: WaitingTokens | None,
        blocks: Sequence[Block],
        before: Sequence[Any] | None,
        position: int = 0,
    ) -> Reading:
        """One call for tokens that wait, behind the cache or in it, and the blocks behind them."""
        family, held = self._family, kv_cache.held_tokens(cache)
        slot, rows, two_way = [], NO_ROWS, NO_ROWS
        ids, positions, embeddings = [], family.text_positions(0, 0), []
        if waiting is not None:
            ids, positions, rows = list(waiting.ids), waiting.positions, waiting.rows
            embeddings = [family.embed(ids, waiting.features)]
            slot = [] if len(rows) else _between(waiting)
            two_way = waiting.picture if family.two_way else NO_ROWS
        first = len(ids)  # of the blocks' tokens
        behind = held + sum(len(block.ids) for block in slot)
        tree = TokenTree.of(
            held, [*slot, *(block._replace(parent=block.parent + len(slot)) for block in blocks)], rows, two_way
        )
        if text := [token for block in blocks for token in block.ids]:
            depths = tree.places[first:] - behind
            positions = np.concatenate(
                [positions, family.text_positions(position, int(depths.max()) + 1)[:, depths]], axis=1
            )
            embeddings.append(family.embed(text))  # apart: a token that the model wrote is never a picture's
        counts, kept = _kept(blocks, first)
        logits, parts = self._vlm.run_tree(cache, tree, ids + text, _joined(embeddings), positions, kept, before)
        return Reading(
            [logits[end - count : end] for count, end in zip(counts, np.cumsum(counts).tolist())],
            lambda tokens: pass_cache.keep(parts, behind - held + tokens),
        )

    def _chunks(self, waiting: WaitingTokens | None) -> list[slice]:
        return self._family.chunks(waiting.ids, vlms.PREFILL_CHUNK) if waiting else [slice(0, 0)]


def _joined(embeddings: list[mx.array]) -> mx.array:
    """Embeddings one behind the other, mx (1, tokens, width). Those of text have nothing in the levels of pictures."""
    width = embeddings[0].shape[-1]
    return mx.concatenate([mx.pad(part, [(0, 0), (0, 0), (0, width - part.shape[-1])]) for part in embeddings], axis=1)


def _between(waiting: WaitingTokens) -> list[Block]:
    """The tokens of a slot, a block up to each cut: a recurrent layer keeps its states at the ends of blocks."""
    ends = [cut for cut in waiting.cuts if cut < len(waiting.ids)]
    return [
        Block(waiting.ids[start:end], number - 1)
        for number, (start, end) in enumerate(zip([0, *ends], [*ends, len(waiting.ids)]))
    ]


def _snapshots(cache: list, waiting: WaitingTokens, reading: Reading) -> list[Snapshot]:
    """Take a snapshot at each cut of tokens that a call has computed. The cache then ends at the last one."""
    taken = []
    for cut in waiting.cuts:
        reading.keep(cut - len(waiting.ids))
        taken.append(kv_cache.take(cache))
    return taken


def _part(family: Family, waiting: WaitingTokens, part: slice) -> WaitingTokens:
    """Some of the tokens that wait, with the features of their cells."""
    cells = np.searchsorted(family.cells(waiting.ids), [part.start, part.stop])
    return replace(
        waiting,
        ids=waiting.ids[part],
        features=waiting.features[slice(*cells.tolist())],
        positions=waiting.positions[:, part],
        rows=waiting.rows[part],
        cuts=tuple(cut - part.start for cut in waiting.cuts if part.start < cut <= part.stop),
    )


def _behind(blocks: Sequence[Block], root: int) -> tuple[list[int], list[Block]]:
    """The numbers of all blocks that follow this one, directly or not; and these blocks with parents among them."""
    numbers: list[int] = []
    followers: list[Block] = []
    for number, block in enumerate(blocks):
        if block.parent == root or block.parent in numbers:
            parent = numbers.index(block.parent) if block.parent in numbers else -1
            followers.append(block._replace(parent=parent))
            numbers.append(number)
    return numbers, followers


def _kept(blocks: Sequence[Block], first: int) -> tuple[list[int], list[int]]:
    """How many tokens of each block have logits that are wanted, and the numbers of these tokens in the call."""
    counts: list[int] = []
    kept: list[int] = []
    for block in blocks:
        end = first + len(block.ids)
        counts.append(len(block.ids) if block.is_answer else 1)
        kept += range(end - counts[-1], end)
        first = end
    return counts, kept
