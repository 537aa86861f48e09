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

"""What `calibrate` compares with what, on which stretches: with arms that follow a script in place of a model."""

from types import SimpleNamespace

import numpy as np
import pytest
from replay_bags import BEGIN_NS, frames, write_bag

from vlm_reuse_node.calibrate import measure
from vlm_reuse_node.calibrate.arm import Arm
from vlm_reuse_node.calibrate.measure import Measurement
from vlm_reuse_node.calibrate.stretches import Recording
from vlm_reuse_node.config import Config
from vlm_reuse_node.model.work import Meter
from vlm_reuse_node.replay.bag import Selection
from vlm_reuse_node.replay.questions import QuestionEntry
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.drift_bounds import DriftCount

QUESTIONS = (
    QuestionEntry('is it red ?', ('yes', 'no')),
    QuestionEntry('what is it ?'),
    QuestionEntry('is it behind ?', ('yes', 'no'), camera='rear'),
)
SECONDS = 20  # four stretches


def test_a_patch_is_as_large_as_what_it_encodes_and_costs_what_it_computes():
    """A recurrent language model reads cells again that have not changed."""
    arm, encoded, read = Arm(None, Config()), np.arange(12) == 5, np.arange(12) >= 4
    refresh = Refresh(
        'c', 0, '', Level.PATCH, '', refreshed=read, stale=np.zeros(12, bool), changed=encoded, encoded=encoded
    )
    arm._note(None, refresh)
    assert (arm.patches, arm.largest_share, arm.paid_share) == (1, 1 / 12, 8 / 12)


class Script:
    """An arm without a model. Within limits it drifts in texts alone; every picture makes a new state."""

    made = []

    def __init__(self, vlm, config, does_upkeep=False):
        self.config, self.does_upkeep = config, does_upkeep
        self.kind = 'exact' if config.refresh_policy == 'exact' else 'free' if config.max_patches == 1000 else 'limited'
        self.seen_s, self.asked, self.firsts, self.last = [], [], 0, {}
        self.state, self.patches, self.largest_share, self.paid_share = 100 * len(self.made), 1, 0.1, 0.1
        self.made.append(self)

    def see(self, frame, is_first):
        self.firsts += is_first
        self.state += 1
        self.seen_s.append((frame.stamp_ns - BEGIN_NS) / 1e9)
        self.frames = (self.frames[0] if not is_first else frame,)  # the state is of the stretch's first picture
        return True

    def ask(self, questions):
        self.asked += questions
        answers = []
        for question in questions:
            drifts = self.kind == 'limited' and not question.choices
            scores = (0.9, 0.1) if question.choices else ()
            tokens = () if question.choices else (1 + drifts,)
            index = 0 if question.choices else -1
            is_exact = self.kind == 'exact'
            answers.append(
                Answer(
                    Status.OK,
                    choice_index=index,
                    choice_scores=scores,
                    token_ids=tokens,
                    confidence=0.9,
                    exact=is_exact,
                )
            )
        return answers

    def end(self):
        return {'limited': (10.0, 100.0), 'exact': (50.0, 100.0), 'free': (1.0, 1.0)}[self.kind]


class ScriptedReference:
    """Cold-dense: always the same answers. pictures: the newest one of every call."""

    pictures = []

    def __init__(self, vlm, config):
        assert config.refresh_policy == 'exact' and config.audit_share == 0.0

    def ask(self, shown, questions):
        self.pictures.append((shown[-1].stamp_ns - BEGIN_NS) / 1e9)
        return [
            Answer(Status.OK, choice_index=0 if question.choices else -1, token_ids=() if question.choices else (1,))
            for question in questions
        ]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, 'Arm', Script)
    monkeypatch.setattr(measure, 'Reference', ScriptedReference)
    monkeypatch.setattr(Script, 'made', [])
    monkeypatch.setattr(ScriptedReference, 'pictures', [])
    bag = write_bag(tmp_path / 'bag', {'/camera/image_raw': frames(2 * SECONDS)})
    recording = Recording(bag, 'bag', Selection(), ('camera',), QUESTIONS, are_general=False)
    family = type('Family', (), {'__module__': 'families.scripted'})()
    vlm = SimpleNamespace(
        device='gpu', family=family, fingerprint='f', precision='float32', meter=Meter(), name='script'
    )
    config = Config(history_frames=3, change_threshold=25)
    return Measurement(vlm, config, [recording], 1.0, lambda seconds: None, lambda: False).run()


def stretches(arm):
    return {int(at_s // 5) for at_s in arm.seen_s}


def test_limits_are_chosen_on_even_stretches_and_judged_on_odd_ones(measured):
    fitted = [arm for arm in Script.made if arm.kind == 'free' and not arm.seen_s[0]]
    judged = [arm for arm in Script.made if arm not in fitted]
    assert len(fitted) == 2 and {arm.config.change_halo for arm in fitted} == {0, 1}
    assert all(stretches(arm) == {0, 2} for arm in fitted)
    assert len(judged) == 6 and all(stretches(arm) == {1, 3} for arm in judged)
    assert all(arm.firsts == 2 for arm in Script.made)  # a session does not run over the stretch between


def test_the_judged_arms_work_as_the_node_does_within_the_limits_that_were_chosen(measured):
    limits = measured.calibration.limits
    limited = [arm for arm in Script.made if arm.kind == 'limited']
    assert len(limited) == 2 and all(arm.does_upkeep for arm in limited)
    assert all({name: getattr(arm.config, name) for name in vars(limits)} == vars(limits) for arm in limited)
    assert all(arm.config.history_frames == 3 and arm.config.audit_share == 0.0 for arm in Script.made)


def test_every_answer_is_compared_with_cold_dense_on_the_newest_picture(measured):
    asked = {at_s for arm in Script.made for at_s in arm.seen_s}
    assert set(ScriptedReference.pictures) <= asked and max(ScriptedReference.pictures) >= SECONDS - 1
    assert len(set(ScriptedReference.pictures)) >= SECONDS  # not only the pictures that the states are of


def test_each_kind_of_question_has_its_own_drift_and_work(measured):
    choices, texts = measured.calibration.choices, measured.calibration.texts
    assert choices.drift.answers >= 10 and choices.drift.drifted == 0 and choices.states == choices.drift.answers
    assert texts.drift == DriftCount(choices.drift.answers, choices.drift.answers)
    assert {(trial.work, trial.exact_work) for trial in (choices, texts)} == {(0.1, 0.5)}
    assert measured.calibration.parameters['change_threshold'] == 25


def test_a_camera_is_not_asked_another_cameras_questions(measured):
    assert measured.questions == 2
    assert {question.text for arm in Script.made for question in arm.asked} == {'is it red ?', 'what is it ?'}
