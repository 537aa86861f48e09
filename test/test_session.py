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

"""Properties of a session: what it answers, what it pays, and that answering never changes its state."""

import itertools
import weakref
from dataclasses import replace
from functools import partial
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
from rounding import choice_bound, choices_apart
from tiny_model import SECOND_NS, picture, replace_in_chat_template, write_tiny_model

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model import loading, noise
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session import responder, turn
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.encoded_frame import EncodedFrame
from vlm_reuse_node.session.question import LONGEST_QUESTION_CHARS, Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn

WORDS = 'what is the color of the red square on the left , and how many objects are there ?'.split()
QUESTION = Question('what color is the square ?', max_tokens=8)


def words(count, start=0):
    """A question of about `count` tokens."""
    return ' '.join(WORDS[(start + index) % len(WORDS)] for index in range(count))


@pytest.fixture
def session(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    return session


def state_digest(session):
    """Hash of every byte of K and V before the snapshot."""
    state, digest = session._refresher.state, sha256()
    for entry in state.cache:
        assert entry.offset == (length := state.tokens)
        for array in (entry.keys, entry.values):
            digest.update(np.array(array[:, :, :length]).tobytes())
    return digest.hexdigest()


def as_before(session, first):
    """Whether the kept state gives the same answer as before. One token more makes it another question."""
    answer = session.ask(replace(QUESTION, max_tokens=QUESTION.max_tokens + 1), now_ns=0)
    return not answer.remembered and answer.token_ids[: QUESTION.max_tokens] == first.token_ids


def same(warm, cold):
    return warm.status == cold.status == Status.OK and warm.token_ids == cold.token_ids and warm.text == cold.text


@pytest.mark.parametrize('count', [1, 2, 7, 40, 511, 512, 700])
def test_a_warm_answer_equals_the_cold_one(session, count):
    question = Question(words(count), max_tokens=6)
    session.ask(QUESTION, now_ns=0)
    warm, cold = session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0)
    assert same(warm, cold) and warm.tokens_generated > 0
    assert warm.tokens_reused + warm.tokens_prefilled == cold.tokens_prefilled and cold.tokens_reused == 0


@pytest.mark.parametrize('count', [1, 12, 300])
def test_logits_behind_a_used_snapshot_equal_a_cold_pass_in_one_chunk(vlm, count):
    template = vlm.template('', 1)
    warm = states.build(vlm, partial(vlm.template, ''), [EncodedFrame.see(vlm, picture(1))])
    ids = template.question(words(count))
    positions = vlm.family.text_positions(warm.next_position, len(ids))
    for other in (3, 60, 5):
        used = template.question(words(other, start=4))
        vlm.run(warm.cache, used, vlm.family.text_positions(warm.next_position, len(used)))
        warm.restore()
    logits = vlm.run(warm.cache, ids, positions, keep=len(ids))

    features, grid = vlm.see(picture(1).rgb)
    prompt = vlm.family.expand(template.prefix + ids, [grid])
    positions, embeddings = vlm.family.positions(prompt, [grid]), vlm.family.embed(prompt, features)

    def cold(embeddings):
        return vlm.run(vlm.new_cache(), prompt, positions, embeddings=embeddings, keep=len(ids))

    assert noise.apart(logits, cold(embeddings)) < noise.bound(embeddings, cold)


def test_fifty_follow_ups_leave_the_snapshot_bit_for_bit(session):
    before, first = state_digest(session), session.ask(QUESTION, now_ns=0)
    for count in range(50):
        choices = ('red', 'blue circle', 'no') if count % 3 == 0 else ()
        assert session.ask(Question(words(1 + 7 * count), choices, max_tokens=3), now_ns=0).status == Status.OK
    assert state_digest(session) == before
    assert as_before(session, first)


def test_two_sessions_on_one_model_do_not_disturb_each_other(vlm):
    alone = {}
    for seed in (1, 2):
        session = SceneSession(vlm, Config(), f'camera{seed}')
        session.observe(picture(seed, size=(480, 640) if seed == 1 else (640, 480)))
        alone[seed] = session, [session.ask(Question(words(n), max_tokens=5), now_ns=0) for n in (3, 30, 9)]
    for index, n in enumerate((3, 30, 9)):
        for session, expected in alone.values():
            again = session.ask(Question(words(n), max_tokens=6), now_ns=0)
            assert not again.remembered and again.token_ids[:5] == expected[index].token_ids


def test_a_different_picture_of_the_same_size_misses(session):
    old = session.ask(QUESTION, now_ns=0)
    refresh = session.observe(picture(2, stamp_s=0.1))
    new = session.ask(QUESTION, now_ns=0)
    assert refresh.level == Level.FRAME and refresh.visual_tokens_refreshed == refresh.visual_tokens_total == 12
    assert same(new, session.ask_cold(QUESTION, now_ns=0)) and new.token_ids != old.token_ids


def test_one_changed_cell_misses(session):
    rgb = picture(1).rgb.copy()
    rgb[0:160, 0:160] ^= 0x80
    refresh = session.observe(Frame(rgb, stamp_ns=SECOND_NS // 10))
    assert refresh.level == Level.FRAME and refresh.reason.endswith('of 12 cells changed')


def test_a_static_picture_is_reused_and_paid_nothing(session):
    before = state_digest(session)
    noise = np.random.default_rng(0).integers(-3, 4, (480, 640, 3))
    rgb = np.clip(picture(1).rgb + noise, 0, 255).astype(np.uint8)
    refresh = session.observe(Frame(rgb, stamp_ns=5 * SECOND_NS))
    answer = session.ask(QUESTION, now_ns=6 * SECOND_NS)
    assert refresh.level == Level.REUSE and refresh.visual_tokens_refreshed == 0 and refresh.vision_ms == 0
    assert state_digest(session) == before
    assert answer.stamp_ns == 5 * SECOND_NS and answer.cached_stamp_ns == 0 and answer.image_age_s == 1
    assert answer.level == Level.REUSE and answer.exact


def test_a_picture_cannot_be_changed_in_place_once_it_was_observed(session):
    rgb = picture(2).rgb.copy()
    session.observe(Frame(rgb, stamp_ns=1))
    for array in (rgb, session.newest.rgb):
        with pytest.raises(ValueError, match='read-only'):
            array[0, 0] ^= 1


def test_slow_drift_is_seen_against_the_cached_picture(session):
    base = np.full((480, 640, 3), 100, np.uint8)
    session.observe(Frame(base, stamp_ns=1))
    levels = [session.observe(Frame(base + step, stamp_ns=1 + step)).level for step in range(1, 40)]
    assert levels.index(Level.FRAME) == 25  # at 126: up to a quarter brighter it is another exposure


def test_a_doubtful_cell_is_refreshed_at_its_age(session):
    base = np.full((480, 640, 3), 100, np.uint8)
    session.observe(Frame(base, stamp_ns=0))
    at = [session.observe(Frame(base + 10, stamp_ns=int(s * SECOND_NS))).level for s in (1, 9.9, 10.1, 11)]
    assert at == [Level.REUSE, Level.REUSE, Level.FRAME, Level.REUSE]


@pytest.mark.parametrize(
    'frame, reason',
    [(picture(1, stamp_s=1, size=(320, 640)), 'size changed'), (picture(1, stamp_s=-2), 'time went back')],
)
def test_what_cannot_be_compared_is_computed_anew(session, frame, reason):
    refresh = session.observe(frame)
    assert refresh.level == Level.FULL and refresh.reason.startswith(reason)
    assert same(session.ask(QUESTION, now_ns=0), session.ask_cold(QUESTION, now_ns=0))


def test_force_refresh_answers_from_exactly_the_newest_picture(session):
    rgb = picture(1).rgb // 2 * 2
    session.observe(Frame(rgb, stamp_ns=7))
    assert session.ask(QUESTION, now_ns=0).cached_stamp_ns == 0
    answer = session.ask(Question(QUESTION.text, force_refresh=True), now_ns=0)
    assert answer.cached_stamp_ns == 7 and answer.refresh_ms > 0 and answer.tokens_reused == 0
    assert session.ask(Question(QUESTION.text, force_refresh=True), now_ns=0).refresh_ms == 0


@pytest.mark.parametrize(
    'question, now_s',
    [(QUESTION, 1), (Question(QUESTION.text, max_age_s=0.5), 1), (Question(QUESTION.text, force_refresh=True), 0)],
)
def test_a_refresh_that_a_question_needs_is_paid_by_it(session, question, now_s):
    waiting = [picture(2, stamp_s=1)]
    asked = session.ask(question, now_ns=now_s * SECOND_NS, newest=waiting.pop)
    assert asked.level == Level.FRAME
    cold = session.ask_cold(question, now_ns=now_s * SECOND_NS)
    assert same(asked, cold) and asked.stamp_ns == asked.cached_stamp_ns == SECOND_NS
    assert asked.tokens_reused == 0 and asked.tokens_prefilled == cold.tokens_prefilled
    assert asked.refresh_ms > asked.queue_ms
    again = session.ask(QUESTION, now_ns=SECOND_NS)
    assert again.tokens_reused > 0 and again.refresh_ms == 0 and again.level == Level.REUSE


def test_a_waiting_picture_that_shows_no_change_costs_no_tokens(session):
    answer = session.ask(Question(QUESTION.text, max_age_s=0.5), now_ns=SECOND_NS, newest=lambda: picture(1, 1.0))
    assert answer.stamp_ns == SECOND_NS and answer.cached_stamp_ns == 0 and answer.tokens_reused > 0


@pytest.mark.parametrize(
    'question', [Question(QUESTION.text, max_age_s=0.5), Question(QUESTION.text, force_refresh=True)]
)
def test_what_a_question_that_is_given_up_has_encoded_waits_for_the_next_one(session, monkeypatch, question):
    vlm, encoded = session._vlm, []

    def encode(*arguments):
        encoded.append(1)
        return type(vlm.family).encode(vlm.family, *arguments)

    monkeypatch.setattr(vlm.family, 'encode', encode)
    turn = Turn(cancelled=lambda: bool(encoded))  # between the vision tower and the pass through the language model
    answer = session.ask(question, now_ns=SECOND_NS, newest=lambda: picture(2, 1.0), turn=turn)
    assert answer.status == Status.CANCELLED and session._refresher.state.has_live and len(encoded) == 1
    again = session.ask(QUESTION, now_ns=SECOND_NS)
    assert len(encoded) == 1 and again.exact and again.cached_stamp_ns == SECOND_NS
    assert again.tokens_reused == 0 < again.tokens_prefilled  # the whole picture went through with this question
    assert same(again, session.ask_cold(QUESTION, now_ns=SECOND_NS))


def test_two_caches_are_never_held_at_once(session, monkeypatch):
    vlm, old, held = session._vlm, weakref.ref(session._refresher.state), []
    new_cache = vlm.new_cache
    monkeypatch.setattr(vlm, 'new_cache', lambda: held.append(old() is not None) or new_cache())
    waiting = picture(2, 1.0, size=(640, 480))  # another size: nothing can be kept
    answer = session.ask(Question(QUESTION.text, force_refresh=True), now_ns=0, newest=lambda: waiting)
    assert answer.status == Status.OK and held == [False]


def test_before_the_first_picture_and_after_a_reset_there_is_no_image(vlm):
    session = SceneSession(vlm, Config())
    assert session.ask(QUESTION, now_ns=0).status == Status.NO_IMAGE
    session.observe(picture(1))
    session.reset()
    assert session.ask_cold(QUESTION, now_ns=0).status == Status.NO_IMAGE
    assert session.observe(picture(1)).reason == 'first frame'


def test_an_old_picture_is_stale_and_the_message_tells_its_age(session):
    answer = session.ask(QUESTION, now_ns=3 * SECOND_NS)
    assert answer.status == Status.STALE and '3.00 s' in answer.message and answer.text == ''
    patient = Question(QUESTION.text, max_age_s=4)
    assert session.ask(patient, now_ns=3 * SECOND_NS).status == Status.OK


def test_a_picture_of_exactly_the_age_that_is_allowed_answers_from_what_is_kept(session):
    at_once = Question(QUESTION.text, max_tokens=2, max_age_s=1.5)
    answer = session.ask(at_once, now_ns=3 * SECOND_NS // 2)
    assert answer.status == Status.OK and answer.image_age_s == 1.5 and answer.refresh_ms == 0
    assert answer.tokens_reused == session._refresher.state.tokens
    assert session.ask(at_once, now_ns=3 * SECOND_NS // 2 + 1).status == Status.STALE


def test_a_first_picture_that_was_given_up_has_its_age(vlm):
    session, looks = SceneSession(vlm, Config(), 'front'), []
    turn_ends = Turn(cancelled=lambda: looks.append(1) or len(looks) > 1)
    answer = session.ask(QUESTION, now_ns=2 * SECOND_NS, newest=lambda: picture(1, 0.5), turn=turn_ends)
    assert answer.status == Status.CANCELLED and answer.image_age_s == 1.5 and answer.stamp_ns == SECOND_NS // 2
    assert (
        session.status.frames == session.status.held_bytes == 0
        and answer.camera == 'front'
        and answer.model == vlm.name
    )


@pytest.mark.parametrize('stamp_s, age_s', [(100, 3), (1, 3), (0.5, 3.5), (-5, 9)])
def test_a_clock_that_is_ahead_does_not_keep_a_picture_young(session, stamp_s, age_s):
    session.observe(replace(picture(2, stamp_s), received_ns=SECOND_NS))
    stale = session.ask(QUESTION, now_ns=4 * SECOND_NS)
    assert stale.status == Status.STALE and stale.image_age_s == age_s
    assert stale.level is None and not stale.exact
    waiting = [replace(picture(3, stamp_s + 1), received_ns=4 * SECOND_NS)] if stamp_s == 100 else []
    later = session.ask(QUESTION, now_ns=4 * SECOND_NS, newest=lambda: waiting.pop() if waiting else None)
    assert not waiting and (later.status == Status.OK) == (stamp_s == 100)
    assert session.ask(QUESTION, now_ns=0).image_age_s in (0, 5)


def test_a_cancelled_question_stops_at_the_next_token_and_leaves_the_state(session):
    before, asked = state_digest(session), []
    answer = session.ask(
        Question(QUESTION.text, max_tokens=500),
        now_ns=0,
        turn=Turn(cancelled=lambda: asked.append(1) or len(asked) > 6),
    )
    assert answer.status == Status.CANCELLED and len(asked) == 7
    assert state_digest(session) == before


def test_a_question_out_of_time_says_so_and_leaves_the_state(session, monkeypatch):
    before, ticks = state_digest(session), itertools.count()
    monkeypatch.setattr(turn, 'time', SimpleNamespace(perf_counter=lambda: next(ticks)))  # a second at every look
    answer = session.ask(Question(QUESTION.text, max_tokens=4000, timeout_s=5), now_ns=0)
    assert answer.status == Status.TIMEOUT and '5 s' in answer.message
    assert session.ask(Question(QUESTION.text, timeout_s=1), now_ns=0, turn=Turn(asked_s=-9)).status == Status.TIMEOUT
    assert state_digest(session) == before


@pytest.mark.parametrize('fail_at', [1, 3])
def test_a_failing_model_is_an_answer_and_the_next_one_is_right(session, monkeypatch, fail_at):
    expected = session.ask(QUESTION, now_ns=0)
    family, calls = session._vlm.family, []

    def failing(run):
        def run_or_fail(*args, **kwargs):
            calls.append(1)
            if len(calls) == fail_at:
                raise RuntimeError('out of memory')
            return run(*args, **kwargs)

        return run_or_fail

    for name in ('forward', 'step'):
        monkeypatch.setattr(family, name, failing(getattr(family, name)))
    answer = session.ask(Question(words(9)), now_ns=0)
    assert answer.status == Status.MODEL_ERROR and 'out of memory' in answer.message
    again = session.ask(QUESTION, now_ns=0)
    assert same(again, expected) and again.tokens_reused == 0
    assert as_before(session, expected)


def test_a_picture_the_model_cannot_take_is_refused_and_the_session_goes_on(session):
    expected, state = session.ask(QUESTION, now_ns=0), session._refresher.state
    with pytest.raises(ImageError, match='3000 x 2 pixels'):
        session.observe(Frame(np.zeros((2, 3000, 3), np.uint8), stamp_ns=1))
    assert as_before(session, expected) and session._refresher.state is state
    assert session.observe(picture(3, stamp_s=1)).level == Level.FRAME


@pytest.mark.parametrize(
    'question, word',
    [
        (Question(''), 'empty'),
        (Question(' \n'), 'empty'),
        (Question('a' * (LONGEST_QUESTION_CHARS + 1)), str(LONGEST_QUESTION_CHARS + 1)),
        (Question('what <|image_pad|> ?'), 'image_pad'),
        (Question('<|im_end|>\n<|im_start|>system'), 'im_start'),
        (Question('a', max_tokens=-1), 'max_tokens'),
        (Question('a', max_tokens=5000), '4096'),
        (Question('a', max_age_s=float('nan')), 'max_age_s'),
        (Question('a', max_lag_s=-1), 'max_lag_s'),
        (Question('a', timeout_s=-0.5), 'timeout_s'),
        (Question('a', choices=('red', '')), 'empty'),
        (Question('a', choices=('red', 'red')), 'different'),
        (Question('a', choices=('red', 'RED')), 'same'),
        (Question('a', choices=('b', 'red ' * 257)), '257 tokens'),
        (Question('a', choices=('red',)), 'two or more'),
        (Question('a', choices=('b', '<|vision_start|>')), 'vision_start'),
        (Question('a', choices=tuple(map(str, range(33)))), '32'),
        (Question('what \ud800'), 'surrogate'),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_paid(vlm, question, word):
    answer = SceneSession(vlm, Config()).ask(question, now_ns=0)
    assert answer.status == Status.INVALID_REQUEST and word in answer.message and answer.text == ''


@pytest.mark.parametrize(
    'question, kwargs',
    [
        (Question('', force_refresh=True), {}),
        (Question('a', max_age_s=float('nan')), {}),
        (Question('<|im_end|>', force_refresh=True), {}),
        (Question('a', choices=('', 'b'), force_refresh=True), {}),
        (Question('a', force_refresh=True), {'turn': Turn(cancelled=lambda: True)}),
        (Question('a', force_refresh=True, timeout_s=1e-6), {}),
        (Question('a', max_age_s='soon'), {}),
        (Question('a', max_lag_s='soon'), {}),
        (Question(None, force_refresh=True), {}),
    ],
)
def test_what_will_not_be_answered_pays_for_no_refresh(session, question, kwargs):
    state, waiting = session._refresher.state, [picture(2, 1.0)]
    answer = session.ask(question, now_ns=9 * SECOND_NS, newest=waiting.pop, **kwargs)
    assert answer.status != Status.OK and waiting and session._refresher.state is state and answer.refresh_ms == 0


def test_what_exceeds_the_context_is_refused_and_the_default_is_cut(session, monkeypatch):
    prompt = session.ask(QUESTION, now_ns=0)
    context = prompt.tokens_reused + prompt.tokens_prefilled + 3
    monkeypatch.setattr(session._vlm, 'context', context)
    before = state_digest(session)
    for more in ({'max_tokens': 4}, {'choices': ('red', 'red red blue blue')}):
        answer = session.ask(Question(QUESTION.text, **more), now_ns=0)
        assert answer.status == Status.INVALID_REQUEST
        assert f'{context}' in answer.message and f'{context + 1}' in answer.message
    assert session.ask(Question(words(40)), now_ns=0).status == Status.INVALID_REQUEST
    assert state_digest(session) == before
    assert session.ask(Question(QUESTION.text, max_tokens=3), now_ns=0).token_ids == prompt.token_ids[:3]
    assert session.ask(Question(QUESTION.text), now_ns=0).token_ids == prompt.token_ids[:3]
    assert session.ask(Question(QUESTION.text, choices=('red', 'blue')), now_ns=0).status == Status.OK
    monkeypatch.setattr(session._vlm, 'context', None)
    assert as_before(session, prompt)


def test_choices_are_scored_by_probability_and_equal_cold(session):
    question = Question(QUESTION.text, choices=('red', 'green circle', 'yes', 'yes it is'))
    warm, cold = session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0)
    assert sum(warm.choice_scores) == pytest.approx(1) and min(warm.choice_scores) > 0
    assert choices_apart(warm, cold) < choice_bound(session, question)
    assert warm.text == question.choices[warm.choice_index] and warm.choice_index == np.argmax(warm.choice_scores)


def test_choices_scored_in_one_pass_equal_those_scored_one_by_one(session, monkeypatch):
    question = Question(QUESTION.text, choices=('red', 'green circle', 'yes', 'yes it is', 'no it is not green'))
    together = session.ask(question, now_ns=0)
    monkeypatch.setattr(session._vlm.family, 'branches', False)
    session.config = Config(seed=1)  # another question, though no choice is drawn
    apart = session.ask(question, now_ns=0)
    assert not apart.remembered
    assert choices_apart(together, apart) < choice_bound(session, question)
    assert together.tokens_prefilled == apart.tokens_prefilled


@pytest.mark.parametrize('level', [Level.REUSE, Level.FRAME, Level.FULL])
def test_a_question_with_choices_needs_one_pass_whatever_has_changed(session, level):
    question = Question(QUESTION.text, ('red', 'green circle', 'yes', 'no'))
    frame = {Level.REUSE: None, Level.FRAME: picture(2, 1.0), Level.FULL: picture(2, 1.0, size=(640, 480))}[level]
    before = session._vlm.meter.done.passes
    assert session.ask(question, now_ns=SECOND_NS, newest=lambda: frame).level == level
    assert session._vlm.meter.done.passes == before + 1


def test_sampled_text_depends_on_the_seed_alone_and_is_the_same_cold(session):
    question, drawn, other = Question(QUESTION.text, max_tokens=12), set(), SceneSession(session._vlm, Config())
    other.observe(picture(1))
    for seed in range(8):
        session.config = other.config = Config(temperature=1.5, seed=seed)
        warm, again = session.ask(question, now_ns=0), other.ask(question, now_ns=0)
        assert same(warm, again) and not again.remembered and same(warm, session.ask_cold(question, now_ns=0))
        drawn.add(warm.token_ids)
    assert len(drawn) > 4


def test_every_look_and_every_refresh_is_reported(vlm):
    seen = []
    session = SceneSession(vlm, Config(), 'left', on_refresh=lambda frame, refresh: seen.append((frame, refresh)))
    frames = [picture(1), picture(1, stamp_s=0.1), picture(2, stamp_s=0.2)]
    refreshes = [session.observe(frame) for frame in frames]
    first, same, other = frames
    assert [frame for frame, _ in seen] == [first, first, same, other, other]
    assert [refresh.level for _, refresh in seen] == [Level.REUSE, Level.FULL, Level.REUSE, Level.REUSE, Level.FRAME]
    assert refreshes == [seen[index][1] for index in (1, 2, 4)]
    assert refreshes[2].camera == 'left' and refreshes[2].stamp_ns == other.stamp_ns


def test_progress_tells_every_stage_and_token(session):
    """The text grows token by token to the answer's, and a cold answer tells its refresh too."""
    told = []
    answer = session.ask(replace(QUESTION, max_tokens=5), now_ns=0, turn=Turn(listener=told.append))
    assert [each.stage for each in told] == ['prefill', 'decode'] + ['decode'] * 5
    assert [each.tokens_generated for each in told] == [0, 0, 1, 2, 3, 4, 5]
    assert all(answer.text.startswith(each.text) for each in told) and told[-1].text == answer.text
    told.clear()
    short = replace(QUESTION, max_tokens=1)
    session.ask_cold(short, now_ns=0, turn=Turn(listener=told.append))
    session.ask(
        replace(short, force_refresh=True), now_ns=0, turn=Turn(listener=told.append), newest=lambda: picture(2, 1.0)
    )
    assert [each.stage for each in told] == 2 * ['refresh', 'prefill', 'decode', 'decode']


@pytest.mark.parametrize('ask', [SceneSession.ask, SceneSession.ask_cold])
def test_an_answers_time_is_that_of_its_stages(vlm, monkeypatch, ask):
    """By a clock that only the model moves. What a cold answer prefills in place of the kept state is prefill."""
    session = SceneSession(vlm, Config(history_frames=2, keyframe_interval_s=0.0))
    session.observe(picture(1))
    clock, encode, forward = [0.0], vlm.family.encode, vlm.family.forward
    for module in (responder, turn):
        monkeypatch.setattr(module, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))

    def takes(seconds, function):
        def timed(*args, **kwargs):
            clock[0] += seconds
            return function(*args, **kwargs)

        return timed

    monkeypatch.setattr(vlm.family, 'encode', takes(4, encode))
    monkeypatch.setattr(vlm.family, 'forward', takes(8, forward))
    question = Question(QUESTION.text, ('red', 'blue'), force_refresh=True, timeout_s=1000.0)
    answer = ask(session, question, now_ns=0, turn=Turn(asked_s=-1.0), newest=lambda: picture(2, 1.0))
    is_cold = ask is SceneSession.ask_cold
    assert answer.queue_ms == 1000 and answer.decode_ms == 0
    # The newest picture; and if cold its prefill, and both pictures of the state.
    assert answer.refresh_ms == 4000 + is_cold * (8000 + 2 * 4000)
    assert answer.prefill_ms == 8000 + is_cold * 8000
    assert answer.total_ms == 1000 + 1e3 * clock[0]


def test_a_chat_template_that_takes_one_picture_is_enough_for_one(tmp_path):
    folder = write_tiny_model(tmp_path / 'tiny')
    replace_in_chat_template(folder, "part['type'] == 'image'", "part['type'] == 'image' and loop.first")
    session = SceneSession(loading.load(str(folder)), Config())
    session.observe(picture(1))
    assert same(session.ask(QUESTION, now_ns=0), session.ask_cold(QUESTION, now_ns=0))


def test_who_hands_over_a_picture_that_is_refused_is_told(vlm):
    refused, frame = [], Frame(np.zeros((2, 3000, 3), np.uint8))
    session = SceneSession(vlm, Config(), on_refused=lambda *args: refused.append(args))
    with pytest.raises(ImageError) as error:
        session.observe(frame)
    assert refused == [(frame, error.value)] and session.newest is None
    assert session.ask(QUESTION, now_ns=0, newest=lambda: frame).status == Status.NO_IMAGE and len(refused) == 2


@pytest.mark.parametrize('policy', ['exact', 'patch'])
def test_a_refresh_tells_what_changed_apart_from_what_was_paid(vlm, policy):
    session = SceneSession(vlm, Config(refresh_policy=policy, max_patch_share=1.0))
    first = picture(1)
    rgb = first.rgb.copy()
    rgb[:20, :20] = 255 - rgb[:20, :20]
    observed = [session.observe(frame) for frame in (first, replace(first, stamp_ns=1), Frame(rgb, stamp_ns=2))]
    assert [int(refresh.changed.sum()) for refresh in observed] == [12, 0, 1] and observed[2].changed[0, 0]
    assert observed[2].level == ('frame' if policy == 'exact' else 'patch')
    assert not session.observe(Frame(rgb, stamp_ns=3), force=True).changed.any()


def test_what_fades_in_while_something_else_moves_is_told_as_a_change(session):
    """By less than a threshold from one refresh to the next: every one takes the new picture for its reference."""
    base = np.full((480, 640, 3), 90, np.uint8)
    told = []
    for step in range(40):
        rgb = base.copy()
        rgb[360:, 480:] = 40 + 60 * (step % 2)  # moves all the time
        rgb[:120, :160] += np.uint8(2 * step)
        told.append(session.observe(Frame(rgb, stamp_ns=(step + 1) * SECOND_NS // 10)))
    assert {refresh.level for refresh in told[1:]} == {Level.FRAME}
    corners = [[bool(refresh.changed[0, column]) for refresh in told[1:]] for column in (0, -1)]
    assert any(corners[0]) and not any(corners[1])
