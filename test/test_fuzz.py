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

"""Whatever is asked or set: a status or a refusal in a sentence, and the state as it was."""

import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

TEXTS = st.text(max_size=40) | st.sampled_from(['what ?', '<|im_end|>', '\ud800', ' \n', 'red ' * 900, '\0', '\u202e'])
NUMBERS = st.floats() | st.integers(-5, 10_000)
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.lists(TEXTS, max_size=3))
NAMES = [field.name for field in fields(Config)]


@pytest.fixture(scope='module')
def session(vlm):
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    session.first = session.ask(Question('what color ?', max_tokens=4), now_ns=0)
    return session


@settings(max_examples=150)
@given(
    st.builds(
        Question,
        TEXTS,
        st.lists(TEXTS, max_size=4).map(tuple),
        st.just('') | TEXTS,
        max_tokens=st.integers(-1, 12) | st.just(10**9),
        max_age_s=NUMBERS,
        max_lag_s=NUMBERS,
        timeout_s=NUMBERS,
        force_refresh=st.booleans(),
    )
)
def test_any_question_gets_a_status_and_leaves_the_state(session, question):
    answer = session.ask(question, now_ns=0)
    assert answer.status in Status and answer.status not in (Status.MODEL_ERROR, Status.BUSY)
    if answer.status is not Status.OK:
        assert answer.message.endswith('.') and not answer.text and answer.choice_index == -1
    session.config = session.config.with_values(seed=session.config.seed + 1)  # nothing is drawn, nor remembered
    again = session.ask(Question('what color ?', max_tokens=4), now_ns=0)
    assert again.token_ids == session.first.token_ids and not again.remembered


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(NAMES) | TEXTS, ANYTHING, max_size=4))
def test_any_configuration_is_valid_or_refused_in_a_sentence(values):
    try:
        config = Config().with_values(**values)
    except ConfigError as refused:
        assert str(refused).endswith('.')
        return
    for field in fields(Config):
        value, low, high = getattr(config, field.name), field.metadata['low'], field.metadata['high']
        assert type(value) is type(field.default) and (low is None or low <= value <= high)


@pytest.fixture(scope='module')
def running(model_dir):
    """A node that runs, with the robot around it."""
    pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
    pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
    from ros_harness import Robot, graph, scene_node

    with graph() as context, scene_node(context, '/fuzzed', model=str(model_dir)) as scene:
        robot = Robot(context, '/fuzzed')
        robot.scene = scene
        yield robot


@settings(max_examples=80)
@given(
    st.sampled_from([*NAMES, 'use_sim_time', 'no_such']),
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.text(st.characters(codec='ascii'), max_size=9),
        st.lists(st.text(st.characters(codec='ascii', exclude_characters='\0'), max_size=5), min_size=1, max_size=3),
    ),
)
def test_any_parameter_set_over_ros_is_taken_or_refused_and_the_node_stays_up(running, name, value):
    from ros_harness import set_parameter

    if isinstance(value, str):
        value = value.replace('\0', '')
    before = running.scene.config
    result = set_parameter(running, name, value)
    assert result.successful or result.reason
    if not result.successful:
        assert running.scene.config == before
    elif name in NAMES:
        set_parameter(running, name, list(old) if isinstance(old := getattr(before, name), tuple) else old)
        assert running.scene.config == before
