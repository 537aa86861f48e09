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

"""Qwen3.5's recurrent layers: a state put back goes on as the one it was, whatever was asked in between."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.cache import ArraysCache, KVCache
from rounding import WIDE, choice_bound, choices_apart
from tiny_model import picture
from tiny_qwen3 import CONTEXT, prompt, run, write_tiny_qwen3

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import kv_cache, noise
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.model.vlm import PREFILL_CHUNK
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXT = 'how many objects are there , and what is the color of the square on the left ?'
OTHER = 'what is it ?'
LONGEST = 3000


@pytest.fixture(scope='module', params=['qwen3_5', 'qwen3_5_moe'])
def model_dir(request, tmp_path_factory):
    """A tiny model with recurrent layers, dense and as a mixture of experts."""
    return write_tiny_qwen3(tmp_path_factory.mktemp('models') / request.param, request.param)


@pytest.fixture(scope='module')
def vlm(model_dir):
    """The model as we load it."""
    return load(str(model_dir))


@pytest.fixture
def prefix(vlm):
    """Two pictures' prompt up to the snapshot: ids, positions, embeddings."""
    ids, positions, embeddings = prompt(vlm, TEXT, [picture(1), picture(2, size=(320, 960))])
    end = vlm.family.slots(ids)[-1]
    return ids[:end], positions[:, :end], embeddings[:, :end]


def prefilled(vlm, prefix):
    """A cache that ends at the snapshot, and the position behind it."""
    ids, positions, embeddings = prefix
    cache = vlm.new_cache()
    vlm.run(cache, ids, positions, embeddings=embeddings)
    return cache, int(positions.max()) + 1


def continued(vlm, cache, ids, start, tokens=4):
    """The last logits of a question behind a cache, (vocabulary,), and the first tokens of its answer."""
    logits = vlm.run(cache, ids, vlm.family.text_positions(start, len(ids)))
    return np.array(logits[-1]), vlm.decode(cache, logits, start + len(ids), tokens)


def words(vlm, length, seed=0):
    """So many tokens of plain text."""
    special = min(vlm.template('', 1)._special)
    return np.random.default_rng(seed).integers(0, special, length).tolist()


def test_recurrent_and_attention_layers_have_their_own_kind_of_cache(vlm):
    assert [type(entry) for entry in vlm.new_cache()] == [ArraysCache, KVCache] * 2


def test_two_branches_from_one_snapshot_equal_two_cold_runs(vlm, prefix):
    cache, start = prefilled(vlm, prefix)
    snapshot = kv_cache.take(cache)
    for text in (TEXT, OTHER, TEXT):
        ids = vlm.template('', 2).question(text)
        warm, warm_tokens = continued(vlm, cache, ids, start)
        kv_cache.restore(cache, snapshot)
        cold, cold_tokens = continued(vlm, *_cold(vlm, prefix, ids))
        assert np.array_equal(warm, cold) and warm_tokens == cold_tokens


def _cold(vlm, prefix, ids):
    cache, start = prefilled(vlm, prefix)
    return cache, ids, start


def test_a_branch_that_is_only_cut_back_is_not_the_cold_run(vlm, prefix):
    ids = vlm.template('', 2).question(OTHER)
    cache, start = prefilled(vlm, prefix)
    cold, _ = continued(vlm, cache, ids, start)
    bound = noise.bound(prefix[2], lambda embeddings: continued(vlm, *_cold(vlm, (*prefix[:2], embeddings), ids))[0])
    for entry in cache:
        if isinstance(entry, KVCache):
            entry.trim(entry.offset - len(prefix[0]))
    cut, _ = continued(vlm, cache, ids, start)
    assert noise.apart(cut, cold) > WIDE * bound


@pytest.mark.parametrize('model_dir', ['qwen3_5'], indirect=True)
def test_fifty_follow_ups_of_one_to_three_thousand_tokens_equal_cold(vlm, prefix):
    lengths = [*range(1, 41), 63, 65, 128, 300, 511, 512, 513, 1000, 2049, LONGEST]
    texts = [words(vlm, LONGEST, seed) for seed in (1, 2)]
    colds = [_cold_logits(vlm, prefix, text) for text in texts]
    beginning = texts[0][: LONGEST // 5]  # more than one call
    bound = noise.bound(
        [prefix[2], vlm.family.embed(beginning)],
        lambda given: _cold_logits(vlm, (*prefix[:2], given[0]), beginning, given[1]),
    )

    cache, start = prefilled(vlm, prefix)
    snapshot, worst = kv_cache.take(cache), 0.0
    for length in np.random.default_rng(1).permutation(lengths).tolist():
        logits, tokens = continued(vlm, cache, texts[length % 2][:length], start, tokens=2)
        kv_cache.restore(cache, snapshot)
        cold = colds[length % 2][length - 1]
        worst = max(worst, noise.apart(logits, cold))
        assert tokens[:1] == [token for token in [cold.argmax()] if token not in vlm.stop_ids]
    assert len(lengths) == 50 and worst < bound


def _cold_logits(vlm, prefix, text, embedded=None):
    """Pictures and a text as one prompt, its chunks cut from the start: the logits behind each of the text's tokens."""
    ids, positions, embeddings = prefix
    positions = np.concatenate([positions, vlm.family.text_positions(positions.max() + 1, len(text))], axis=1)
    embeddings = mx.concatenate([embeddings, vlm.family.embed(text) if embedded is None else embedded], axis=1)
    assert positions.shape[1] < CONTEXT
    return run(vlm, ids + text, positions, embeddings, vlm.new_cache(), PREFILL_CHUNK)[len(ids) :]


def test_sessions_and_text_only_turns_on_one_model_do_not_disturb_each_other(vlm):
    frames = picture(1, camera='front'), picture(2, camera='rear', size=(320, 960))
    questions = [Question(TEXT, max_tokens=6), Question(OTHER, max_tokens=6), Question(OTHER, ('yes', 'no'))]
    alone = []
    for frame in frames:
        session = SceneSession(vlm, Config(), camera=frame.camera)
        session.observe(frame)
        alone.append([session.ask(question, now_ns=0) for question in questions])

    sessions = [SceneSession(vlm, Config(), camera=frame.camera) for frame in frames]
    for session, frame in zip(sessions, frames):
        session.observe(frame)
        _text_only_turn(vlm)
    for number, question in enumerate(questions):
        for session, expected in zip(sessions, alone):
            answer = session.ask(question, now_ns=0)
            _text_only_turn(vlm)
            assert answer.status == Status.OK and answer.token_ids == expected[number].token_ids
            assert answer.choice_scores == expected[number].choice_scores
            assert answer.tokens_reused > 0
    assert alone[0][0].token_ids != alone[1][0].token_ids  # the pictures matter


def _text_only_turn(vlm):
    """What any other user of the model may do: a chat without pictures, which keeps its positions in the model."""
    model = vlm._model
    mx.eval(model(mx.array([words(vlm, 30)]), cache=vlm.new_cache()).logits)
    assert model.language_model._rope_deltas is not None


def test_a_refresh_of_the_live_picture_starts_from_the_state_before_it(vlm):
    frames = [picture(seed, stamp_s=seed) for seed in (1, 2, 3)]
    session = SceneSession(vlm, Config())
    refreshes = [session.observe(frame) for frame in frames]
    assert refreshes[0].level == Level.FULL
    choice = Question(OTHER, ('yes', 'no', 'red'))
    for question in (Question(TEXT, max_tokens=6), choice):
        warm, cold = (ask(question, now_ns=0) for ask in (session.ask, session.ask_cold))
        assert warm.status == Status.OK and warm.token_ids == cold.token_ids
        assert cold.tokens_reused == 0 < warm.tokens_reused
    assert choices_apart(warm, cold) < choice_bound(session, choice)


def test_one_call_equals_many_behind_a_restored_state(vlm, prefix):
    cache, start = prefilled(vlm, prefix)
    snapshot = kv_cache.take(cache)
    ids = words(vlm, 90)
    positions, embeddings = vlm.family.text_positions(start, len(ids)), vlm.family.embed(ids)

    def logits(embeddings, limit=512):
        kv_cache.restore(cache, snapshot)
        return run(vlm, ids, positions, embeddings, cache, limit)

    expected, bound = logits(embeddings), noise.bound(embeddings, logits)
    for limit in (2, 64, 89):  # less than the convolution's window; the library's own block; one token left
        assert noise.apart(logits(embeddings, limit), expected) < bound
