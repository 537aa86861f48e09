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

"""The last answer as a draft, on random models: it changes the cost of a text, and not the text.

test_decoding.py has thousands of random drafts, also of texts that follow a schema.
"""

import numpy as np
import pytest
from credit import give_credit
from tiny_gemma4 import write_tiny_gemma4
from tiny_model import SECOND_NS, picture, write_tiny_model
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import loading, noise
from vlm_reuse_node.model.token_tree import Block
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn

TEXTS = (
    'what is it ?',
    'what color is the square on the left ?',
    'how many red or blue objects do you see ?',
    'describe the scene',
    'is the circle on the right ?',
)
MODELS = {
    **{f'qwen2_5_vl {seed}': lambda folder, seed=seed: write_tiny_model(folder, seed) for seed in range(1)},
    'gemma4, rings that have wrapped': lambda folder: write_tiny_gemma4(folder, window=28),
    'qwen3_5, recurrent': lambda folder: write_tiny_qwen3(folder, 'qwen3_5'),
}


@pytest.fixture(params=MODELS)
def vlm(request, tmp_path):
    folder = tmp_path / 'model'
    return loading.load(str(MODELS[request.param](folder) or folder))


def mixed(share, stamp_s):
    """A picture between two others, so that answers change now and then."""
    frames = [picture(seed, stamp_s=stamp_s) for seed in (1, 2)]
    rgb = (1 - share) * frames[0].rgb + share * frames[1].rgb
    return type(frames[0])(rgb.round().astype(np.uint8), stamp_ns=frames[0].stamp_ns)


def is_tie(vlm, state, tokenized, one, other):
    """Whether two texts part where the model finds both tokens equally likely, up to rounding."""
    place = next(number for number, (a, b) in enumerate(zip((*one, -1), (*other, -1))) if a != b)
    given = vlm.family.embed(tokenized.tokens + list(one[:place]))
    positions = vlm.family.text_positions(state.next_position, given.shape[1])

    def logits(embeddings):
        rows = vlm.run(state.cache, [0] * embeddings.shape[1], positions, embeddings=embeddings)
        state.restore()
        return rows

    row, ends = np.array(logits(given)[-1]), vlm.stop_ids
    tokens = [ids[place] if place < len(ids) else max(ends, key=lambda token: row[token]) for ids in (one, other)]
    return abs(row[tokens[0]] - row[tokens[1]]) < 2 * noise.bound(given, logits)


@pytest.mark.parametrize('temperature', [0.0, 0.7])
def test_a_text_with_a_draft_is_the_text_without_one(vlm, temperature):
    config = Config(temperature=temperature, history_frames=2, keyframe_interval_s=3.0)
    session = SceneSession(vlm, config)
    answerer, saved, texts = session._responder._answerer, 0, 0
    for step in range(8):
        session.look(mixed((step // 2 % 5) / 4, step))
        give_credit(session)
        for number, text in enumerate(TEXTS):
            question = Question(text, max_tokens=3 + 3 * number)
            before = vlm.meter.done
            answer = session.ask(question, now_ns=step * SECOND_NS)
            spent, state = vlm.meter.done - before, session._refresher.state
            tokenized = answerer.tokenize(question, config)
            plain = answerer.answer(state, tokenized, Turn())
            if answer.token_ids != plain.token_ids:
                assert is_tie(vlm, state, tokenized, answer.token_ids, plain.token_ids)
            else:
                assert answer.text == plain.text and answer.confidence == pytest.approx(plain.confidence, abs=1e-4)
            texts += not answer.remembered
            saved += len(answer.token_ids) - spent.decode_tokens
    assert texts > 15 and saved > texts  # else nothing was tried


def test_without_credit_there_is_no_draft(vlm):
    """Every picture is another one, so nothing is saved that could pay for a wrong draft."""
    session = SceneSession(vlm, Config(upkeep_share=0.0))
    question = Question(TEXTS[0], max_tokens=6)
    for step in range(4):
        session.look(picture(step, stamp_s=step))
        answer = session.ask(question, now_ns=step * SECOND_NS)
        assert answer.tokens_prefilled + answer.tokens_reused == session._refresher.state.tokens + len(
            session._refresher.state.template.question(question.text)
        )
    assert session._account.spent.tokens <= session._account.cold.tokens


def test_a_draft_that_does_not_fit_into_the_call_is_not_used(vlm, monkeypatch):
    session = give_credit(SceneSession(vlm, Config()))
    session.observe(picture(1))
    answerer, question = session._responder._answerer, Question(TEXTS[1], max_tokens=30)
    tokenized, last = answerer.tokenize(question, session.config), tuple(range(3, 25))
    state = session._refresher.state
    assert answerer.draft(state, tokenized, last) == list(last)
    assert answerer.draft(state, answerer.tokenize(Question(TEXTS[1], max_tokens=5), session.config), last) == list(
        last[:4]
    )
    monkeypatch.setattr('vlm_reuse_node.model.vlm.PREFILL_CHUNK', len(tokenized.tokens) + len(last) - 1)
    assert not state.can_read_at_once([Block(tokenized.tokens), Block(list(last), 0)])
    assert answerer.draft(state, tokenized, last) == []
    assert answerer.draft(state, tokenized, ()) == []
