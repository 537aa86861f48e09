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

"""A session within a budget: what waits, what is paid all the same, what answers say; and its drift audit."""

import numpy as np
import pytest
from credit import Idle, give_credit, set_prices
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.auditor import MOST_WAITING
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt

QUESTION = Question('what color is the square ?', max_tokens=4, max_age_s=1000.0)
CHOICE = Question('what color is the square ?', ('red', 'green', 'blue'), max_age_s=1000.0)
TIGHT = Config(budget_ms=1.0)  # no whole picture fits, and one cell does: see `prices`
PATCH = Config(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9, max_patches=1000, audit_share=1.0)


@pytest.fixture(autouse=True)
def prices(monkeypatch):
    """A cell takes one millisecond, and a whole picture takes a second."""
    set_prices(monkeypatch, frame_ms=1000.0, cell_ms=1.0)


def changed(stamp_s, by=0x80, area=(slice(0, 100), slice(0, 100))):
    """The first picture later, some of its pixels others."""
    first = picture(1)
    rgb = first.rgb.copy()
    rgb[area] ^= by
    return Frame(rgb, int(stamp_s * SECOND_NS), first.frame_id, first.camera)


def audit(session, check=lambda: None):
    """One step of an audit."""
    session._auditor.step(check, session.config)


def audit_one(session):
    """All steps of one audit."""
    for _ in range(len(session._refresher.state.frames) + 1):
        audit(session)


def has_audit(session):
    return bool(session._auditor._waiting)


def audits(session):
    return session.status.audits


def started(vlm, config, **arguments):
    session = SceneSession(vlm, config, **arguments)
    session.observe(picture(1))
    return session


def test_a_picture_over_budget_waits_and_is_told_as_debt(vlm):
    session = started(vlm, TIGHT)
    look = session.observe(changed(0.5))
    assert look.level == Level.REUSE and look.reason.endswith('of 12 cells are stale')
    assert look.visual_tokens_stale > 0 and look.visual_tokens_refreshed == 0
    answer = session.ask(QUESTION, now_ns=SECOND_NS // 2)
    assert answer.status == Status.OK and answer.exact and answer.cached_stamp_ns == answer.stamp_ns == 0
    assert answer.level == Level.REUSE
    # Since the last picture that looked like the cached one.
    assert answer.image_age_s == answer.lag_s == look.lag_s == pytest.approx(0.5)


def test_debt_beyond_a_questions_age_is_paid_first(vlm):
    session = started(vlm, TIGHT)
    session.observe(changed(0.5))
    answer = session.ask(Question(QUESTION.text, max_tokens=4, max_age_s=0.4), now_ns=SECOND_NS // 2)
    assert answer.status == Status.OK and answer.cached_stamp_ns == SECOND_NS // 2
    assert answer.image_age_s == answer.lag_s == 0 and answer.level == Level.FRAME
    assert session.observe(changed(0.6)).visual_tokens_stale == 0


def test_debt_is_paid_at_its_age_limit_whatever_the_budget(vlm):
    session = started(vlm, TIGHT.with_values(max_cell_age_s=2.0))
    levels = [session.observe(changed(0.5 * step)).level for step in range(1, 7)]
    assert levels == [Level.REUSE] * 4 + [Level.FRAME, Level.REUSE]


def test_debt_is_kept_until_it_is_paid_whatever_the_cells_show(vlm):
    session = started(vlm, TIGHT.with_values(max_cell_age_s=2.0))
    refreshes = [session.observe(changed(0.5 * step, by=0x80 * (step % 2))) for step in range(1, 7)]
    assert all(refresh.visual_tokens_stale for refresh in refreshes[:4])
    assert refreshes[4].level == Level.FRAME and session._refresher.newest.lag_s == 0.5


def test_a_halo_in_debt_is_paid_after_what_it_surrounds(vlm):
    session = started(vlm, PATCH.with_values(budget_ms=1.0, change_halo=1, max_patch_share=1.0))
    area = slice(10, 30), slice(10, 30)
    refreshes = [session.observe(changed(0.1 * step, area=area)) for step in range(1, 6)]
    assert [refresh.visual_tokens_stale for refresh in refreshes] == [3, 2, 1, 0, 0]
    assert [refresh.level for refresh in refreshes] == [Level.PATCH] * 4 + [Level.REUSE]


def test_when_a_whole_picture_is_due_but_does_not_fit_cells_are_patched_on(vlm):
    session = started(vlm, PATCH.with_values(budget_ms=2.0, max_patches=3, history_frames=2))
    levels = [session.observe(changed(1.5 * step, by=0x80 >> step % 4)).level for step in range(1, 7)]
    assert levels == [Level.PATCH] * 6


def test_cells_over_budget_wait_and_are_paid_the_next_time(vlm):
    session = started(vlm, PATCH.with_values(budget_ms=2.0, max_patch_share=1.0))
    large = slice(0, 300), slice(0, 300)
    first = session.observe(changed(0.1, area=large))
    assert first.level == Level.PATCH and first.visual_tokens_refreshed == 2 and first.visual_tokens_stale > 0
    paid, refresh = first.refreshed.copy(), first
    for step in range(2, 30):
        refresh = session.observe(changed(0.1 * step, area=large))
        assert not (refresh.refreshed & paid).any() and refresh.visual_tokens_refreshed <= 2
        paid |= refresh.refreshed
        if not refresh.visual_tokens_stale:
            break
    assert not refresh.visual_tokens_stale and session._refresher.newest.lag_s == 0
    assert (paid >= first.stale).all()


def test_the_oldest_cells_age_grows_while_nothing_is_computed(vlm):
    session = started(vlm, Config())
    refreshes = [session.observe(changed(stamp_s, by=0)) for stamp_s in (0.5, 2.0, 60.0)]
    assert {refresh.level for refresh in refreshes} == {Level.REUSE}
    assert [refresh.oldest_cell_age_s for refresh in refreshes] == [0.5, 2.0, 60.0]


def test_cells_over_budget_are_the_oldest_until_they_are_paid(vlm):
    session = started(vlm, TIGHT.with_values(max_cell_age_s=2.0))
    refreshes = [session.observe(changed(stamp_s)) for stamp_s in (0.5, 1.0, 3.0, 3.5)]
    assert [refresh.level for refresh in refreshes] == [Level.REUSE, Level.REUSE, Level.FRAME, Level.REUSE]
    assert [refresh.oldest_cell_age_s for refresh in refreshes] == [0.5, 1.0, 0.0, 0.5]


def test_a_patch_makes_only_the_patched_cells_new(vlm):
    session = started(vlm, PATCH.with_values(max_patch_share=1.0))
    left, both = (slice(None), slice(0, 320)), (slice(None), slice(None))
    first = session.observe(changed(1.0, area=left))
    second = session.observe(changed(3.0, area=both))
    assert first.level == second.level == Level.PATCH and (first.refreshed ^ second.refreshed).all()
    assert first.oldest_cell_age_s == 1.0 - 0.0  # the right half is still that of the first picture
    assert second.oldest_cell_age_s == 3.0 - 1.0  # now the left half is the older one
    assert session.observe(changed(4.0, area=both)).oldest_cell_age_s == 4.0 - 1.0


@pytest.mark.parametrize('config', [Config(), PATCH.with_values(max_patch_share=0.0)])
def test_a_frame_makes_every_cell_new(vlm, config):
    session = started(vlm, config)
    assert session.observe(changed(1.0, by=0)).oldest_cell_age_s == 1.0
    refresh = session.observe(changed(2.0))
    assert refresh.level == Level.FRAME and refresh.oldest_cell_age_s == 0
    assert session.observe(changed(2.5)).oldest_cell_age_s == 0.5


def test_forced_refreshes_and_first_pictures_know_no_budget(vlm):
    session = SceneSession(vlm, TIGHT)
    assert session.observe(picture(1)).level == Level.FULL
    assert session.observe(changed(0.5), force=True).level == Level.FRAME


@pytest.mark.parametrize('question', [QUESTION, CHOICE])
def test_exact_answers_audited_never_drift(vlm, question):
    session = started(vlm, Config(audit_share=1.0))
    for stamp_s in (0.1, 0.2, 0.3):
        session.observe(changed(stamp_s, by=int(80 * stamp_s)))
        session.ask(question, now_ns=0)
    while has_audit(session):
        audit(session)
    assert (audits(session).exact_answers, audits(session).exact_drifted) == (3, 0)
    assert audits(session).patched.answers == 0


def test_an_answer_is_audited_on_its_own_pictures_whatever_came_since(vlm):
    session = started(vlm, Config(audit_share=1.0))
    before = session.ask(QUESTION, now_ns=0)
    session.observe(changed(0.5))
    audit_one(session)
    assert not has_audit(session) and audits(session).exact_drifted == 0
    assert session.ask(QUESTION, now_ns=0).cached_stamp_ns != before.cached_stamp_ns


def test_an_audit_can_be_broken_off_and_made_again(vlm):
    session = started(vlm, Config(audit_share=1.0))
    session.ask(QUESTION, now_ns=0)

    def stop():
        raise Halt(Status.BUSY, 'A question waits.')

    audit(session, stop)
    assert has_audit(session) and audits(session).exact_answers == 0
    audit_one(session)
    assert audits(session).exact_answers == 1


def test_no_more_than_a_few_answers_wait_and_a_reset_forgets_them(vlm):
    session = started(vlm, Config(audit_share=1.0))
    for _ in range(3 * MOST_WAITING):
        session.ask(QUESTION, now_ns=0)
    for _ in range(MOST_WAITING):
        audit_one(session)
    assert not has_audit(session) and audits(session).exact_answers == MOST_WAITING
    session.ask(QUESTION, now_ns=0)
    session.reset()
    assert not has_audit(session)


def test_nothing_is_audited_unless_wanted(vlm):
    session = started(vlm, Config(audit_share=0.0))
    session.ask(QUESTION, now_ns=0)
    assert not has_audit(session)


def test_an_audit_samples_as_the_answer_did_whatever_was_set_since(vlm):
    session = started(vlm, Config(audit_share=1.0, temperature=2.0))
    for _ in range(3):
        session.ask(QUESTION, now_ns=0)
    session.config = session.config.with_values(seed=7)
    while has_audit(session):
        audit(session)
    assert (audits(session).exact_answers, audits(session).exact_drifted) == (3, 0)


@pytest.mark.parametrize('has_credit', [True, False])
def test_an_audit_is_upkeep_that_needs_credit_and_a_pause_between_questions(vlm, has_credit):
    idle = Idle()
    session = started(vlm, Config(audit_share=1.0), clock=idle)
    session.ask(QUESTION, now_ns=0)
    if has_credit:
        give_credit(session)
        assert session.work() > 0 and has_audit(session)  # a question may follow
    assert idle.spend(session) == (2 if has_credit else 0)  # the picture, and the answer
    assert has_audit(session) != has_credit and audits(session).exact_answers == has_credit


def test_what_was_patched_is_computed_whole_once_patches_are_not_wanted_or_it_is_too_old(vlm):
    session = started(vlm, PATCH)
    assert session.observe(changed(0.1)).level == Level.PATCH
    assert session.observe(changed(5.0)).level == Level.REUSE
    late = session.observe(changed(10.5))
    assert late.level == Level.FRAME and late.reason == 'a patched frame is computed whole'
    assert session.ask(QUESTION, now_ns=0).exact
    assert session.observe(changed(10.6, by=0x40)).level == Level.PATCH
    session.config = Config()
    assert session.observe(changed(10.7, by=0x40)).level == Level.FRAME


def test_a_forced_refresh_is_never_a_patched_one(vlm):
    session = started(vlm, PATCH)
    session.observe(changed(0.1))
    forced = session.ask(Question(QUESTION.text, max_tokens=4, max_age_s=1000.0, force_refresh=True), now_ns=0)
    assert forced.exact and forced.level == Level.FRAME


@pytest.mark.parametrize('after', range(1, 9))
def test_a_refresh_that_was_stopped_never_leaves_a_state_of_other_pictures(vlm, after):
    """At every step of the model on the way to a keyframe, behind a picture that was patched in part."""
    session = started(vlm, PATCH.with_values(budget_ms=1.0, history_frames=2, keyframe_interval_s=1.0))
    large = slice(0, 300), slice(0, 300)
    session.observe(changed(0.5, area=large), force=True)
    assert session.observe(changed(2.0, by=0x40, area=large)).visual_tokens_stale
    session.config, steps = session.config.with_values(budget_ms=0.0), iter(range(after))

    def check():
        if next(steps, None) is None:
            raise Halt(Status.CANCELLED, 'enough')

    try:
        session.observe(changed(2.5, area=large), check=check)
    except Halt:
        pass
    session.observe(changed(3.0, area=large))
    warm, cold = session.ask(QUESTION, now_ns=0), session.ask_cold(QUESTION, now_ns=0)
    assert not warm.exact or warm.token_ids == cold.token_ids
    cached = session._refresher.state.live.frame.rgb.astype(int)
    if session._refresher.state.exact:
        assert np.abs(cached - changed(3.0, area=large).rgb).max() < session.config.change_threshold


def test_a_plan_without_a_time_budget_never_depends_on_the_clock(vlm, monkeypatch):
    def levels(slow):
        set_prices(monkeypatch, frame_ms=slow * 10.0, cell_ms=1.0 / slow)
        session = started(vlm, PATCH)
        areas = [(slice(0, side), slice(0, side)) for side in (40, 300, 100, 480, 60)]
        return [
            session.observe(changed(step + 1, by=0x80 >> step % 3, area=area)).level for step, area in enumerate(areas)
        ]

    assert levels(0.001) == levels(1) == levels(1000)


def test_an_audit_that_does_not_fit_beside_the_state_is_left_out(vlm):
    """It computes a second state: twice the held bytes must be within max_cache_mb, and are told while it lasts."""
    session = SceneSession(vlm, Config(audit_share=1.0, max_cache_mb=10, keyframe_interval_s=0.0, history_frames=200))
    number = 0
    while 2 * session.status.held_bytes <= 10e6:
        number += 1
        session.observe(picture(number, float(number)))
        assert session.ask(QUESTION, now_ns=0).status == Status.OK
    fitting, held_bytes = has_audit(session), session.status.held_bytes
    audit(session)
    assert fitting and session.status.held_bytes > held_bytes
    while has_audit(session):
        audit(session)
    assert session.ask(QUESTION, now_ns=0).status == Status.OK and not has_audit(session)
