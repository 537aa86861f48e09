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

"""The SROS 2 policy grants what the running node and a planner have, and nothing else."""

from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
import rclpy
from rclpy.action import (
    ActionClient,
    get_action_client_names_and_types_by_node,
    get_action_server_names_and_types_by_node,
)
from ros_harness import Robot, graph, scene_node
from vlm_reuse_interfaces.action import AskScene as AskSceneAction
from vlm_reuse_interfaces.msg import WatchAnswer
from vlm_reuse_interfaces.srv import AddWatch, AskScene, ListWatches, RemoveWatch

POLICY = Path(__file__).parents[1] / 'config' / 'sros2_policy.xml'
NODE, PLANNER = '/vlm_reuse_node', '/planner'
RIGHTS = {'topics': ('subscribe', 'publish'), 'services': ('request', 'reply'), 'actions': ('call', 'execute')}
ACTION_SERVICES, ACTION_TOPICS = ('cancel_goal', 'get_result', 'send_goal'), ('feedback', 'status')


def policy():
    """Read the file as sros2 does: comments are gone."""
    return ElementTree.parse(POLICY).getroot()


def profile(enclave):
    """Find the one profile of an enclave; its node is named as the enclave."""
    (found,) = policy().findall(f"enclaves/enclave[@path='{enclave}']/profiles/profile")
    assert found.get('ns') + found.get('node') == enclave
    return found


def full_name(name, node):
    """Expand a name of the policy as sros2 does, for a node in the root namespace."""
    return name if name.startswith('/') else node + name[1:] if name.startswith('~') else f'/{name}'


def granted(enclave):
    """List what an enclave may do, as (right, full name)."""
    return [
        (right, full_name(entry.text, enclave)) for rule in profile(enclave) for right in rule.attrib for entry in rule
    ]


def used(observer, node):
    """Ask the ROS graph what a node has, as (right, full name); topics and services of actions go with the actions."""
    names = {
        'publish': observer.get_publisher_names_and_types_by_node,
        'subscribe': observer.get_subscriber_names_and_types_by_node,
        'reply': observer.get_service_names_and_types_by_node,
        'request': observer.get_client_names_and_types_by_node,
        'execute': lambda *where: get_action_server_names_and_types_by_node(observer, *where),
        'call': lambda *where: get_action_client_names_and_types_by_node(observer, *where),
    }
    return {
        (right, name)
        for right, names_of in names.items()
        for name, _ in names_of(node.strip('/'), '/')
        if '/_action/' not in name
    }


def assert_exactly(robot, node, granted_rights):
    """Some middlewares learn what a node has one by one, even of a node in their own process."""
    with suppress(AssertionError):  # those below say more
        robot.until(lambda: used(robot.node, node) == granted_rights)
    used_rights = used(robot.node, node)
    missing, idle = sorted(used_rights - granted_rights), sorted(granted_rights - used_rights)
    assert not missing, f'used, and not granted: {missing}'
    assert not idle, f'granted, and not used: {idle}'


@pytest.fixture
def robot():
    with graph(own_domain=True) as context:
        yield Robot(context, '')


@pytest.mark.parametrize(
    'parameters, more, less',
    [
        ({}, set(), set()),
        (
            {'cameras': ['camera', 'rear']},
            {('subscribe', '/rear/image_raw'), ('publish', f'{NODE}/overlay/rear')},
            set(),
        ),
        (
            {'image_transport': 'compressed'},
            {('subscribe', '/camera/image_raw/compressed')},
            {('subscribe', '/camera/image_raw')},
        ),
    ],
)
def test_the_node_is_granted_what_it_has_and_nothing_more(robot, model_dir, parameters, more, less):
    """As the policy is, and with the changes that its comment names."""
    with scene_node(robot.context, '', model=str(model_dir), use_sim_time=True, **parameters):
        assert_exactly(robot, NODE, set(granted(NODE)) - less | more)


def test_a_planner_is_granted_what_it_asks_with_and_nothing_more(robot):
    planner = rclpy.create_node(PLANNER.strip('/'), context=robot.context)
    planner.create_client(AskScene, f'{NODE}/ask')
    planner.create_client(AddWatch, f'{NODE}/add_watch')
    planner.create_client(RemoveWatch, f'{NODE}/remove_watch')
    planner.create_client(ListWatches, f'{NODE}/list_watches')
    planner.create_subscription(WatchAnswer, f'{NODE}/watch_answers', print, 10)
    ActionClient(planner, AskSceneAction, f'{NODE}/ask_scene')
    assert_exactly(robot, PLANNER, set(granted(PLANNER)))


def test_a_planner_may_ask_the_node_and_do_nothing_else_to_it():
    reached = {(right, name) for right, name in granted(PLANNER) if name.startswith(NODE)}
    assert reached == {
        ('request', f'{NODE}/ask'),
        ('request', f'{NODE}/add_watch'),
        ('request', f'{NODE}/remove_watch'),
        ('request', f'{NODE}/list_watches'),
        ('call', f'{NODE}/ask_scene'),
        ('subscribe', f'{NODE}/watch_answers'),
    }


def test_what_the_planner_asks_for_is_what_the_node_gives():
    answered_by = {'request': 'reply', 'call': 'execute', 'subscribe': 'publish'}
    asked = {(answered_by[right], name) for right, name in granted(PLANNER) if name.startswith(NODE)}
    assert asked <= set(granted(NODE))


@pytest.mark.parametrize('enclave', [NODE, PLANNER])
def test_nothing_is_granted_twice_or_by_a_wildcard(enclave):
    rights = granted(enclave)
    assert len(rights) == len(set(rights)) and not [name for _, name in rights if set(name) & set('*?[')]


def test_every_rule_allows_in_words_that_sros2_knows():
    rules = [rule for enclave in (NODE, PLANNER) for rule in profile(enclave)]
    assert policy().get('version') == '0.2.0'
    for rule in rules:
        ((right, qualifier),) = rule.attrib.items()
        assert right in RIGHTS[rule.tag] and qualifier == 'ALLOW'
        assert {entry.tag for entry in rule} == {rule.tag[:-1]}


def dds_topics(right, name):
    """What one right is in DDS, as (publish or subscribe, topic)."""
    if right in RIGHTS['topics']:
        return {(right, f'rt{name}')}
    serves = right in ('reply', 'execute')
    hears, says = ('subscribe', 'publish') if serves else ('publish', 'subscribe')
    if right in RIGHTS['services']:
        return {(hears, f'rq{name}Request'), (says, f'rr{name}Reply')}
    service, topic = ('reply', 'publish') if serves else ('request', 'subscribe')
    inner = [(service, part) for part in ACTION_SERVICES] + [(topic, part) for part in ACTION_TOPICS]
    return {entry for kind, part in inner for entry in dds_topics(kind, f'{name}/_action/{part}')}


@pytest.mark.parametrize('enclave', [NODE, PLANNER])
def test_sros2_makes_permissions_of_exactly_what_is_granted(enclave, tmp_path):
    keystores = pytest.importorskip(
        'sros2.keystore', reason='sros2 is missing: it comes with a ROS 2 installation, not with the wheels'
    )
    keystores.create_keystore(tmp_path)
    keystores.create_enclave(tmp_path, enclave)
    keystores.create_permission(tmp_path, enclave, POLICY)
    grant = ElementTree.parse(tmp_path / 'enclaves' / enclave.strip('/') / 'permissions.xml').find('permissions/grant')
    permitted = {
        (right, topic.text) for right in RIGHTS['topics'] for topic in grant.findall(f'allow_rule/{right}//topic')
    }
    expected = set().union(*(dds_topics(*granted_right) for granted_right in granted(enclave)))
    assert permitted == expected | {(right, 'ros_discovery_info') for right in RIGHTS['topics']}
    assert grant.findtext('default') == 'DENY'
