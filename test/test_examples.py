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

"""Every example runs, or agrees with what it is about."""

import importlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from patience import PATIENCE_S
from PIL import Image
from programs import ROOT, environment

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop, Thing, sense

EXAMPLES = ROOT / 'examples'
INTERFACES = (ROOT / 'docs' / 'interfaces.md').read_text()
# What would hide shared memory, the network, a GPU or the host's memory from the node.
TOO_HARD = {
    'PrivateDevices', 'DevicePolicy', 'ProtectClock', 'PrivateNetwork', 'PrivateIPC', 'PrivateUsers', 'ProcSubset',
    'MemoryDenyWriteExecute', 'InaccessiblePaths', 'DynamicUser',
}  # fmt: skip
# What the README asks for in other words than Debian's.
README_WORDS = {'g++': 'a C++ compiler', 'python3-dev': 'its headers'}


def command(name, *arguments):
    """The command line of a Python example."""
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


def run(name, *arguments):
    """Run a Python example to its end."""
    return subprocess.run(
        command(name, *arguments), capture_output=True, text=True, timeout=PATIENCE_S, env=environment()
    )


def last_line(text):
    """What a program said at its end; DDS may have written something before."""
    return text.splitlines()[-1]


@pytest.fixture
def in_namespace(namespace):
    """The arguments that put an example's node beside the test's."""
    return '--ros-args', '-r', f'__ns:={namespace}'


@pytest.fixture
def seeing(robot):
    """A robot whose node has looked at a picture."""
    from ros_harness import BUDGET, show
    from vlm_reuse_interfaces.msg import RefreshBudget

    show(robot, robot.camera(), robot.listen(RefreshBudget, BUDGET))
    return robot


def test_the_service_example_prints_a_choice(seeing, in_namespace):
    done = run('planner_service.py', *in_namespace)
    assert done.returncode == 0, done.stderr
    own = seeing.ask('is there a red square ?', choices=['yes', 'no'])
    assert done.stdout == f'{own.text}, {own.confidence:.2f} sure, about camera camera\n' and own.remembered


def test_the_service_example_says_why_there_is_no_answer(robot, in_namespace):
    from vlm_reuse_interfaces.msg import Answer

    done = run('planner_service.py', *in_namespace)
    assert done.returncode == 1 and not done.stdout
    assert last_line(done.stderr).startswith(f'No answer (status {Answer.NO_IMAGE}): ')


def test_the_action_example_shows_the_text_as_it_grows(seeing, in_namespace):
    done = run('planner_action.py', *in_namespace)
    assert done.returncode == 0, done.stderr
    *feedback, last = done.stdout.splitlines()
    own = seeing.ask('what objects are there ?')
    assert last.startswith(f'{own.text} (least likely token {own.confidence:.2f}, ')
    stages = [line.split(' ')[0] for line in feedback if line != 'Asked; Ctrl-C cancels.']
    assert stages[0] in ('queue', 'refresh') and set(stages) <= {'queue', 'refresh', 'prefill', 'decode'}


def test_the_action_example_cancels_at_ctrl_c(seeing, brake, in_namespace):
    from vlm_reuse_interfaces.msg import Answer

    brake.hold()
    with subprocess.Popen(
        command('planner_action.py', *in_namespace),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert brake.held.wait(PATIENCE_S)
            assert any('Ctrl-C' in line for line in process.stdout)  # which reads up to it
            process.send_signal(signal.SIGINT)
            assert any('Cancelling.' in line for line in process.stdout)
            brake.go_on.set()
            _, error = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 1 and last_line(error).startswith(f'No answer (status {Answer.CANCELLED}): ')


def test_the_action_example_lets_the_node_keep_its_time_limit(seeing, in_namespace):
    from vlm_reuse_interfaces.msg import Answer

    done = run('planner_action.py', *in_namespace, '-p', 'timeout:=0.000001')
    assert done.returncode == 1 and last_line(done.stderr).startswith(f'No answer (status {Answer.TIMEOUT}): ')


def tabletop(*things):
    """A picture of these things, always on the same table."""
    table = Tabletop(np.random.default_rng(0))
    return sense(table.picture(things), Sensor(), np.random.default_rng(1))


def test_the_engine_example_answers_a_second_question_from_what_is_kept(tmp_path):
    square = Thing('square', 'red', 60.0, 60.0, 50.0)
    circle = Thing('circle', 'blue', 160.0, 100.0, 50.0)
    paths = [tmp_path / 'first.png', tmp_path / 'second.png']
    for path, things in zip(paths, [(square, circle), (circle,)]):
        Image.fromarray(tabletop(*things)).save(path)
    done = run('engine.py', *paths)
    assert done.returncode == 0, done.stderr
    lines = [line.split(': ', 1) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in paths for _ in range(2)]
    answers = [line[1].split(' (')[0] for line in lines]
    assert answers == ['yes', 'red square and blue circle', 'no', 'blue circle']
    assert 'level full' in lines[0][1] and ' 0 kept' in lines[0][1]
    computed, kept = (int(number) for number in re.findall(r'(\d+)', lines[1][1])[-2:])
    assert 'level reuse' in lines[1][1] and computed < kept / 5


def test_the_ports_of_the_behavior_tree_are_fields_of_the_action():
    from vlm_reuse_interfaces.action import AskScene
    from vlm_reuse_interfaces.msg import Answer

    text = (EXAMPLES / 'door_check.xml').read_text()
    root = ElementTree.fromstring(text.encode())
    model = root.find("TreeNodesModel/Action[@ID='AskScene']")
    taken, given = ({port.get('name') for port in model.iter(f'{way}_port')} for way in ('input', 'output'))
    assert {'action_name', 'question', 'timeout'} <= taken
    assert taken - {'action_name'} <= set(AskScene.Goal.get_fields_and_field_types())
    assert {'text'} < given <= set(Answer.get_fields_and_field_types())
    comment = text.split('-->')[0]  # its C++ declares and uses the same ports
    assert set(re.findall(r'Port<.*>\("(\w+)"', comment)) == taken - {'action_name'} | given
    assert set(re.findall(r'[gs]et(?:In|Out)put(?:<\w+>)?\("(\w+)"', comment)) == taken - {'action_name'} | given
    nodes = list(root.iter('AskScene'))
    assert nodes and all(set(node.attrib) <= taken | given for node in nodes)
    assert root.get('BTCPP_format') == '4'
    assert root.get('main_tree_to_execute') in [tree.get('ID') for tree in root.iter('BehaviorTree')]


def test_every_status_of_the_node_has_one_analyzer_and_every_analyzer_a_status(robot):
    parameters = yaml.safe_load((EXAMPLES / 'diagnostics.yaml').read_text())['analyzers']['ros__parameters']
    analyzers = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    assert all(value['type'] == 'diagnostic_aggregator/GenericAnalyzer' for value in analyzers.values())
    newest = robot.diagnostics()
    robot.until(lambda: 'camera camera' in newest(), 'the status of the camera')
    names = [status.name for status in newest().values()]
    found = {name: [key for key, value in analyzers.items() if matches(value, name)] for name in names}
    assert all(len(keys) == 1 for keys in found.values()), found
    for value in analyzers.values():
        assert all(any(part in name for name in names) for part in value['contains'])


def matches(analyzer, name):
    """Whether diagnostic_aggregator's GenericAnalyzer takes a status of this name."""
    return any(part in name for part in analyzer['contains'])


def topics():
    """The type of every topic on the interfaces' page, by its name for a node with the camera 'camera'."""
    rows = re.findall(r'^\| `([^`]+)` \| `(\w+)/msg/(\w+)` \|', INTERFACES, re.M)
    names = {name.replace('~', '/vlm_reuse_node').replace('<camera>', 'camera'): kind for name, *kind in rows}
    here = {name: (package, kind) for name, (package, kind) in names.items() if importlib.util.find_spec(package)}
    return {name: getattr(importlib.import_module(f'{package}.msg'), kind) for name, (package, kind) in here.items()}


def panels(layout):
    """The panels that a layout shows."""
    return (
        [layout]
        if isinstance(layout, str)
        else [panel for part in ('first', 'second') for panel in panels(layout[part])]
    )


def test_the_foxglove_layout_shows_topics_and_fields_that_exist():
    from diagnostic_msgs.msg import DiagnosticArray
    from sensor_msgs.msg import Image as ImageMessage

    layout, kinds = json.loads((EXAMPLES / 'foxglove_layout.json').read_text()), topics()
    configs = layout['configById']
    assert sorted(panels(layout['layout'])) == sorted(configs)
    assert {panel.split('!')[0] for panel in configs} == {'Image', 'Plot', 'DiagnosticSummary', 'RawMessages'}
    for panel, config in configs.items():
        if panel.startswith('Image'):
            assert kinds[config['imageMode']['imageTopic']] is ImageMessage
        elif panel.startswith('Diagnostic'):
            assert kinds[config['topicToRender']] is DiagnosticArray
        elif panel.startswith('Raw'):
            assert config['topicPath'] in kinds
        else:
            for path in config['paths']:
                topic, field = path['value'].split('.')
                assert path['enabled'] and field in kinds[topic].get_fields_and_field_types()


def test_the_systemd_unit_leaves_open_what_the_node_needs():
    lines = (EXAMPLES / 'vlm_reuse.service').read_text().splitlines()
    settings = {line.split('=')[0] for line in lines if '=' in line and not line.startswith(('#', ' '))}
    assert {'User', 'Restart', 'NoNewPrivileges', 'ProtectSystem'} <= settings and not settings & TOO_HARD
    families = next(line for line in lines if line.startswith('RestrictAddressFamilies='))
    assert set(families.split('=')[1].split()) == {'AF_UNIX', 'AF_INET', 'AF_INET6', 'AF_NETLINK'}
    named = re.findall(r'-p (\w+):=', '\n'.join(lines))
    assert named and set(named) <= {parameter.name for parameter in fields(Config)}


def test_systemd_finds_nothing_wrong_with_its_unit():
    if not shutil.which('systemd-analyze'):
        pytest.skip('systemd-analyze is missing: install systemd')
    checked = subprocess.run(
        ['systemd-analyze', 'verify', EXAMPLES / 'vlm_reuse.service'],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert checked.returncode == 0 and not checked.stderr


def test_the_dockerfile_does_what_the_readme_and_the_set_up_say():
    text = (EXAMPLES / 'Dockerfile').read_text().replace('\\\n', ' ')
    runs = re.findall(r'^RUN (.*)', text, re.M)
    told = (ROOT / 'README.md').read_text() + (ROOT / 'tools' / 'setup_env.sh').read_text()
    (packages,) = (re.search(r'apt-get install (.*?)&&', run)[1].split() for run in runs if 'apt-get install' in run)
    packages = [package for package in packages if not package.startswith('-')]
    assert 'make' in packages and [name for name in packages if README_WORDS.get(name, name) not in told] == []
    made = [run.removeprefix('make ') for run in runs if run.startswith('make ')]
    assert made == ['setup'] and all(f'\n{target}:' in (ROOT / 'Makefile').read_text() for target in made)
    assert 'FROM debian:bookworm' in text and 'Debian 12' in told
    used = re.findall(r'(?:\. |run |exec )((?:tools|\.ci)/\S+)', text)
    assert used and all((ROOT / name).exists() for name in used)


def test_the_list_of_examples_is_complete():
    rows = re.findall(r'^\| \[(.+?)\]\((.+?)\) \|', (EXAMPLES / 'README.md').read_text(), re.M)
    assert sorted(name for name, _ in rows) == sorted({path.name for path in EXAMPLES.iterdir()} - {'README.md'})
    assert all(name == link for name, link in rows)
