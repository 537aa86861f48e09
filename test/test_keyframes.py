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

"""Which keyframes are kept within which bounds: decided on frames that only count, without a model."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import SECOND_NS

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.vlm import go_on
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session import history as histories
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.history import History
from vlm_reuse_node.session.turn import Halt

PIXELS = np.zeros((1, 1, 3), np.uint8)
SLOT = 14
MB = 1_000_000
KEEP_ALL = Config(history_frames=100, keyframe_interval_s=0.0, max_cache_mb=1000)


class Template:
    """A chat template that puts every picture right behind the one before, or not."""

    def __init__(self, pictures, grows=True):
        self.pictures, self.grows = pictures, grows

    def of(self, pictures):
        return Template(pictures, self.grows)

    def extends(self, shorter):
        return self.grows and self.pictures == shorter.pictures + 1


class Ledger:
    """A state that holds no keys and values, and knows how many bytes and tokens it would."""

    computed = 0  # tokens, by all of them
    checkpoint_bytes = 0
    spare_bytes = 0.0

    def __init__(self, *_):
        self.clear()

    def clear(self):
        self.frames, self.has_live = (), False

    @property
    def live(self):
        return self.frames[-1]

    @property
    def tokens(self):
        return SLOT * len(self.frames)

    @property
    def array_bytes(self):
        vision = self.live.nbytes - self.live.features.nbytes if self.has_live else 0
        return sum(each.size for each in self.frames) + vision + self.checkpoint_bytes

    held_bytes = array_bytes  # its pixels are a few bytes

    def append(self, encoded, check=go_on, *, later=False):
        check()
        self.frames, self.has_live = (*self.frames, encoded), True
        Ledger.computed += SLOT
        return SLOT

    def drop_live(self):
        if self.has_live:
            self.frames, self.has_live = self.frames[:-1], False


class Camera:
    """A history and the state it keeps; frames come by their stamps."""

    def __init__(self, monkeypatch, config=KEEP_ALL, context=None, size=MB, vision=0, grows=True):
        monkeypatch.setattr(histories, 'State', Ledger)
        self.config, self.size, self.vision, self.vlm = config, size, vision, SimpleNamespace(context=context)
        self.history = History(self.vlm, lambda pictures: Template(pictures, grows), 'front')
        self.state = Ledger()

    def encoded(self, stamp_s, exact=True, size=None):
        features = SimpleNamespace(nbytes=100)
        frame = Frame(PIXELS, stamp_ns=round(stamp_s * SECOND_NS))
        return SimpleNamespace(
            frame=frame, exact=exact, size=size or self.size, nbytes=100 + self.vision, features=features
        )

    def see(self, *stamps_s, cut=False, check=go_on, **given):
        """Refresh with these frames; what is paid is what is computed."""
        for stamp_s in stamps_s:
            before = Ledger.computed
            paid = self.history.refresh(self.state, self.encoded(stamp_s, **given), cut, self.config, check)
            assert paid == Ledger.computed - before
        return paid

    def work(self):
        """All steps of a rollover."""
        for _ in range(200):
            if not self.history.can_step(self.state):
                return
            if newer := self.history.step(self.state, go_on):
                self.state = newer
        raise AssertionError('a rollover does not end')

    @property
    def stamps(self):
        return [each.frame.stamp_ns / SECOND_NS for each in self.state.frames]

    @property
    def held_mb(self):
        return (self.state.held_bytes + self.history.held_bytes) / MB


def stopping_at(count):
    looks = itertools.count(1)

    def check():
        if next(looks) == count:
            raise Halt(Status.CANCELLED, 'enough')

    return check


@pytest.mark.parametrize('size', [MB, MB + 1, MB - 1])
@pytest.mark.parametrize('vision_mb', [0, 2])
@pytest.mark.parametrize('most_mb', [4, 7, 8, 16])
def test_as_many_keyframes_are_kept_as_memory_holds(monkeypatch, caplog, most_mb, vision_mb, size):
    """Only the live frame keeps what patches it."""
    camera = Camera(monkeypatch, KEEP_ALL.with_values(max_cache_mb=most_mb), vision=vision_mb * MB, size=size)
    lengths = []
    for stamp_s in range(40):
        camera.see(stamp_s)
        assert camera.held_mb <= most_mb
        camera.work()
        assert camera.held_mb <= most_mb
        lengths.append(len(camera.stamps))
    fitting = (most_mb - vision_mb) * MB // size
    assert max(lengths) == fitting
    (told,) = caplog.messages
    assert "'front'" in told and f'{fitting - 1} of 100 keyframes' in told


@pytest.mark.parametrize('checkpoints_mb', [0, 1, 5])
def test_checkpoints_take_no_room_from_keyframes(monkeypatch, checkpoints_mb):
    """They are given up where keyframes need it."""
    monkeypatch.setattr(Ledger, 'checkpoint_bytes', checkpoints_mb * MB)
    camera, config = Camera(monkeypatch, KEEP_ALL.with_values(max_cache_mb=8)), Config(max_cache_mb=8)
    lengths, spare = [], []
    for stamp_s in range(10):
        camera.see(stamp_s)
        spare.append(camera.history.spare_bytes(camera.state, config))
        lengths.append(len(camera.stamps))
    assert max(lengths) == 8 and spare[0] == 6 * MB and min(spare) < 0


@pytest.mark.parametrize('context, most', [(100, 5), (75, 4), (56, 3)])
def test_as_many_keyframes_are_kept_as_three_quarters_of_the_context_hold(monkeypatch, context, most):
    camera, lengths = Camera(monkeypatch, context=context), []
    for stamp_s in range(20):
        camera.see(stamp_s)
        camera.work()
        lengths.append(len(camera.stamps))
    assert max(lengths) == most and most * SLOT <= 0.75 * context < (most + 1) * SLOT


@pytest.mark.parametrize('frames', [1, 100])
@pytest.mark.parametrize('size', [MB, 3 * MB])
def test_one_frame_that_fills_the_memory_keeps_no_history(monkeypatch, caplog, frames, size):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(max_cache_mb=1, history_frames=frames), size=size)
    for stamp_s in range(4):
        assert camera.see(stamp_s) == SLOT
        assert camera.stamps == [stamp_s] and not camera.history.is_due(camera.state, camera.config)
    assert len(caplog.messages) == 1 and f'0 of {frames} keyframes' in caplog.text


def test_a_frame_that_is_larger_than_those_before_pushes_the_oldest_out_at_once(monkeypatch):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(max_cache_mb=8))
    camera.see(0, 1)
    assert camera.see(2, size=7 * MB) == 3 * SLOT  # it, and the newest two again
    assert camera.stamps == [1, 2] and camera.held_mb == 8


def test_the_limit_is_told_once_for_every_room(monkeypatch, caplog):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(max_cache_mb=5))
    camera.see(*range(6))
    assert len(caplog.messages) == 1
    camera.config = KEEP_ALL.with_values(max_cache_mb=4)
    camera.see(*range(6, 9))
    assert len(caplog.messages) == 2 and '3 of 100 keyframes' in caplog.messages[1]
    camera.config = KEEP_ALL.with_values(history_frames=3, max_cache_mb=4)  # what is wanted fits
    camera.see(9, 10)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize('most_mb, beside', [(9, True), (8, True), (7, False), (6, False)])
def test_a_shorter_history_is_computed_beside_the_kept_one_where_both_fit(monkeypatch, most_mb, beside):
    """Five frames, the live one among them, and then two and a live one."""
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=4, max_cache_mb=most_mb))
    camera.see(*range(5))
    assert camera.stamps == [0, 1, 2, 3, 4] and camera.history.held_bytes == 0
    assert camera.see(5) == (SLOT if beside else 3 * SLOT)
    assert camera.history.can_step(camera.state) == beside
    if beside:
        assert camera.stamps == [0, 1, 2, 3, 5]  # the kept state serves on, and its live frame is the newest
        for held in (1, 2):
            assert camera.history.step(camera.state, go_on) is None
            assert camera.history.held_bytes == pytest.approx(held * MB, rel=1e-4)  # its pixels are a few bytes
        camera.work()
    assert camera.stamps == [3, 4, 5] and not camera.history.can_step(camera.state) and camera.history.held_bytes == 0


@pytest.mark.parametrize('frames, kept', [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3)])
def test_the_newer_half_is_kept(monkeypatch, frames, kept):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=frames))
    for stamp_s in range(frames + 2):
        camera.see(stamp_s)
        assert camera.history.is_due(camera.state, camera.config) == (stamp_s <= frames)  # one more begins a rollover
    camera.work()
    assert camera.stamps == list(range(frames + 1 - kept, frames + 2))
    camera.see(frames + 2)
    assert len(camera.stamps) == min(kept + 2, frames + 1)  # and it grows again, where there is room


def test_the_time_of_a_rollover_is_that_of_its_steps(monkeypatch):
    ticks = itertools.count(step=3)
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=4))
    monkeypatch.setattr(histories, 'time', SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert camera.history.spent_ms == 0
    for first in (0, 20):
        camera.see(*range(first, first + 6))
        for steps in (1, 2, 3):
            newer = camera.history.step(camera.state, go_on)
            assert camera.history.spent_ms == 3e3 * steps  # three seconds each
        assert newer is not None
        camera.state = newer


def test_a_rollover_waits_for_a_live_frame_only_at_its_end(monkeypatch):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=4))
    assert not camera.history.can_step(None) and not camera.history.can_step(camera.state)
    camera.see(*range(6))
    assert not camera.history.can_step(None)
    camera.state.drop_live()
    camera.history.step(camera.state, go_on)
    assert camera.history.can_step(camera.state)
    camera.history.step(camera.state, go_on)
    assert not camera.history.can_step(camera.state)
    camera.see(6)
    camera.work()
    assert camera.stamps == [3, 4, 6]


def test_no_frame_becomes_a_keyframe_while_a_rollover_waits(monkeypatch):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=4))
    camera.see(*range(9), cut=True)
    assert camera.stamps == [0, 1, 2, 3, 8] and not camera.history.is_due(camera.state, camera.config)
    camera.work()
    assert camera.stamps == [3, 4, 8] and camera.history.is_due(camera.state, camera.config)


@pytest.mark.parametrize('frames', range(5))
def test_a_rollover_is_given_up_where_the_kept_history_is_cut_at_once(monkeypatch, frames):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=4))
    camera.see(*range(6))
    camera.history.step(camera.state, go_on)
    camera.config = camera.config.with_values(history_frames=frames)
    camera.see(6)
    assert camera.history.can_step(camera.state) == (camera.history.held_bytes > 0) == (frames == 4)
    camera.work()
    assert camera.stamps == ([3, 4, 6] if frames == 4 else [*range(4 - frames, 4), 6])


def test_after_a_rollover_has_failed_the_next_is_made_at_once(monkeypatch):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=4))
    camera.see(*range(6))
    camera.history.fail()
    assert not camera.history.can_step(camera.state) and camera.history.held_bytes == 0
    assert camera.see(6) == 3 * SLOT and camera.stamps == [3, 5, 6]


def test_a_rollover_that_was_given_up_begins_again(monkeypatch):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=4))
    camera.see(*range(6))
    camera.history.step(camera.state, go_on)
    camera.history.stop()
    assert not camera.history.can_step(camera.state) and camera.history.held_bytes == 0
    camera.see(6)
    camera.work()
    assert camera.stamps == [3, 5, 6]


@pytest.mark.parametrize('interval_s', [0.5, 2.0, 3600.0])
def test_a_live_frame_is_kept_once_it_is_so_much_newer_than_the_last_keyframe(monkeypatch, interval_s):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(keyframe_interval_s=interval_s))
    camera.see(10, 10)  # the first frame is kept at once
    for last_s in (10, 10 + interval_s):
        camera.see(last_s + interval_s - 1e-6)
        assert not camera.history.is_due(camera.state, camera.config)
        kept = camera.stamps[:-1]
        camera.see(last_s + interval_s)
        assert camera.history.is_due(camera.state, camera.config) and camera.stamps == [*kept, last_s + interval_s]
        camera.see(last_s + interval_s + 1e-6)
        assert camera.stamps == [*kept, last_s + interval_s, last_s + interval_s + 1e-6]


def test_a_change_of_scene_keeps_the_frame_before_it_at_once(monkeypatch):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(keyframe_interval_s=60.0))
    camera.see(0, 1, 2)
    assert camera.stamps == [0, 2]
    camera.see(3, cut=True)
    assert camera.stamps == [0, 2, 3]


def test_a_frame_that_is_computed_again_is_kept_once(monkeypatch):
    camera = Camera(monkeypatch)
    camera.see(0, 1)
    again = camera.state.live
    assert camera.history.refresh(camera.state, again, True, camera.config, go_on) == SLOT
    assert camera.stamps == [0, 1] and camera.state.live is again


def test_what_was_patched_is_not_kept_but_the_whole_frame_behind_it_is(monkeypatch):
    camera = Camera(monkeypatch)
    camera.see(0)
    camera.see(1, exact=False)
    assert camera.see(2) == SLOT and camera.stamps == [0, 2]
    assert camera.see(3) == SLOT and camera.stamps == [0, 2, 3] and all(each.exact for each in camera.state.frames)


def test_a_refresh_prefills_as_many_frames_as_expected(monkeypatch):
    """Whatever is patched, cut, rolled over or configured. What was expected to be kept before them is kept."""
    chance, camera, most_slots = random.Random(0), Camera(monkeypatch), 0
    for stamp_s in range(1000):
        camera.config = KEEP_ALL.with_values(
            history_frames=chance.choice([5, 5, 5, 3, 0]),
            keyframe_interval_s=chance.choice([0.0, 2.0]),
            upkeep_share=chance.choice([0.0, 1.0]),
            max_cache_mb=chance.choice([1000, 1000, 6]),
        )
        if chance.random() < 0.1:
            camera.state.drop_live()
        before, is_cut = camera.state.frames, chance.random() < 0.3
        slots, kept = camera.history.expected(camera.state, is_cut, camera.config)
        assert camera.see(stamp_s, cut=is_cut, exact=chance.random() < 0.5) == SLOT * slots
        assert camera.state.frames[:kept] == before[:kept]
        most_slots = max(most_slots, slots)
        if chance.random() < 0.2:
            camera.work()
    assert most_slots > 2


def test_what_a_rollover_has_left_and_has_done_is_told(monkeypatch):
    camera = Camera(monkeypatch, KEEP_ALL.with_values(history_frames=4))
    camera.see(*range(5))
    assert camera.history.left == (0, 0)
    camera.see(5)
    told = [camera.history.left]
    while (newer := camera.history.step(camera.state, go_on)) is None:
        told.append(camera.history.left)
    assert told == [(3, 0), (2, 1), (1, 2)] and len(newer.frames) == 3
    assert camera.history.left == (0, 0)


def test_a_refresh_that_was_stopped_keeps_the_live_frame_that_becomes_a_keyframe(monkeypatch):
    camera = Camera(monkeypatch)
    camera.see(0)
    camera.see(1)
    with pytest.raises(Halt):
        camera.see(2, check=stopping_at(1))
    assert camera.state.has_live and camera.stamps == [0, 1]
    camera.see(3)
    assert camera.stamps == [0, 1, 3]


@pytest.mark.parametrize('at', [1, 2, 3])
def test_a_history_that_was_stopped_while_it_was_cut_is_gone(monkeypatch, at):
    camera = Camera(monkeypatch)
    camera.see(*range(6))
    camera.config = camera.config.with_values(history_frames=2)
    with pytest.raises(Halt):
        camera.see(6, check=stopping_at(at))
    assert camera.stamps == [] and not camera.state.has_live
    camera.see(7)
    assert camera.stamps == [7]


@pytest.mark.parametrize('frames', [0, 1, 3, 4, 5])
def test_a_lower_limit_leaves_the_newest_at_once(monkeypatch, frames):
    camera = Camera(monkeypatch)
    camera.see(*range(6))
    camera.config = camera.config.with_values(history_frames=frames, keyframe_interval_s=60.0)
    camera.see(6)
    assert camera.stamps == [*range(5 - frames, 5), 6]
    assert camera.see(7) == SLOT and camera.stamps == [*range(5 - frames, 5), 7]


def test_without_a_template_that_grows_nothing_is_kept_and_that_is_told_once(monkeypatch, caplog):
    camera = Camera(monkeypatch, grows=False)
    camera.see(0, 1, 2, cut=True)
    assert camera.stamps == [2] and len(caplog.messages) == 1 and 'no history is kept' in caplog.text
