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

"""Never more work than cold-dense: whatever comes, in whatever order, counted in tokens through each stage."""

import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt, Turn

SECOND_NS = 1_000_000_000
COUNT = Question('how many objects are there ?', choices=('one', 'two', 'three'))
DESCRIBE = Question('what color is the square ?', max_tokens=6)


def moved(seed, cells):
    """A picture whose first cells differ from `picture(seed)`."""
    frame = picture(seed)
    rgb = frame.rgb.copy()
    rgb[:40, : 40 * cells] ^= 0x60
    return replace(frame, rgb=rgb)


def random_events(seed, length):
    """What happens to a camera: most often pictures with a few changed cells, questions and idle time.

    A seed, because drawing every event by itself gives streams that are broken by a new size or a clock set back long
    before anything can be kept, and patches, escalations, rollovers and audits hardly happen.
    """
    random = Random(seed)
    rare = random.choice([0.0, 0.02, 0.1])  # scenes, sizes, clocks, wrong questions, lost patience
    lag_s, moving = random.choice([0.0, 0.0, 0.3, 2.0]), random.choice([0.05, 0.5, 1.0])

    def is_rare():
        return random.random() < rare

    for _ in range(length):
        kind = random.choices(['look', 'ask', 'work'], [5, 3, 2])[0]
        patience = random.randint(1, 9) if is_rare() else None
        if kind == 'look':
            frame = moved(1, random.randint(0, 4) if random.random() < moving else 0)
            if is_rare():
                frame = picture(random.randint(2, 3), size=random.choice([(480, 640), (480, 640), (320, 320)]))
            yield kind, frame, random.choice([0.0, -0.05, -5.0, 12.0]) if is_rare() else random.choice([0.1, 0.5, 2.0])
        elif kind == 'ask':
            question = Question('') if is_rare() else random.choice([COUNT, COUNT, DESCRIBE])
            if question.text and random.random() < 0.7:  # mostly one that is not remembered
                question = replace(question, text=question.text + ' ?' * random.randint(1, 99))
            yield kind, replace(question, max_lag_s=lag_s, force_refresh=is_rare()), patience
        else:
            yield kind, random.randint(1, 4), patience


CONFIGS = st.builds(
    Config,
    refresh_policy=st.sampled_from(['exact', 'patch', 'patch']),
    history_frames=st.sampled_from([0, 0, 1, 3]),
    keyframe_interval_s=st.sampled_from([0.0, 1.0]),
    upkeep_share=st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.0]),
    audit_share=st.sampled_from([0.0, 0.3, 1.0]),
    min_confidence=st.sampled_from([0.0, 0.5, 1.0]),
    max_patch_share=st.sampled_from([0.25, 1.0]),
    max_age_s=st.just(1e4),
)


class Patience:
    """A check that raises at its n-th call; None: never."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self):
        if self.calls is not None:
            self.calls -= 1
            if self.calls <= 0:
                raise Halt(Status.TIMEOUT, 'No patience left.')
        return False


class Stream:
    """A camera, its planners and the model's idle time, as a session sees them."""

    def __init__(self, vlm, config):
        self.vlm, self.time_s, self.now_ns = vlm, 0.0, 0
        self.session = SceneSession(vlm, config, clock=lambda: self.time_s, measures_time=False)
        self.begun = vlm.meter.done

    def look(self, frame, step_s):
        self.time_s += max(0.0, step_s)
        self.now_ns += round(step_s * SECOND_NS)
        self.session.look(replace(frame, stamp_ns=self.now_ns))

    def ask(self, question, patience=None):
        return self.session.ask(question, now_ns=self.now_ns, turn=Turn(cancelled=Patience(patience)))

    def work(self, stages, patience=None):
        self.time_s += 0.6
        for _ in range(stages):
            if self.session.work(Patience(patience)) != 0:
                return

    @property
    def spent(self):
        return self.vlm.meter.done - self.begun

    @property
    def cold(self):
        return self.session._account.cold


@settings(max_examples=30)
@given(config=CONFIGS, seed=st.integers(0, 2**32), length=st.integers(1, 80))
def test_all_work_together_is_at_most_that_of_cold_dense(vlm, config, seed, length):
    stream, first = Stream(vlm, config), 0
    for kind, what, how in random_events(seed, length):
        getattr(stream, kind)(what, how)
        account = stream.session._account
        assert account.spent.tokens == stream.spent.tokens, 'a step of the model is on no account'
        # Patches may overdraw the credit by the first question's work, which holds the first picture.
        first = first or (stream.cold.tokens if config.refresh_policy == 'patch' else 0)
        assert stream.spent.tokens <= stream.cold.tokens + first, f'{stream.spent} after {kind}, cold {stream.cold}'
