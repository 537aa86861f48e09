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


"""The least that a follow-up question can cost: forward calls on a ready cache, and nothing else."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import mlx.core as mx
import numpy as np
from followup_case import ANSWER_TOKENS, CHOICES, FollowupCase
from timing import Run, in_random_order, medians

from vlm_reuse_node.model import pass_cache
from vlm_reuse_node.model.families.sparse_vision import padded
from vlm_reuse_node.model.one_pass import WaitingTokens
from vlm_reuse_node.model.token_tree import NO_ROWS, Block, TokenTree

PASS_TOKENS = (1, 2, 4, 8, 16, 32)


class ReadyTree(TokenTree):
    """A tree that makes each of its masks once."""

    def mask(self, first: int = 0, window: int | None = None) -> np.ndarray:
        """See `TokenTree.mask`."""
        made = vars(self).setdefault('made', {})
        if (first, window) not in made:
            made[first, window] = super().mask(first, window)
        return made[first, window]


class OneCall:
    """One forward call of a tree, on a copy of the cache which no snapshot shares. It can be repeated."""

    def __init__(self, case: FollowupCase, blocks: Sequence[Block], waiting: WaitingTokens | None = None) -> None:
        """Prepare everything that does not depend on features.

        waiting: the slot of the newest picture, in place of the one that the cache ends with; or rows to write over.
        """
        state, self._family = case.state, case.vlm.family
        is_slot = waiting is not None and not len(waiting.rows)
        self._cache = before_live(case) if is_slot else own_copy(state.cache)
        self._before = state._before_live[0].parts
        slot = [Block(waiting.ids)] if waiting and is_slot else []
        two_way = waiting.picture if waiting and self._family.two_way else NO_ROWS
        self._tree = ReadyTree.of(
            self._cache[0].offset,
            [*slot, *(Block(block.ids, block.parent + len(slot)) for block in blocks)],
            waiting.rows if waiting else NO_ROWS,
            two_way,
        )
        first = len(waiting.ids) if waiting else 0
        behind = state.tokens if waiting else self._cache[0].offset
        depths = self._tree.places[first:] - behind
        text = self._family.text_positions(state.next_position, int(depths.max()) + 1)[:, depths]
        self._ids = [*(waiting.ids if waiting else ()), *(token for block in blocks for token in block.ids)]
        self._positions = np.concatenate([waiting.positions, text], axis=1) if waiting else text
        self._keep: list[int] = []
        for number, block in enumerate(blocks):
            end = first + len(block.ids)
            is_parent = any(other.parent == number for other in blocks)
            self._keep += [end - 1] if is_parent else range(first, end)
            first = end

    def __call__(self, features: mx.array | None = None) -> mx.array:
        """Return the logits that are needed. features: of the cells among the waiting tokens."""
        self._parts = pass_cache.stand_ins(self._cache, self._tree, self._before)
        embeddings = self._family.embed(self._ids, features)
        logits = self._family.forward(self._ids, embeddings, self._positions, self._parts, self._keep)
        mx.eval(logits)
        return logits

    def undo(self) -> None:
        """Cut the cache to where it was before the call."""
        pass_cache.keep(self._parts, 0)


def questions(case: FollowupCase, texts: Sequence[str]) -> list[Block]:
    """Return the blocks of questions with choices."""
    blocks: list[Block] = []
    for text in texts:
        blocks += case.tokenized(text, CHOICES).blocks(len(blocks))
    return blocks


def floor_questions(case: FollowupCase, texts: Sequence[str]) -> Callable[[], Run]:
    """Return the arm that runs questions with choices on an unchanged state: one forward call."""
    call = OneCall(case, questions(case, texts))

    def arm() -> Run:
        done = case.run(call)
        call.undo()
        return done

    return arm


def floor_changed(case: FollowupCase) -> Callable[[], Run]:
    """Return the arm of a new picture: one call of the vision tower, one of its slot, the question and the choices."""
    state, family = case.state, case.vlm.family
    start = state._before_live[1]
    ids = state._slot.ids[start:]
    slot = WaitingTokens(ids, state.live.features, state._slot.positions[:, start:], NO_ROWS, start + family.cells(ids))
    call = OneCall(case, questions(case, [case.question]), slot)

    def arm() -> Run:
        pixels, grid = family.prepare(case.newest.rgb)
        done = case.run(lambda: call(family.encode(pixels, grid)))
        call.undo()
        return done

    return arm


def floor_patch(case: FollowupCase, cells: np.ndarray) -> Callable[[], Run]:
    """Return the arm of some changed cells: their encoding, and one forward call of them, question and choices."""
    state, family = case.state, case.vlm.family
    live = family.cells(state._slot.ids)[-state.live.grid.cells :]
    end = len(state._slot.ids)
    rows = padded(np.concatenate([live[cells], np.arange(live[-1] + 1, end)]), end)
    ids = [state._slot.ids[row] for row in rows]
    among = mx.array(np.searchsorted(live, rows[family.cells(ids)]))
    given = WaitingTokens(ids, state.live.features[among], state._slot.positions[:, rows], rows, live)
    call = OneCall(case, questions(case, [case.question]), given)

    def arm() -> Run:
        grid, older = case.state.live.grid, case.state.live.vision
        pixels = family.prepare_cells(case.newest.rgb, grid, cells)

        def encode_and_run() -> mx.array:
            vision = family.encode_cells(pixels, grid, cells, older)
            mx.eval(vision)
            return call(vision.features[among])

        done = case.run(encode_and_run)
        call.undo()
        return done

    return arm


def floor_text(case: FollowupCase, text: str) -> Run:
    """Run a question and the tokens of its answer, one call for each. The result is these tokens."""
    family, state = case.vlm.family, case.state
    cache, given = own_copy(state.cache), case.tokenized(text).tokens

    def write() -> list[int]:
        answer: list[int] = []
        position, ids = state.next_position, given
        while True:
            logits = family.forward(ids, family.embed(ids), family.text_positions(position, len(ids)), cache)
            answer.append(cast(int, mx.argmax(logits[-1]).item()))
            if len(answer) == ANSWER_TOKENS:
                return answer
            position += len(ids)
            ids = answer[-1:]

    return case.run(write)


def floor_draft(case: FollowupCase, text: str, answer: Sequence[int]) -> Run:
    """Run a question together with its answer, in one call. The result are the tokens that the model would write."""
    family, state = case.vlm.family, case.state
    cache, ids = own_copy(state.cache), [*case.tokenized(text).tokens, *answer[:-1]]
    positions = family.text_positions(state.next_position, len(ids))

    def verify() -> list[int]:
        logits = family.forward(ids, family.embed(ids), positions, cache, range(-len(answer), 0))
        return cast(list[int], mx.argmax(logits, axis=-1).tolist())

    return case.run(verify)


def pass_times(case: FollowupCase, rounds: int) -> dict[int, dict]:
    """Return the medians of a pass behind the state, by its number of tokens."""

    def arm(tokens: int) -> Run:
        family, position = case.vlm.family, case.state.next_position
        cache, ids = own_copy(case.state.cache), case.state._slot.ids[:1] * tokens
        positions = family.text_positions(position, tokens)
        return case.run(lambda: mx.eval(family.forward(ids, family.embed(ids), positions, cache)))

    arms = {str(tokens): partial(arm, tokens) for tokens in PASS_TOKENS}
    runs = in_random_order(arms, rounds, case.chance)
    return {int(tokens): medians('pass', each) for tokens, each in runs.items()}


def own_copy(cache: list) -> list:
    """Return the cache with arrays that nothing else holds, so that writing into them copies nothing."""
    copied = copy.deepcopy(cache)
    for entry in copied:
        entry.keys = mx.array(np.array(entry.keys))
        entry.values = mx.array(np.array(entry.values))
    return copied


def before_live(case: FollowupCase) -> list:
    """Return such a copy of the cache that ends before the slot of the newest picture."""
    copied = own_copy(case.state.cache)
    for entry, saved in zip(copied, case.state._before_live[0].parts):
        if isinstance(saved, dict):
            entry.__dict__ = copy.deepcopy(saved)
        else:
            entry.offset = saved
    return copied
