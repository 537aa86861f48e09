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

"""What refresh_policy auto comes to: patches only with a calibration of this very model that shows little drift."""

import json
import logging
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session import calibration as calibrations
from vlm_reuse_node.session.calibration import (
    CalibratedModel,
    Calibration,
    CalibrationError,
    PatchLimits,
    Trial,
    parameters_of,
)
from vlm_reuse_node.session.drift_bounds import DriftCount
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.trust import decide

LIMITS = PatchLimits(1, 4, 0.5, 0.8, 0.9)
GOOD = Trial(DriftCount(1000), 40, work=0.2, exact_work=0.4)
BAD = Trial(DriftCount(1000, 40), 40, work=0.2, exact_work=0.4)
FEW = Trial(DriftCount(100), 40, work=0.2, exact_work=0.4)
DEAR = Trial(DriftCount(1000), 40, work=0.39, exact_work=0.4)
ALIKE = Trial(DriftCount(1000), 2, work=0.2, exact_work=0.4)


def calibration(vlm, choices=GOOD, texts=GOOD, limits=LIMITS, **model):
    parameters = parameters_of(Config())
    made_for = replace(CalibratedModel.of(vlm), **model)
    return Calibration(made_for, parameters, limits, choices, texts, ('kitchen', 'hall'))


def written(path, record):
    path.write_text(json.dumps(record.as_json()))
    return str(path)


def trust(vlm, tmp_path, record, **parameters):
    return decide(vlm, Config(calibration=written(tmp_path / 'a.json', record), **parameters))


def test_a_record_survives_its_file(vlm, tmp_path):
    record = calibration(vlm, BAD, FEW)
    assert calibrations.read(tmp_path / written(tmp_path / 'a.json', record)) == record


def test_what_is_forced_needs_no_calibration(vlm):
    for policy in ('exact', 'patch'):
        given_config = Config(refresh_policy=policy, calibration='/nowhere')
        decided = decide(vlm, given_config)
        assert decided.used is given_config and policy in decided.why and not decided.is_refused


def test_a_good_calibration_brings_its_own_limits(vlm, tmp_path):
    decided = trust(vlm, tmp_path, calibration(vlm), min_confidence=0.1, max_patches=99)
    assert decided.used.refresh_policy == 'patch' and not decided.is_refused
    assert {name: getattr(decided.used, name) for name in asdict(LIMITS)} == asdict(LIMITS)
    assert decided.given.min_confidence == 0.1
    assert 'kitchen and 1 more' in decided.why and '0 of 1000 drifted' in decided.why


@pytest.mark.parametrize('other', [BAD, FEW, DEAR, ALIKE])
def test_each_kind_of_question_is_trusted_by_its_own_measurement(vlm, tmp_path, other):
    decided = trust(vlm, tmp_path, calibration(vlm, choices=GOOD, texts=other))
    assert decided.used.refresh_policy == 'patch'
    assert (decided.used.min_confidence, decided.used.min_text_confidence) == (0.8, 1.0)
    decided = trust(vlm, tmp_path, calibration(vlm, choices=other, texts=GOOD))
    assert (decided.used.min_confidence, decided.used.min_text_confidence) == (1.0, 0.9)
    decided = trust(vlm, tmp_path, calibration(vlm, choices=other, texts=other))
    assert decided.used.refresh_policy == 'exact' and not decided.is_refused


def test_limits_under_which_no_answer_is_sure_enough_are_no_trust(vlm, tmp_path):
    limits = replace(LIMITS, min_confidence=1.0, min_text_confidence=1.0)
    decided = trust(vlm, tmp_path, calibration(vlm, limits=limits))
    assert decided.used.refresh_policy == 'exact' and 'no patched state was sure enough' in decided.why


@given(
    answers=st.one_of(st.integers(0, 10), st.integers(40, 3000)),
    share=st.floats(0, 0.05),
    max_drift=st.floats(0.0001, 0.1),
)
def test_the_bound_decides_and_not_the_share(vlm, tmp_path_factory, answers, share, max_drift):
    drift = DriftCount(answers, int(share * answers))
    record = calibration(vlm, Trial(drift, min(40, answers), 0.2, 0.4), BAD)
    decided = trust(vlm, tmp_path_factory.getbasetemp(), record, max_drift=max_drift)
    is_shown = (answers >= 40 and drift.bounds[1] <= max_drift) or BAD.drift.bounds[1] <= max_drift
    assert (decided.used.refresh_policy == 'patch') == is_shown


@pytest.mark.parametrize(
    'change, words',
    [
        ({'fingerprint': 'f'}, 'another model'),
        ({'family': 'gemma4'}, 'family gemma4'),
        ({'precision': 'bfloat16'}, 'precision bfloat16 (here float32)'),
        ({'device': 'metal'}, 'device metal (here'),
        ({'engine': 0}, 'version of the refreshes 0'),
    ],
)
def test_a_calibration_of_anything_else_is_refused_and_said(vlm, tmp_path, change, words):
    decided = trust(vlm, tmp_path, calibration(vlm, **change))
    assert decided.used.refresh_policy == 'exact' and decided.is_refused
    assert words in decided.why and 'a.json' in decided.why and 'calibrate' in decided.why


def damaged(record, *path, value):
    given_json = json.loads(json.dumps(record.as_json()))
    part = given_json
    for name in path[:-1]:
        part = part[name]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return json.dumps(given_json)


@pytest.mark.parametrize(
    'path, value',
    [
        (('format',), 2),
        (('model',), None),
        (('model', 'engine'), 'one'),
        (('limits', 'max_patches'), 0),
        (('limits', 'max_patches'), True),
        (('limits', 'min_confidence'), 1.5),
        (('limits', 'min_confidence'), 'high'),
        (('choices', 'drift', 'answers'), -1),
        (('choices', 'drift', 'drifted'), 2000),
        (('texts', 'work'), None),
        (('texts', 'work'), -0.1),
        (('texts', 'exact_work'), 'NaN'),
        (('recordings',), 7),
        (('recordings',), 'abc'),
        (('format',), True),
        (('texts', 'work'), True),
        (('texts', 'work'), 10**400),
        (('texts', 'drift', 'answers'), 10**18),
        (('texts', 'states'), 10**6),
        (('limits', 'max_patch_share'), 10**400),
        (('parameters',), {}),
        (('parameters', 'change_threshold'), 'x'),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(vlm, tmp_path, path, value):
    file = tmp_path / 'a.json'
    file.write_text(damaged(calibration(vlm), *path, value=value))
    with pytest.raises(CalibrationError) as refused:
        calibrations.read(file)
    assert 'a.json' in str(refused.value) and '\n' not in str(refused.value)
    assert decide(vlm, Config(calibration=str(file))).used.refresh_policy == 'exact'


@pytest.mark.parametrize(
    'content', [b'', b'{', b'[]', b'null', b'"x"', b'\xff\xfe', b'{"format": 1}', b'{"format": NaN}', b'[' * 200_000]
)
def test_any_other_file_is_refused(vlm, tmp_path, content):
    (tmp_path / 'a.json').write_bytes(content)
    decided = decide(vlm, Config(calibration=str(tmp_path / 'a.json')))
    assert decided.is_refused and decided.used.refresh_policy == 'exact' and '\n' not in decided.why


@pytest.mark.parametrize(
    'name, value',
    [
        ('visual_tokens', 64),
        ('thinking', True),
        ('change_threshold', 40),
        ('history_frames', 2),
        ('system_prompt', 'be kind'),
        ('temperature', 0.5),
    ],
)
def test_a_calibration_holds_for_the_parameters_it_was_made_with(vlm, tmp_path, name, value):
    decided = trust(vlm, tmp_path, calibration(vlm), **{name: value})
    assert decided.is_refused and decided.used.refresh_policy == 'exact' and f'(here {value!r})' in decided.why
    made = replace(calibration(vlm), parameters=parameters_of(Config(**{name: value})))
    assert trust(vlm, tmp_path, made, **{name: value}).used.refresh_policy == 'patch'


def test_a_name_that_is_no_path_is_refused_and_nothing_is_raised(vlm):
    decided = decide(vlm, Config(calibration='~nosuchuser/calibration.json'))
    assert decided.is_refused and decided.used.refresh_policy == 'exact'


def test_a_bound_that_is_no_number_shows_nothing(vlm, tmp_path, monkeypatch):
    path = written(tmp_path / 'a.json', calibration(vlm))
    monkeypatch.setattr(DriftCount, 'high', float('nan'))
    assert decide(vlm, Config(calibration=path)).used.refresh_policy == 'exact'


def test_a_file_that_is_not_there_is_refused_if_it_was_named(vlm, tmp_path):
    assert decide(vlm, Config(calibration=str(tmp_path / 'none.json'))).is_refused
    decided = decide(vlm, Config())
    assert not decided.is_refused and 'no calibration' in decided.why and decided.used.refresh_policy == 'exact'


def test_the_calibration_in_the_models_directory_is_found_and_a_named_one_goes_first(vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(vlm, 'folder', tmp_path)
    written(tmp_path / 'calibration.json', calibration(vlm))
    assert decide(vlm, Config()).used.refresh_policy == 'patch'
    named = written(tmp_path / 'other.json', calibration(vlm, BAD, BAD))
    assert decide(vlm, Config(calibration=named)).used.refresh_policy == 'exact'


def test_a_model_that_cannot_compute_single_cells_says_so(vlm, tmp_path):
    other = SimpleNamespace(family=SimpleNamespace(encodes_cells=False), folder=None)
    decided = decide(other, Config(calibration=written(tmp_path / 'a.json', calibration(vlm))))
    assert decided.used.refresh_policy == 'exact' and 'cannot compute single cells' in decided.why


def test_a_session_patches_as_the_calibration_says_and_logs_why(vlm, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    limits = replace(LIMITS, min_confidence=0.01, min_text_confidence=1.0)
    path = written(tmp_path / 'a.json', calibration(vlm, GOOD, BAD, limits))
    session = SceneSession(vlm, Config(calibration=path, audit_share=0.0), 'front', measures_time=False)
    (record,) = caplog.records
    assert record.levelno == logging.INFO and "'front': refresh_policy is patch" in record.getMessage()
    assert (session.status.policy, session.status.policy_reason) == ('patch', decide(vlm, session.config).why)

    def changed(stamp_s):
        frame = picture(1, stamp_s)
        frame.rgb.flags.writeable = True
        frame.rgb[:40, :40] ^= 0x80 if stamp_s else 0
        frame.rgb.flags.writeable = False
        return frame

    choice = Question('what color is the square ?', ('red', 'green'), max_age_s=1000.0)
    for stamp_s, question in ((0.0, choice), (0.5, choice)):
        session.look(changed(stamp_s))
        answer = session.ask(question, now_ns=int(stamp_s * SECOND_NS))
    assert answer.level == Level.PATCH and not answer.exact
    text = session.ask(Question('where is it ?', max_tokens=2, max_age_s=1000.0), now_ns=SECOND_NS)
    assert text.exact and text.level == Level.FRAME  # texts are not trusted
    caplog.clear()
    session.config = session.config.with_values(max_drift=0.001)
    assert session.status.policy == 'exact' and len(caplog.records) == 1
    session.config = session.config.with_values(max_drift=0.001)  # nothing changes
    assert len(caplog.records) == 1


def test_limits_out_of_range_are_no_configuration():
    with pytest.raises(ConfigError):
        replace(LIMITS, change_halo=99).configure(Config())


def test_names_in_a_file_are_harmless_where_they_are_shown(vlm, tmp_path):
    record = replace(calibration(vlm), recordings=('a\x1b[31m\nb', 'x' * 1000))
    decided = trust(vlm, tmp_path, record)
    assert decided.why.isprintable() and len(decided.why) < 600
