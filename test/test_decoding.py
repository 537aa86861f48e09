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

"""Decoding: a draft and queueing ahead change how an answer is computed, never what it is."""

import json
from itertools import count

import mlx.core as mx
import numpy as np
import pytest
from samplers import Script
from tiny_model import write_tiny_model

from vlm_reuse_node.model.decoding import decode
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.sampling import ConfidenceSampler, Sampler, sampler
from vlm_reuse_node.model.work import Meter

VOCABULARY, STOPS, START = 7, (0, 5), 11
CASES = 600  # of every kind of sampler, each ahead and not


class Ladder(Sampler):
    """A small grammar: allows the tokens near the last one, so it must know that one. Keeps the accepted tokens."""

    def __init__(self, sample):
        self._sample, self.accepted = sample, []

    def __call__(self, logits):
        last = self.accepted[-1] if self.accepted else 0
        near = [(last + step) % len(logits) for step in (1, 2, 3)]
        return self._sample(mx.where(mx.array(np.isin(np.arange(len(logits)), near)), logits, -mx.inf))

    def accept(self, token):
        self._sample.accept(token)
        self.accepted.append(token)


SAMPLERS = {
    'greedy': lambda seed: sampler(0.0, seed),
    'seeded': lambda seed: sampler(1.2, seed),
    'grammar': lambda seed: Ladder(sampler(1.2, seed)),
}


class Model:
    """A language model without layers: the logits depend on all tokens. Its cache is the list of the answer's."""

    def __init__(self, seed, vocabulary=VOCABULARY):
        self._seed, self._vocabulary = seed, vocabulary
        self.cache, self.steps, self.kept = [], 0, []

    def logits(self, tokens):
        noise = np.random.default_rng([self._seed, *tokens]).normal(size=self._vocabulary)
        return mx.array(2 * noise, mx.float32)

    def step(self, token, position):
        assert token.shape == (1,) and position == START + len(self.cache)
        self.steps += 1
        self.cache.append(token.item())
        return self.logits(self.cache)[None]

    def keep(self, tokens):
        self.kept.append((tokens, self.steps))
        del self.cache[tokens:]

    def answer(self, sample, max_tokens, draft=(), ahead=False, stops=STOPS, **others):
        """Decode with a draft whose rows are computed already."""
        self.cache, self.steps, self.kept = list(draft), 0, []
        rows = mx.stack([self.logits(draft[:row]) for row in range(len(draft) + 1)])
        self.told = []
        given = {'check': lambda: None, 'on_token': lambda ids: self.told.append(list(ids)), 'meter': Meter()} | others
        return decode(
            self.step,
            rows,
            START,
            max_tokens,
            stop_ids=stops,
            ahead=ahead,
            sample=sample,
            draft=draft,
            keep=self.keep,
            **given,
        )

    def plainly(self, sample, max_tokens, stops=STOPS):
        """The answer by the book; and its tokens with the one that ended it."""
        ids = []
        while True:
            token = sample(self.logits(ids)).item()
            sample.accept(token)
            if token in stops:
                return ids, [*ids, token]
            ids.append(token)
            if len(ids) == max_tokens:
                return ids, ids


class Noted(Sampler):
    """Keeps the tokens that a sampler is told."""

    def __init__(self, sample):
        self._sample, self.accepted = sample, []

    def __call__(self, logits):
        return self._sample(logits)

    def accept(self, token):
        self._sample.accept(token)
        self.accepted.append(token)


def some_draft(rng, picked, vocabulary=VOCABULARY):
    """A draft that is right for a while, and may be wrong somewhere, too long, too short or empty; with stop tokens."""
    draft = [*picked, *rng.integers(vocabulary, size=4).tolist()][: rng.integers(len(picked) + 5)]
    if draft and rng.random() < 0.5:
        draft[rng.integers(len(draft))] = int(rng.integers(vocabulary))
    return draft


@pytest.mark.parametrize('ahead', [False, True])
@pytest.mark.parametrize('kind', SAMPLERS)
def test_a_draft_changes_nothing_but_the_number_of_steps(kind, ahead):
    rng, saved, wasted = np.random.default_rng([len(kind), ahead]), 0, 0
    for seed in range(CASES):
        model, max_tokens = Model(seed), int(rng.integers(1, 12))
        plain, confident = ConfidenceSampler(SAMPLERS[kind](seed)), ConfidenceSampler(SAMPLERS[kind](seed))
        expected, picked = model.plainly(plain, max_tokens)
        draft, sample = some_draft(rng, picked), Noted(confident)
        ids = model.answer(sample, max_tokens, draft, ahead)
        assert ids == expected and sample.accepted == picked and confident.least == plain.least
        assert model.told == [ids[: place + 1] for place in range(len(ids))]
        # The tokens that the draft has right, and the one behind them, need no step.
        right = next((i for i, (one, other) in enumerate(zip(picked, draft)) if one != other), len(draft))
        missing = max(len(picked) - right - 1, 0)
        waste = ahead and missing > 0 and len(ids) < len(picked) < max_tokens
        assert model.steps == missing + waste
        assert model.kept == ([(right, 0)] if missing else [])
        assert not missing or model.cache == picked[: len(picked) - 1 + waste]
        saved, wasted = saved + min(right, len(picked)), wasted + waste
    assert saved > CASES and (wasted > CASES / 20) == ahead


@pytest.fixture(scope='module')
def schemas(tmp_path_factory):
    """JSON schemas for a tokenizer of bytes."""
    return load(str(write_tiny_model(tmp_path_factory.mktemp('json') / 'tiny', tokenizer='bytes'))).json_schemas


DOCUMENT = {
    'type': 'object',
    'properties': {'open': {'type': 'boolean'}, 'name': {'type': 'string', 'maxLength': 4}, 'n': {'type': 'integer'}},
    'required': ['open'],
    'additionalProperties': False,
}


@pytest.mark.parametrize('ahead', [False, True])
def test_a_document_from_a_draft_is_the_one_without(schemas, ahead):
    rng, grammar, wrong = np.random.default_rng(ahead), schemas.grammar(json.dumps(DOCUMENT)), 0
    stops, vocabulary = schemas._stop_ids, len(schemas._tokenizer)
    for seed in range(60):
        model, max_tokens = Model(seed, vocabulary), int(rng.integers(5, 60))
        plain, confident = (ConfidenceSampler(sampler(seed % 3, seed)) for _ in range(2))
        writers = [schemas.sampler(grammar, sample) for sample in (plain, confident)]
        expected, picked = model.plainly(writers[0], max_tokens, stops)
        draft = some_draft(rng, picked, vocabulary)
        assert model.answer(writers[1], max_tokens, draft, ahead, stops) == expected
        assert confident.least == plain.least and writers[1].is_complete == writers[0].is_complete
        assert not writers[1].is_complete or schemas.check(writers[1].text(expected)) is None
        wrong += picked[: len(draft)] != draft
    assert 10 < wrong < 50


class Events(Sampler):
    """Notes what happens in which order: steps queued, tokens picked, read and accepted."""

    def __init__(self, monkeypatch, stops=STOPS):
        self.log, item = [], mx.array.item

        def read(array):
            self.log.append('read')
            return item(array)

        monkeypatch.setattr(mx.array, 'item', read)
        self._rows = Model(3).logits([])[None] + mx.eye(VOCABULARY) * -9

    def __call__(self, logits):
        self.log.append('pick')
        return mx.argmax(logits)

    def accept(self, token):
        self.log.append('accept')

    def step(self, token, position):
        self.log.append('step')
        return self._rows[token]

    def answer(self, max_tokens, ahead, stops=(), check=lambda: None, meter=None):
        return decode(
            self.step,
            self._rows[:1],
            0,
            max_tokens,
            stop_ids=stops,
            meter=meter or Meter(),
            ahead=ahead,
            check=check,
            sample=self,
            on_token=lambda ids: self.log.append('tell'),
            draft=(),
            keep=lambda tokens: self.log.append('keep'),
        )


@pytest.fixture
def events(monkeypatch):
    return Events(monkeypatch)


def test_each_token_is_read_once_and_before_the_next_step_on_a_cpu(events):
    assert len(events.answer(4, ahead=False)) == 4
    one = ['pick', 'read', 'accept', 'tell']
    assert events.log == [*one, 'keep', *(3 * ['step', *one])]


def test_ahead_the_next_step_is_queued_before_a_token_is_read_and_none_behind_the_last(events):
    """What decides the next token is still known when it is picked: the one before it was accepted."""
    assert len(events.answer(5, ahead=True)) == 5
    first, hidden, last = ['pick', 'read', 'accept', 'tell'], ['pick', 'step', 'read', 'accept', 'tell'], ['pick']
    assert events.log == [*first, 'keep', 'step', *(3 * hidden), *last, 'read', 'accept', 'tell']


def test_an_answer_of_one_token_needs_no_step(events):
    for ahead in (False, True):
        assert len(events.answer(1, ahead)) == 1
    assert 'step' not in events.log and 'keep' not in events.log


@pytest.mark.parametrize('ahead', [False, True])
@pytest.mark.parametrize('at', range(1, 6))
def test_what_stops_an_answer_stops_it_before_the_next_token(events, ahead, at):
    looks = count(1)

    def check():
        if next(looks) == at:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        events.answer(10, ahead, check=check)
    assert events.log.count('tell') == events.log.count('pick') == at - 1


def test_reading_a_token_does_not_wait_for_the_step_behind_it(monkeypatch):
    """What is queued in one call is read at one time, so the token and the step are queued in calls of their own."""
    queued = []
    monkeypatch.setattr(mx, 'async_eval', lambda *arrays: queued.append([array.shape for array in arrays]))
    Events(monkeypatch).answer(3, ahead=True)
    assert queued == [[(1, VOCABULARY)], [()], [(1, VOCABULARY)]]


@pytest.mark.parametrize('ahead', [False, True])
def test_every_step_is_counted_with_the_time_to_queue_it_and_to_wait_for_it(monkeypatch, ahead):
    """By a clock that only queueing, reading and telling move."""
    clock, model, item = [0.0], Model(1), mx.array.item

    def takes(seconds, function):
        def timed(*args):
            clock[0] += seconds
            return function(*args)

        return timed

    model.step = takes(2, model.step)
    picked = [1, 2, 3, 1, STOPS[0]]  # behind the last one a step is wasted ahead
    meter, learnt = Meter(clock=lambda: clock[0]), []
    monkeypatch.setattr(meter.decode, 'learn', lambda tokens, ms: learnt.append((tokens, ms)))

    def wait(array):
        clock[0] += 5 * (array.ndim == 0)  # the model reads the token too, mx (1,)
        return item(array)

    monkeypatch.setattr(mx.array, 'item', wait)
    model.answer(Script(picked), 40, ahead=ahead, meter=meter, on_token=lambda ids: takes(100, int)())
    steps, waits = len(picked) - 1 + ahead, len(picked) - 1
    assert meter.done.decode_tokens == model.steps == steps and meter.done.tokens == steps
    assert meter.done.ms == 1e3 * (2 * steps + 5 * waits)
    assert [tokens for tokens, _ in learnt] == waits * [1] and sum(ms for _, ms in learnt) == meter.done.ms


@pytest.mark.parametrize('ahead', [False, True])
def test_a_step_that_fails_counts_too(ahead):
    def fail(token, position):
        raise RuntimeError('out of memory')

    model, meter = Model(1), Meter()
    model.step = fail
    with pytest.raises(RuntimeError):
        model.answer(Script(count(1)), 9, ahead=ahead, meter=meter)
    assert meter.done.decode_tokens == 1
