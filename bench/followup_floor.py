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

"""The least that a follow-up question can cost, its forward calls on a ready cache; and log-probabilities."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import cast

import mlx.core as mx
import numpy as np
from followup_case import ANSWER_TOKENS, FollowupCase, build_on_grid
from timing import timed

from vlm_reuse_node.model import kv_cache, noise
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.state import State


def floor_text(case: FollowupCase) -> tuple[float, list[int]]:
    """Return the milliseconds and the tokens of a text on a ready cache."""
    family = case.vlm.family
    cache = _own_copy(case.state.cache)
    given = case.state.template.question(case.question)
    answer: list[int] = []

    def run() -> None:
        position = case.state.next_position
        ids = given
        while True:
            logits = family.forward(ids, family.embed(ids), family.text_positions(position, len(ids)), cache)
            answer.append(cast(int, mx.argmax(logits[-1]).item()))
            if len(answer) == ANSWER_TOKENS:
                return
            position += len(ids)
            ids = answer[-1:]

    ms, _ = timed(run)
    return ms, answer


def floor_choice(case: FollowupCase, choices: Sequence[str]) -> float:
    """Return the milliseconds of the forward calls of a choice on ready caches."""
    family = case.vlm.family
    given = case.state.template.question(case.question)
    ids_of = case.state.template.choices(choices)
    cache = _own_copy(case.state.cache)

    def run(own: list, ids: list[int], positions: np.ndarray, kept: int, mask: mx.array | None) -> float:
        masked = {} if mask is None else {'mask': mask}
        ms, _ = timed(lambda: mx.eval(family.forward(ids, family.embed(ids), positions, own, kept, **masked)))
        return ms

    ms = run(cache, given, family.text_positions(case.state.next_position, len(given)), 1, None)
    start = case.state.next_position + len(given)
    if not family.takes_mask:  # one call for each choice
        for ids in ids_of:
            ms += run(_own_copy(cache), ids, family.text_positions(start, len(ids)), len(ids), None)
        return ms
    together = [token for ids in ids_of for token in ids]
    positions = np.concatenate([family.text_positions(start, len(ids)) for ids in ids_of], 1)
    mask = _choices_mask([len(ids) for ids in ids_of], case.state.tokens + len(given))
    return ms + run(_own_copy(cache), together, positions, len(together), mask)


def log_probabilities(case: FollowupCase, state: State, answer: Answer, choices: tuple[str, ...]) -> np.ndarray:
    """Return the log-probabilities (tokens, vocabulary) along a given text, or those of the choices, (choices,)."""
    vlm = case.vlm
    ids = state.template.question(case.question)
    cache = state.cache or []
    start = state.next_position + len(ids)
    logits = vlm.run(cache, ids, vlm.family.text_positions(state.next_position, len(ids)))
    if choices:
        scores = np.log(vlm.score(cache, logits, start, state.template.choices(choices)))
        state.restore()
        return scores
    rows = [logits]
    for number, token in enumerate(answer.token_ids[:-1]):
        rows.append(vlm.run(cache, [token], vlm.family.text_positions(start + number, 1)))
    state.restore()
    table = np.array(mx.concatenate(rows), np.float64)
    table -= table.max(axis=-1, keepdims=True)
    return table - np.log(np.exp(table).sum(axis=-1, keepdims=True))


def noise_floor(case: FollowupCase, answer: Answer, choices: tuple[str, ...], grids: list[int]) -> float:
    """Return how far rounding moves `log_probabilities` behind a cold state of the kept pictures."""

    def cold(grid: int, features: list[mx.array]) -> np.ndarray:
        return log_probabilities(case, build_on_grid(case, grid, features), answer, choices)

    features = [encoded.features for encoded in case.state.frames]
    return noise.floor(features, *(partial(cold, grid) for grid in grids))


def snapshot_restore_ms(case: FollowupCase) -> float:
    """Return the milliseconds of taking a snapshot and, once a question has run behind it, of going back."""
    vlm = case.vlm
    state = case.state
    take_ms, snapshot = timed(lambda: kv_cache.take(state.cache))
    ids = state.template.question(case.question)
    vlm.run(state.cache, ids, vlm.family.text_positions(state.next_position, len(ids)))
    restore_ms, _ = timed(lambda: kv_cache.restore(state.cache, snapshot))
    return take_ms + restore_ms


def _own_copy(cache: list) -> list:
    """The cache with arrays that nothing else holds, so that writing into them copies nothing."""
    copied = copy.deepcopy(cache)
    for entry in copied:
        entry.keys = mx.array(np.array(entry.keys))
        entry.values = mx.array(np.array(entry.values))
    return copied


def _choices_mask(lengths: list[int], held: int) -> mx.array:
    """(choices' tokens, held + choices' tokens) bool: each token sees the cache, and its own choice up to itself."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    among = (owner[:, None] == owner[None]) & np.tri(len(owner), dtype=bool)
    return mx.array(np.concatenate([np.ones((len(owner), held), bool), among], axis=1))
