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

"""docs/interfaces.md says what the interface files and a running node say."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

from vlm_reuse_node.config import Config
from vlm_reuse_node.session.answer import Status

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location('interface_docs', ROOT / 'tools' / 'interface_docs.py')
docs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(docs)
PAGE = docs.PAGES[0].read_text()
# What rclpy gives every node.
EVERY_NODES = re.compile(
    r'/(rosout|parameter_events|clock)|.*/(get|set|list|describe)_parameter\w*'
    r'|.*/get_type_description'
)


@pytest.mark.parametrize('path', docs.PAGES, ids=lambda path: path.name)
def test_every_table_is_what_its_file_says(path):
    assert docs.page(path.read_text()) == path.read_text(), 'make docs writes the tables anew'


def test_a_table_of_parameters_is_the_code():
    """Name, default, range and description of each, in the order of the code, and no other."""
    rows = docs.parameter_table('all').splitlines()[2:]
    assert [row.split('`')[1] for row in rows] == [parameter.name for parameter in fields(Config)]
    for row, parameter in zip(rows, fields(Config)):
        assert parameter.metadata['description'] in row and str(parameter.default).strip('()')[:4] in row


def test_every_interface_has_a_table():
    assert sorted(name for name, _ in docs.BLOCK.findall(PAGE)) == docs.interfaces()


def test_every_field_is_in_its_table():
    """Of the generated classes, which the interface files alone make."""
    pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
    from vlm_reuse_interfaces import msg, srv
    from vlm_reuse_interfaces.action import AskScene as Action

    classes = {
        'msg/Answer.msg': [msg.Answer],
        'msg/RefreshBudget.msg': [msg.RefreshBudget],
        'msg/Watch.msg': [msg.Watch],
        'msg/WatchAnswer.msg': [msg.WatchAnswer],
        'srv/AddWatch.srv': [srv.AddWatch.Request, srv.AddWatch.Response],
        'srv/AskScene.srv': [srv.AskScene.Request, srv.AskScene.Response],
        'srv/ListWatches.srv': [srv.ListWatches.Request, srv.ListWatches.Response],
        'srv/RemoveWatch.srv': [srv.RemoveWatch.Request, srv.RemoveWatch.Response],
        'action/AskScene.action': [Action.Goal, Action.Result, Action.Feedback],
    }
    for name, block in docs.BLOCK.findall(PAGE):
        told = [row.split('`')[1] for row in block.splitlines() if row.startswith('| `') and ', constant' not in row]
        assert told == [field for each in classes[name] for field in each.get_fields_and_field_types()]


def test_every_status_has_a_row():
    assert re.findall(r'^\| `([A-Z_]+)` \|', PAGE, re.M)[: len(Status)] == [str(status) for status in Status]


def entities():
    """(name, type) of every row of the table of entities."""
    table = PAGE.split('<!-- entities -->')[1].split('<!-- /entities -->')[0]
    return {tuple(re.findall(r'`([^`]+)`', row)[:2]) for row in table.strip().splitlines()[2:]}


def test_the_table_of_entities_is_what_a_running_node_has(start, namespace):
    pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
    from rclpy.action import get_action_server_names_and_types_by_node

    robot = start(cameras=['front'])
    name = 'vlm_reuse_node', namespace
    node = robot.node
    robot.until(lambda: get_action_server_names_and_types_by_node(node, *name), 'its action')
    found = {
        (topic, kind)
        for listed in (
            node.get_publisher_names_and_types_by_node(*name),
            node.get_subscriber_names_and_types_by_node(*name),
            node.get_service_names_and_types_by_node(*name),
            get_action_server_names_and_types_by_node(node, *name),
        )
        for topic, kinds in listed
        for kind in kinds
    }

    def written(topic):
        private = topic.replace(f'{namespace}/vlm_reuse_node/', '~/')
        return private.replace(f'{namespace}/', '').replace('front', '<camera>')

    ours = {
        (written(topic), kind) for topic, kind in found if not EVERY_NODES.fullmatch(topic) and '/_action/' not in topic
    }
    others = {('<camera>/image_raw/compressed', 'sensor_msgs/msg/CompressedImage')}
    others |= {('<camera>/image_raw/ffmpeg', 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket')}
    assert ours == entities() - others
