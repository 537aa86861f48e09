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

"""Writes an answer token by token, with the device kept busy, and verifies a draft of the answer.

A token is picked on the device. It is read from there once, because the host must know where the answer ends. `ahead`
hides that wait: the next step is queued before the token is read, and the step behind an answer's last token is wasted.
That suits a device with a queue of its own. A CPU would compute the wasted step in the time of the answer.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import mlx.core as mx

from vlm_reuse_node.model.sampling import Sampler
from vlm_reuse_node.model.work import Meter, Work

# Runs the language model on a token, mx (1,), at a position, behind those in the cache. Returns the logits behind it,
# mx (1, vocabulary), not evaluated yet.
Step = Callable[[mx.array, int], mx.array]


def decode(
    step: Step,
    logits: mx.array,
    start: int,
    max_tokens: int,
    *,
    stop_ids: Collection[int],
    meter: Meter,
    ahead: bool,
    check: Callable[[], None],
    sample: Sampler,
    on_token: Callable[[list[int]], None],
    draft: Sequence[int],
    keep: Callable[[int], None],
) -> list[int]:
    """Decode an answer of at most `max_tokens` (1 or more) tokens, the first at position `start`.

    logits: behind the prompt and behind each token of the draft, mx (1 + len(draft), vocabulary). stop_ids: tokens that
    end an answer. ahead: whether to queue a step before its token is read. check: may raise before each token.
    on_token: called after each token with all tokens so far. draft: tokens that the cache holds already. keep: called
    with the number of them that the answer begins with, before the first step behind them, if there is any.

    Returns the tokens without the one that ends the answer: those that an empty draft would have given.
    """
    ids: list[int] = []
    steps = _Steps(step, meter, ahead)

    def is_last(picked: int) -> bool:
        sample.accept(picked)
        if picked in stop_ids:
            return True
        ids.append(picked)
        on_token(ids)
        return len(ids) == max_tokens

    # 1. As long as the answer follows the draft, its logits are there already.
    while True:
        check()
        place = len(ids)  # of a token in the answer
        token = sample(logits[place])
        picked = cast(int, token.item())
        if is_last(picked):
            return ids
        if place == len(draft) or picked != draft[place]:
            break
    keep(place)
    # 2. From there on each token needs a step of the model.
    logits = steps.run(token, start + place)
    while True:
        check()
        place = len(ids)
        token = sample(logits[0])  # ahead, a grammar computes its mask while the device computes the logits
        if ahead and place + 1 < max_tokens:
            mx.async_eval(token)  # on its own: reading an array waits for all that was queued in one call with it
            logits = steps.run(token, start + place)
        if is_last(steps.read(token)):
            return ids
        if not ahead:
            logits = steps.run(token, start + place)


class _Steps:
    """The model's steps of one answer, counted and timed.

    A step counts when it starts. Its time is what the host spends on starting it and on waiting for the token, so the
    wait for a wasted step is part of whatever the model does next.
    """

    def __init__(self, step: Step, meter: Meter, ahead: bool) -> None:
        """Start before the first step. ahead: whether to queue the steps; else each one is waited for at once."""
        self._step = step
        self._meter = meter
        self._eval = mx.async_eval if ahead else mx.eval  # on a CPU less work than what is queued piece by piece
        self._ms = 0.0  # since a token was last read

    def run(self, token: mx.array, position: int) -> mx.array:
        """Start a step for a token, mx (), evaluated or not. Returns the logits, mx (1, vocabulary)."""
        with self._timed(tokens=1):
            logits = self._step(token[None], position)
            self._eval(logits)
        return logits

    def read(self, token: mx.array) -> int:
        """Wait for a token, mx (), that was picked from the logits of a step."""
        with self._timed(tokens=0):
            picked = cast(int, token.item())
        self._meter.decode.learn(1, self._ms)
        self._ms = 0.0
        return picked

    @contextmanager
    def _timed(self, tokens: int) -> Iterator[None]:
        started_s = self._meter.clock()
        try:
            yield
        finally:
            ms = 1e3 * (self._meter.clock() - started_s)
            self._ms += ms
            self._meter.done += Work(decode_tokens=tokens, ms=ms, passes=tokens)
