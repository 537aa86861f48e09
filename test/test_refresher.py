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

"""What a look and a refresh decide, say and book, on the refresher alone; by a clock that only the model moves."""

from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from credit import set_prices
from stopping import stopping_at
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.work import Meter
from vlm_reuse_node.scene import lookout as lookouts
from vlm_reuse_node.scene.change import ChangeDetector
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Totals
from vlm_reuse_node.session import history as histories
from vlm_reuse_node.session import refresher as refreshers
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.refresher import Refresher
from vlm_reuse_node.session.turn import Halt

EXACT = Config()
PATCH = Config(refresh_policy='patch', max_patches=1000)
LATE_NS = 3600 * SECOND_NS


class Camera:
    """A refresher and what it is given; the pictures differ from the first one in a corner, or as a whole."""

    def __init__(self, vlm, config=EXACT):
        template_for = partial(vlm.template, config.system_prompt)
        self.refresher, self.config = Refresher(vlm, template_for, 'front', Totals), config

    def looks(self, frame):
        return self.refresher.look(frame, self.config)

    def refreshes(self, may_patch=None, **given):
        allowed = self.config.refresh_policy == 'patch' if may_patch is None else may_patch
        return self.refresher.refresh(self.config, may_patch=allowed, **given)

    def sees(self, frame, **given):
        """Look at a frame and compute it at once. Returns the refresh's record; the look's if nothing was computed."""
        look = self.looks(frame)
        return self.refreshes(**given) or look

    @property
    def is_current(self):
        return self.refresher.newest.is_current

    @property
    def has_rollover(self):
        return self.refresher.rollover_work is not None

    def finish(self):
        """All steps of a rollover."""
        refresh = None
        while self.has_rollover:
            refresh = self.refresher.step_rollover(go_on)
        return refresh


def go_on():
    pass


def stop():
    raise Halt(Status.CANCELLED, 'enough')


def at(stamp_ns, by=0, area=(slice(0, 100), slice(0, 100))):
    """The first picture at another time, some of its pixels others."""
    rgb = picture(1).rgb.copy()
    rgb[area] ^= by
    return Frame(rgb, stamp_ns, 'front_optical', 'front')


@pytest.fixture
def clock(vlm, monkeypatch):
    """Time passes in the change detector, in the vision tower and in the language model alone."""
    clock = SimpleNamespace(s=1.0, compare=1.0, settle=2.0, vision=4.0, language=8.0)
    monkeypatch.setattr(vlm, 'meter', Meter(clock=lambda: clock.s))
    for module in (refreshers, histories, lookouts):
        monkeypatch.setattr(module, 'time', SimpleNamespace(perf_counter=lambda: clock.s))

    def takes(owner, name, which):
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            clock.s += getattr(clock, which)
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, timed)

    takes(ChangeDetector, 'compare', 'compare')
    takes(ChangeDetector, 'settle', 'settle')
    takes(ChangeDetector, 'compare_again', 'compare')
    takes(vlm.family, 'encode', 'vision')
    takes(vlm.family, 'encode_cells', 'vision')
    takes(vlm.family, 'forward', 'language')
    return clock


def test_nothing_is_known_before_the_first_frame(vlm):
    refresher = Camera(vlm).refresher
    assert refresher.state is None and refresher.newest is None and refresher.held == (0, 0)
    assert not refresher.is_exact and not refresher.is_between_stages
    assert refresher.rollover_work is None and refresher.expected(EXACT, False).tokens == 0
    assert refresher.step_rollover(go_on) is None
    assert refresher.prefilled == 0


@pytest.mark.parametrize('config', [EXACT, PATCH])
def test_every_millisecond_is_booked_on_its_stage(vlm, clock, config):
    camera, begun_s = Camera(vlm, config), clock.s

    def stages(record):
        return record.change_ms, record.vision_ms, record.prefill_ms

    records = [camera.looks(at(0)), camera.refreshes(), camera.looks(at(1)), camera.looks(at(2, by=0x80))]
    records.append(camera.refreshes())
    first_look, first, same, other_look, other = records
    assert stages(first_look) == (0, 0, 0) and stages(first) == (3000, 4000, 8000)
    assert stages(same) == stages(other_look) == (1000, 0, 0)
    assert stages(other) == (3000, 4000, 8000)
    assert sum(record.spent_ms for record in records) == 1e3 * (clock.s - begun_s)
    assert other.level == (Level.PATCH if config is PATCH else Level.FRAME)


def test_what_is_current_is_not_refreshed(vlm):
    camera = Camera(vlm)
    camera.sees(at(0))
    kept = camera.refresher.prefilled
    camera.looks(at(1))
    assert camera.refreshes() is None and camera.refresher.prefilled == kept
    assert camera.refresher.expected(EXACT, False).tokens == 0


@pytest.mark.parametrize('config, by', [(EXACT, 0x80), (PATCH, 0x80), (PATCH, 0)])
def test_a_refresh_in_two_stages_is_the_refresh_in_one(vlm, config, by):
    whole, staged = Camera(vlm, config), Camera(vlm, config)
    for camera in (whole, staged):
        camera.sees(at(0))
    at_once = whole.sees(at(1, by))
    staged.looks(at(1, by))
    kept, may_patch = staged.refresher.state.live, config is PATCH
    expected = staged.refresher.expected(config, may_patch)
    first = staged.refresher.step(config, may_patch, go_on)
    assert first is None and staged.refresher.state.live is kept
    assert staged.refresher.is_between_stages == (by != 0) == (expected.tokens > 0)
    if by:
        second = staged.refresher.step(config, may_patch, go_on)
        assert (second.level, second.reason) == (at_once.level, at_once.reason)
        assert (second.refreshed == at_once.refreshed).all() and (second.changed == at_once.changed).all()
    assert not staged.refresher.is_between_stages and staged.is_current
    assert staged.refresher.state.identity == whole.refresher.state.identity


@pytest.mark.parametrize('given', [{}, {'force': True}, {'may_patch': False}])
@pytest.mark.parametrize('is_newer', [True, False])
@pytest.mark.parametrize('config', [EXACT, PATCH])
def test_a_refresh_that_was_begun_is_only_finished_if_it_is_the_one_that_is_needed(vlm, given, is_newer, config):
    camera = Camera(vlm, config)
    camera.sees(at(0))
    camera.looks(at(1, by=0x80))
    camera.refresher.step(config, config is PATCH, go_on)
    before = vlm.meter.done.vision_tokens
    if is_newer:
        camera.looks(at(2, by=0x40))
    refresh = camera.refreshes(**given)
    assert (
        refresh.stamp_ns == (2 if is_newer else 1)
        and camera.refresher.state.live.frame is camera.refresher.newest.frame
    )
    assert camera.is_current and refresh.level == (Level.PATCH if config is PATCH and not given else Level.FRAME)
    assert (vlm.meter.done.vision_tokens > before) == (is_newer or (config is PATCH and bool(given)))


def test_a_record_says_whose_and_when_and_what_was_allowed(vlm):
    camera = Camera(vlm, EXACT.with_values(budget_ms=1e4))
    refresh = camera.sees(at(7))
    assert (refresh.camera, refresh.stamp_ns, refresh.frame_id) == ('front', 7, 'front_optical')
    assert refresh.budget_ms == 1e4 and refresh.level == Level.FULL


def test_a_refresh_books_the_tokens_that_it_computed(vlm):
    camera = Camera(vlm)
    camera.sees(at(0))
    whole = camera.refresher.prefilled
    assert whole == camera.refresher.state.tokens
    camera.sees(at(1))
    assert camera.refresher.prefilled == whole
    camera.sees(at(2, by=0x80))
    assert camera.refresher.prefilled == 2 * whole  # the one slot, with the chat's beginning
    camera.config = PATCH
    camera.sees(at(3, by=0x40))
    assert camera.sees(at(4, by=0x20)).level == Level.PATCH
    assert 3 * whole < camera.refresher.prefilled < 4 * whole


def test_the_reason_is_a_sentence_about_what_happened(vlm):
    camera = Camera(vlm, EXACT.with_values(max_cell_age_s=1.0))
    reason = lambda *args, **given: camera.sees(*args, **given).reason  # noqa: E731
    assert reason(at(0)) == 'first frame'
    assert reason(at(1)) == 'no cell changed'
    assert reason(at(2), force=True) == 'forced'
    look = camera.looks(at(3, by=0x80))
    few = camera.refreshes()
    cells = few.visual_tokens_changed
    assert look.reason == f'{cells} of 12 cells are stale'
    assert 0 < cells < 12 and few.reason == f'{cells} of 12 cells changed'
    assert reason(picture(2, 1e-8)) == 'the scene was cut'
    wide = picture(2, size=(480, 720)).rgb
    camera.sees(Frame(wide[:, :640].copy(), 20))
    assert reason(Frame(wide[:, 20:660].copy(), 30)) == 'the camera moved'
    assert reason(Frame(wide[:, 20:660].copy(), -2 * SECOND_NS)) == 'time went back'
    assert reason(picture(2, 1.0, size=(640, 480))) == 'size changed from (480, 640) to (640, 480)'
    camera.config = history(2)
    for seed in (3, 4, 5):
        camera.sees(picture(seed, 1.0 + seed / 10, size=(640, 480)))
    camera.config = history(1)
    with pytest.raises(Halt):
        camera.sees(picture(6, 2.0, size=(640, 480)), check=stopping_at(2))  # while the history is cut
    assert reason(picture(3, 2.0, size=(640, 480))) == 'the last refresh was interrupted'
    camera.refresher.drop_state()
    assert reason(picture(3, 2.0, size=(640, 480))) == 'the state was lost'
    camera.refresher.reset()
    assert camera.refresher.newest is None
    assert (
        camera.looks(picture(3)).reason == 'not computed yet: first frame'
        and camera.refreshes().reason == 'first frame'
    )


def test_a_cell_in_doubt_is_refreshed_for_that_reason(vlm):
    camera = Camera(vlm, EXACT.with_values(max_cell_age_s=1.0))
    camera.sees(at(0))
    rgb = at(0).rgb.copy()
    rgb[:100, :100] = np.where(rgb[:100, :100] > 127, rgb[:100, :100] - 16, rgb[:100, :100] + 16)
    assert camera.sees(Frame(rgb, SECOND_NS // 2)).level == Level.REUSE
    refresh = camera.sees(Frame(rgb, 3 * SECOND_NS // 2))
    assert refresh.level == Level.FRAME and refresh.reason.endswith('cells in doubt for too long')


def test_what_is_over_budget_waits_and_says_so(vlm, monkeypatch):
    set_prices(monkeypatch)
    camera = Camera(vlm, EXACT.with_values(budget_ms=1.0))
    camera.sees(at(0))
    look = camera.sees(at(SECOND_NS, by=0x80))
    assert look.level == Level.REUSE and look.reason.endswith('of 12 cells are stale')
    assert 0 < look.visual_tokens_stale < 12 and look.lag_s == 1
    assert look.visual_tokens_refreshed == 0 and not camera.is_current
    # What waits is stale until it is computed, whatever it shows.
    changed_back = camera.looks(at(2 * SECOND_NS))
    assert (changed_back.stale == look.stale).all() and changed_back.lag_s == 2 and not changed_back.changed.any()
    camera.config = EXACT
    refresh = camera.sees(at(2 * SECOND_NS, by=0x80))
    assert refresh.visual_tokens_stale == refresh.lag_s == 0 and camera.is_current


def test_the_same_stamp_twice_is_no_time_that_went_back(vlm):
    camera = Camera(vlm)
    camera.sees(at(5))
    assert camera.sees(at(5)).level == Level.REUSE
    assert camera.sees(at(5 - SECOND_NS - 1)).level == Level.FULL


@pytest.mark.parametrize('back_ns', [1, SECOND_NS // 2, SECOND_NS])
def test_a_frame_that_is_a_little_older_is_skipped(vlm, back_ns):
    """Jitter: it changes nothing, and the next frame goes on from the newest one."""
    camera = Camera(vlm)
    camera.sees(at(9 * SECOND_NS))
    kept, newest = camera.refresher.state.live, camera.refresher.newest
    assert camera.looks(at(9 * SECOND_NS - back_ns, by=0x80)) is None
    assert camera.refresher.newest is newest and camera.refreshes() is None and camera.refresher.state.live is kept
    assert camera.sees(at(9 * SECOND_NS + 1)).level == Level.REUSE


@pytest.mark.parametrize('limit_s', [0.5, 2.0, 3600.0])
def test_what_was_patched_stays_so_until_it_is_older_than_its_limit(vlm, limit_s):
    config = PATCH.with_values(max_cell_age_s=limit_s)
    limit_ns, begin_ns = int(limit_s * SECOND_NS), 10 * SECOND_NS
    camera = Camera(vlm, config)
    camera.sees(at(begin_ns))
    assert camera.sees(at(begin_ns + limit_ns // 2, by=0x80)).level == Level.PATCH
    assert camera.sees(at(begin_ns + limit_ns, by=0x80)).level == Level.REUSE
    late = camera.sees(at(begin_ns + limit_ns + 1, by=0x80))
    assert late.level == Level.FRAME and late.reason == 'a patched frame is computed whole'
    assert not late.changed.any() and camera.refresher.state.exact
    # That limit counts from the frame that was computed whole last.
    camera.sees(at(begin_ns + limit_ns + 2, by=0x40))
    assert camera.sees(at(begin_ns + 2 * limit_ns + 1, by=0x40)).level == Level.REUSE
    assert camera.sees(at(begin_ns + 2 * limit_ns + 2, by=0x40)).level == Level.FRAME


def test_what_was_patched_is_computed_whole_when_it_may_not_be_any_more(vlm):
    camera = Camera(vlm, PATCH)
    camera.sees(at(0))
    assert camera.refresher.is_exact and camera.refresher.expected(PATCH, False).tokens == 0
    camera.sees(at(1, by=0x80))
    assert not camera.refresher.is_exact and camera.refresher.expected(PATCH, False).vision_tokens == 12
    assert camera.sees(at(2, by=0x80)).level == Level.REUSE
    assert camera.sees(at(3, by=0x80), may_patch=False).level == Level.FRAME
    assert camera.sees(at(4, by=0x80), may_patch=False).level == Level.REUSE


def test_so_many_patches_come_between_two_whole_frames(vlm):
    camera = Camera(vlm, PATCH.with_values(max_patches=2))
    levels = [camera.sees(at(stamp, by=0x80 * (stamp % 2))).level for stamp in range(8)]
    assert levels == [Level.FULL, *2 * [Level.PATCH, Level.PATCH, Level.FRAME], Level.PATCH]


def test_a_frame_stands_for_itself_only_where_all_of_it_was_computed(vlm):
    camera = Camera(vlm, PATCH)
    camera.sees(at(0))
    assert camera.refresher.is_whole and camera.is_current
    camera.sees(at(1))
    assert not camera.refresher.is_whole and camera.is_current  # the cached one is older
    camera.sees(at(2, by=0x80))
    assert not camera.refresher.is_whole
    camera.sees(at(3, by=0x80), force=True)
    assert camera.refresher.is_whole


def test_what_keeps_a_frame_whole_is_only_kept_where_it_may_be_patched(vlm, monkeypatch):
    for config, keeps in ((EXACT, False), (PATCH, True)):
        camera = Camera(vlm, config)
        camera.sees(at(0))
        assert camera.refresher.keeps_vision(config) == keeps
        assert (camera.refresher.state.live.vision is not None) == keeps
    monkeypatch.setattr(vlm.family, 'encodes_cells', False)
    camera = Camera(vlm, PATCH)
    camera.sees(at(0))
    assert not camera.refresher.keeps_vision(PATCH) and camera.refresher.state.live.vision is None
    assert camera.sees(at(1, by=0x80)).level == Level.FRAME


RESTARTS = [picture(1, 1.0, size=(640, 480)), at(-2 * SECOND_NS)]


@pytest.mark.parametrize('frame', [at(SECOND_NS, by=0x80), *RESTARTS])
def test_a_frame_that_was_given_up_before_the_vision_tower_is_computed_when_it_comes_again(vlm, frame):
    camera = Camera(vlm)
    camera.sees(at(0))
    with pytest.raises(Halt):
        camera.sees(frame, check=stop)
    refresher = camera.refresher
    assert refresher.newest.frame is frame and not camera.is_current
    later = Frame(frame.rgb, frame.stamp_ns + 1)
    refresh = camera.sees(later)
    assert refresh.level in (Level.FRAME, Level.FULL) and refresh.visual_tokens_refreshed == 12
    assert refresher.state.live.frame is later and camera.is_current and len(refresher.state.frames) == 1
    assert refresh.oldest_cell_age_s == refresh.lag_s == 0


def test_a_refresh_that_was_given_up_before_its_prefill_leaves_the_kept_state(vlm):
    camera = Camera(vlm)
    camera.sees(at(0))
    kept, identity = camera.refresher.state, camera.refresher.state.identity
    with pytest.raises(Halt):
        camera.sees(at(SECOND_NS, by=0x80), check=stop)
    assert camera.refresher.state is kept and kept.identity == identity and camera.refresher.is_exact
    assert 0 < camera.refresher.newest.stale.sum() < 12 and camera.refresher.newest.lag_s == 1
    back = camera.sees(at(2 * SECOND_NS))
    assert back.level == Level.REUSE and camera.is_current


@pytest.mark.parametrize('config', [EXACT, PATCH])
@pytest.mark.parametrize('frame', [at(SECOND_NS, by=0x80), *RESTARTS])
def test_a_prefill_that_was_given_up_waits_and_nothing_of_it_is_lost(vlm, frame, config):
    camera, whole = Camera(vlm, config), Camera(vlm, config)
    for each, check in ((whole, go_on), (camera, stopping_at(2))):
        each.sees(at(0))
        with suppress(Halt):
            each.sees(frame, check=check)
    state, before = camera.refresher.state, vlm.meter.done
    assert camera.is_current and not camera.refresher.newest.stale.any()
    assert state.identity == whole.refresher.state.identity and state.live.frame is frame
    assert camera.refreshes() is None
    state.settle()
    spent = vlm.meter.done - before
    assert spent.vision_tokens == 0 and spent.passes == 1
    for one, other in zip(state.cache, whole.refresher.state.cache):
        assert mx.array_equal(one.keys[..., : state.tokens, :], other.keys[..., : state.tokens, :])


def test_a_refresh_that_joins_its_question_waits_for_it(vlm):
    camera = Camera(vlm)
    camera.sees(at(0))
    before = vlm.meter.done
    refresh = camera.sees(at(SECOND_NS, by=0x80), joins_question=True)
    spent = vlm.meter.done - before
    assert refresh.level == Level.FRAME and refresh.prefill_ms == 0 < refresh.vision_ms
    assert (spent.vision_tokens, spent.passes) == (12, 0) and camera.is_current


@pytest.mark.parametrize('frame', RESTARTS)
@pytest.mark.parametrize('check_at, level', [(1, Level.FULL), (2, Level.REUSE)])
def test_a_restart_that_was_given_up_leaves_nothing_of_the_time_before(vlm, frame, check_at, level):
    """Whatever comes next, it starts anew."""
    camera = Camera(vlm, EXACT.with_values(history_frames=4, keyframe_interval_s=0.0))
    camera.sees(picture(5, -1.0))
    camera.sees(at(0))
    with pytest.raises(Halt):
        camera.sees(frame, check=stopping_at(check_at))
    refresh = camera.sees(Frame(frame.rgb, frame.stamp_ns + SECOND_NS))
    assert refresh.level == level and len(camera.refresher.state.frames) == 1


def test_a_model_that_fails_leaves_no_state_and_a_bad_picture_changes_nothing(vlm, monkeypatch):
    camera = Camera(vlm)
    camera.sees(at(0))
    kept, newest = camera.refresher.state, camera.refresher.newest
    with pytest.raises(ImageError):
        camera.sees(Frame(np.zeros((2, 3000, 3), np.uint8), SECOND_NS))
    assert camera.refresher.state is kept and camera.refresher.newest is newest and camera.is_current
    monkeypatch.setattr(vlm.family, 'forward', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        camera.sees(at(1, by=0x80))
    assert camera.refresher.state is None and not camera.is_current
    monkeypatch.undo()
    assert camera.sees(at(2, by=0x80)).reason == 'the state was lost'


def history(frames=4, **values):
    return PATCH.with_values(history_frames=frames, keyframe_interval_s=0.0, **values)


LONG_PROMPT = Config(system_prompt='see the table . ' * 99, history_frames=3, keyframe_interval_s=0.0)


@pytest.mark.parametrize(
    'frame, values',
    [
        (picture(9, 9.0), {}),
        (picture(9, 0.0), {}),
        (picture(9, 9.0, size=(320, 320)), {}),
        (picture(9, 9.0), {'history_frames': 1}),
        (picture(9, 9.0), {'history_frames': 0}),
        (picture(9, 9.0), {'upkeep_share': 0.0}),
    ],
)
def test_no_refresh_takes_more_tokens_than_expected(vlm, frame, values):
    """Also when it computes the system prompt again: after a restart, and when the history is shortened."""
    camera = Camera(vlm, LONG_PROMPT)
    for number in range(4):
        camera.sees(picture(number, 5.0 + number))
    camera.config = LONG_PROMPT.with_values(**values)
    camera.looks(frame)
    expected, before = camera.refresher.expected(camera.config, False), vlm.meter.done
    assert camera.refreshes() is not None
    assert 0 < (vlm.meter.done - before).tokens <= expected.tokens


def test_no_step_of_a_rollover_takes_more_tokens_than_expected_of_the_rest(vlm):
    camera = Camera(vlm, LONG_PROMPT)
    for number in range(5):
        camera.sees(picture(number, 5.0 + number))
    steps = 0
    while expected := camera.refresher.rollover_work:
        before = vlm.meter.done
        camera.refresher.step_rollover(go_on)
        assert 0 < (vlm.meter.done - before).tokens <= expected.tokens
        steps += 1
    assert steps > 1


def test_a_rollover_tells_its_time_and_level_and_makes_no_cell_new(vlm, clock):
    camera = Camera(vlm, history(max_patch_share=1.0))
    for second in range(6):
        camera.sees(picture(second + 2, float(second)))
    assert camera.has_rollover and len(camera.refresher.state.frames) == 5
    held, work = camera.refresher.held[1], camera.refresher.rollover_work
    assert 0 < work.tokens <= camera.refresher.state.tokens and work.vision_tokens == 0  # its frames are encoded
    assert camera.refresher.step_rollover(stop) is None and camera.has_rollover
    assert camera.refresher.step_rollover(go_on) is None
    assert camera.refresher.held[1] > held and camera.refresher.rollover_work.tokens < work.tokens
    newest = camera.refresher.newest.frame
    refresh = camera.finish()
    assert (refresh.level, refresh.reason) == (Level.FULL, 'history rollover')
    assert refresh.prefill_ms == 3 * 8000 and refresh.vision_ms == refresh.change_ms == 0  # two frames and the live one
    assert refresh.refreshed.all() and not refresh.changed.any() and refresh.stamp_ns == newest.stamp_ns
    assert camera.refresher.held[0] == 3 == len(camera.refresher.state.frames)


def test_a_rollover_of_what_was_patched_or_waits_says_so(vlm, monkeypatch):
    set_prices(monkeypatch)
    camera = Camera(vlm, history())
    for second in range(6):
        camera.sees(picture(second + 2, float(second)))
    rgb = camera.refresher.newest.frame.rgb.copy()
    rgb[:200, :200] ^= 0x80
    camera.config = camera.config.with_values(budget_ms=1.0)
    patched = camera.sees(Frame(rgb, 7 * SECOND_NS))
    assert patched.level == Level.PATCH and patched.visual_tokens_stale
    refresh = camera.finish()
    assert refresh.level == Level.PATCH and not camera.refresher.state.exact
    assert (refresh.refreshed == ~patched.stale).all() and (refresh.stale == patched.stale).all()


def test_a_rollover_that_fails_is_logged_and_the_next_is_made_at_once(vlm, monkeypatch, caplog):
    camera = Camera(vlm, history())
    for second in range(6):
        camera.sees(picture(second + 2, float(second)))
    kept = camera.refresher.state
    with monkeypatch.context() as broken:
        broken.setattr(vlm.family, 'forward', lambda *args, **kwargs: 1 / 0)
        assert camera.refresher.step_rollover(go_on) is None
    assert "'front': the history rollover failed" in caplog.text
    assert camera.refresher.state is kept and not camera.has_rollover
    camera.sees(picture(9, 9.0))
    assert not camera.has_rollover and len(camera.refresher.state.frames) == 3


def test_a_reset_and_a_lost_state_end_a_rollover(vlm):
    for forget in (Refresher.reset, Refresher.drop_state):
        camera = Camera(vlm, history())
        for second in range(6):
            camera.sees(picture(second + 2, float(second)))
        camera.refresher.step_rollover(go_on)
        forget(camera.refresher)
        assert camera.refresher.held == (0, 0) and not camera.has_rollover
        camera.sees(picture(9, 9.0))
        assert not camera.has_rollover and len(camera.refresher.state.frames) == 1
        assert camera.refresher.held == (1, camera.refresher.state.held_bytes)


def test_a_cut_keeps_the_frame_before_it_and_what_only_changed_does_not(vlm):
    camera = Camera(vlm, EXACT.with_values(history_frames=9, keyframe_interval_s=60.0))
    stamps = lambda: [each.frame.stamp_ns for each in camera.refresher.state.frames]  # noqa: E731
    for frame in (at(0), at(1, by=0x80), at(2, by=0x40)):
        camera.sees(frame)
    assert stamps() == [0, 2]
    assert camera.sees(picture(2, 1.0)).reason == 'the scene was cut'
    assert stamps() == [0, 2, SECOND_NS]
    camera.refresher.state.drop_live()
    camera.refresher._lookout.lose('a refresh of this test was interrupted')
    camera.sees(picture(3, 2.0))  # nothing to compare it with
    assert stamps() == [0, 2, 2 * SECOND_NS]


def test_a_keyframe_that_is_due_is_reason_enough_for_a_whole_frame(vlm):
    camera = Camera(vlm, PATCH.with_values(history_frames=9, keyframe_interval_s=1.0))
    camera.sees(at(0))
    assert camera.sees(at(1, by=0x80)).level == Level.FRAME  # the first is kept
    assert camera.sees(at(2, by=0x40)).level == Level.PATCH
    assert camera.sees(at(2 * SECOND_NS, by=0x20)).level == Level.PATCH  # the live one is not old enough
    assert camera.sees(at(3 * SECOND_NS, by=0x10 ^ 0x80)).level == Level.FRAME
    assert camera.sees(at(4 * SECOND_NS, by=0x10 ^ 0x80)).level == Level.REUSE  # due, but nothing changed


def test_the_time_budget_goes_by_what_frames_and_patches_took(vlm, clock):
    """A whole frame takes 12 s, with a chat before it that has more tokens than it has; a patch takes 3 s."""
    camera = Camera(vlm, EXACT.with_values(budget_ms=11_900.0))
    camera.sees(at(0))
    camera.sees(at(0), force=True)  # the first of each stage is provisional
    assert camera.sees(at(1, by=0x80)).level == Level.REUSE
    camera.config = EXACT.with_values(budget_ms=12_100.0)
    assert camera.sees(at(2, by=0x80)).level == Level.FRAME
    camera.config = PATCH.with_values(budget_ms=12_100.0, max_patch_share=1.0)
    camera.sees(at(3, by=0x40))
    clock.vision, clock.language = 1.0, 2.0
    half = slice(0, 480), slice(0, 200)
    assert [camera.sees(at(stamp, by=0x80 >> stamp % 2, area=half)).level for stamp in (4, 5, 6)] == [Level.PATCH] * 3
    camera.config = camera.config.with_values(budget_ms=3100.0)
    assert camera.sees(at(7, by=0x08 ^ 0x80, area=half)).visual_tokens_stale == 0
    camera.config = camera.config.with_values(budget_ms=2900.0)
    assert camera.sees(at(8, by=0x08, area=half)).level == Level.REUSE


def test_a_history_that_was_computed_at_once_says_nothing_about_one_frame(vlm, clock):
    camera = Camera(vlm, EXACT.with_values(history_frames=6, keyframe_interval_s=0.0))
    for second in range(5):
        camera.sees(picture(second + 2, float(second)))
    for frames in (1, 0):
        camera.config = EXACT.with_values(history_frames=frames, budget_ms=12_100.0)
        before = camera.refresher.prefilled
        camera.sees(picture(20 + frames, 10.0 - frames), force=True)
        assert camera.refresher.prefilled - before > camera.refresher.state.tokens / 2
    assert camera.sees(picture(30, 12.0)).level == Level.FRAME  # one frame fits still
    camera.config = EXACT.with_values(budget_ms=11_900.0)
    assert camera.sees(picture(31, 13.0)).level == Level.REUSE


def test_the_oldest_cell_is_as_old_as_the_frame_it_was_computed_from(vlm):
    camera = Camera(vlm, PATCH.with_values(max_patch_share=1.0, max_cell_age_s=3600.0))
    ages = [
        camera.sees(frame).oldest_cell_age_s
        for frame in (
            at(SECOND_NS),
            at(3 * SECOND_NS),
            at(4 * SECOND_NS, by=0x80),
            at(LATE_NS, by=0x80),
        )
    ]
    assert ages == [0, 2, 3, 3599]
    assert camera.sees(at(LATE_NS + 1, by=0x80), force=True).oldest_cell_age_s == 0
