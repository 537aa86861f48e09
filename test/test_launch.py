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

"""Bring-up: what the launch file passes on, by itself everywhere and with the real launch system where it is."""

import ast
import importlib.util
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest
import yaml

from vlm_reuse_node.config import Config

ROOT = Path(__file__).parents[1]
LAUNCH_FILE = ROOT / 'launch' / 'vlm_reuse.launch.py'
PARAMETER_FILE = ROOT / 'config' / 'vlm_reuse.yaml'
LAUNCH_MODULES = (
    'launch',
    'launch.actions',
    'launch.event_handlers',
    'launch.substitutions',
    'launch_ros',
    'launch_ros.actions',
    'launch_ros.substitutions',
)
NOTHING = dict.fromkeys(('model', 'cameras', 'image_topic', 'namespace', 'bag'), '') | {
    'params_file': 'robot.yaml',
    'log_level': 'info',
    'use_sim_time': 'auto',
    'autostart': 'auto',
}

has_launch = importlib.util.find_spec('launch_ros') is not None
needs_launch = pytest.mark.skipif(
    not has_launch, reason='launch_ros is missing: it comes with a ROS 2 installation, not with the wheels'
)


@pytest.fixture
def launch_file():
    """The launch file as a module; the launch system is stood in for, so that its own functions can be called."""
    spec = importlib.util.spec_from_file_location('vlm_reuse_launch', LAUNCH_FILE)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in LAUNCH_MODULES}):
        spec.loader.exec_module(module)
    return module


def declared_arguments():
    """The keyword arguments of every DeclareLaunchArgument by its name."""
    calls = [node for node in ast.walk(ast.parse(LAUNCH_FILE.read_text())) if isinstance(node, ast.Call)]
    return {
        call.args[0].value: {keyword.arg: keyword.value for keyword in call.keywords}
        for call in calls
        if getattr(call.func, 'id', '') == 'DeclareLaunchArgument'
    }


def test_every_argument_is_described_and_has_a_default():
    arguments = declared_arguments()
    assert set(arguments) == set(NOTHING)
    assert all({'description', 'default_value'} <= set(keywords) for keywords in arguments.values())
    assert {name for name, keywords in arguments.items() if 'choices' in keywords} == {
        'log_level',
        'use_sim_time',
        'autostart',
    }


def test_no_argument_repeats_a_default_of_the_node():
    arguments, parameters = declared_arguments(), {field.name for field in fields(Config)}
    defaults = {name: ast.literal_eval(arguments[name]['default_value']) for name in parameters & set(arguments)}
    assert defaults == {'model': '', 'cameras': '', 'autostart': 'auto'}


def test_what_is_not_asked_for_is_left_to_the_parameter_file(launch_file):
    assert launch_file.parameters_of(NOTHING) == [] and launch_file.remappings_of(NOTHING) == []


@pytest.mark.parametrize(
    'asked, parameters',
    [
        ({'model': '/models/qwen'}, {'model': '/models/qwen'}),
        ({'cameras': 'front'}, {'cameras': ['front']}),
        ({'cameras': '[front, rear]'}, {'cameras': ['front', 'rear']}),
        ({'cameras': 'front,rear'}, {'cameras': ['front', 'rear']}),
        ({'use_sim_time': 'true'}, {'use_sim_time': True}),
        ({'use_sim_time': 'false'}, {'use_sim_time': False}),
        ({'autostart': 'false'}, {'autostart': False}),
        ({'autostart': 'true'}, {'autostart': True}),
        ({'bag': 'kitchen'}, {'use_sim_time': True}),
        ({'bag': 'kitchen', 'use_sim_time': 'false'}, {'use_sim_time': False}),
    ],
)
def test_what_is_asked_for_becomes_a_parameter(launch_file, asked, parameters):
    assert launch_file.parameters_of(NOTHING | asked) == [parameters]


def test_a_parameter_file_that_does_not_exist_is_refused(launch_file, tmp_path):
    for path in (tmp_path / 'no_such.yaml', tmp_path):
        with pytest.raises(RuntimeError, match=re.escape(str(path))):
            launch_file.check_params_file(NOTHING | {'params_file': str(path)})
    launch_file.check_params_file(NOTHING | {'params_file': str(PARAMETER_FILE)})


def test_bringing_up_checks_the_parameter_file(launch_file):
    """The launch system is stood in for: whatever argument is read has this value."""
    with mock.patch.object(launch_file, 'LaunchConfiguration') as argument:
        argument.return_value.perform.return_value = '/nowhere/robot.yaml'
        with pytest.raises(RuntimeError, match='/nowhere/robot.yaml'):
            launch_file.bring_up(mock.Mock())


def test_the_first_camera_can_be_given_its_topic(launch_file):
    given = NOTHING | {'cameras': 'front,rear', 'image_topic': '/lens/picture'}
    assert launch_file.remappings_of(given) == [('front/image_raw', '/lens/picture')]
    with pytest.raises(RuntimeError, match='cameras'):
        launch_file.remappings_of(NOTHING | {'image_topic': '/lens/picture'})


def test_the_parameter_file_names_only_parameters_there_are():
    text = PARAMETER_FILE.read_text()
    assert yaml.safe_load(text) == {'/**': {'ros__parameters': {}}}
    shown = yaml.safe_load(re.sub(r'^    # ', '    ', text, flags=re.M).replace(' {}', ''))['/**']['ros__parameters']
    overrides = {name for name in shown if name.startswith('qos_overrides.')}
    assert overrides and Config().with_values(**{name: shown[name] for name in set(shown) - overrides})


MANAGER = """
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
rclpy.init()
node = rclpy.create_node('manager')
for kind, name, request in (
        (GetState, 'get_state', GetState.Request()),
        (ChangeState, 'change_state', ChangeState.Request(transition=Transition(id=1))),
        (ChangeState, 'change_state', ChangeState.Request(transition=Transition(id=3)))):
    client = node.create_client(kind, f'/vlm_reuse_node/{name}')
    client.wait_for_service()
    future = client.call_async(request)
    rclpy.spin_until_future_complete(node, future)
    print(future.result().current_state.label if kind is GetState else future.result().success, flush=True)
"""


def launched(tmp_path, monkeypatch, end, beside=(), **arguments):
    """Launch for real, with a program beside it; stop as soon as some output holds the text `end`.

    Returns the exit code and all output.
    """
    from launch.actions import EmitEvent, ExecuteProcess, IncludeLaunchDescription, RegisterEventHandler
    from launch.event_handlers import OnProcessIO
    from launch.events import Shutdown
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    from launch import LaunchDescription, LaunchService

    output = []

    def on_output(event):
        output.append(event.text.decode())
        return [EmitEvent(event=Shutdown())] if end in output[-1] else None

    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    monkeypatch.setenv('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    service = LaunchService()
    service.include_launch_description(
        LaunchDescription(
            [
                RegisterEventHandler(OnProcessIO(on_stdout=on_output, on_stderr=on_output)),
                IncludeLaunchDescription(
                    PythonLaunchDescriptionSource(str(LAUNCH_FILE)), launch_arguments=arguments.items()
                ),
                *([ExecuteProcess(cmd=list(beside))] if beside else []),
            ]
        )
    )
    return service.run(), ''.join(output)


@needs_launch
def test_the_node_comes_up_with_what_was_asked_for_and_ends_cleanly(tmp_path, monkeypatch, model_dir):
    code, output = launched(
        tmp_path,
        monkeypatch,
        'Ready',
        model=str(model_dir),
        cameras='front,rear',
        image_topic='/lens/picture',
        namespace='base',
        log_level='info',
    )
    assert code == 0 and 'tiny looks at /lens/picture, /base/rear/image_raw.' in output


@needs_launch
def test_without_autostart_it_waits_for_a_lifecycle_manager(tmp_path, monkeypatch, model_dir):
    """A manager of the test's own configures and activates it once it is there."""
    manager = tmp_path / 'manager.py'
    manager.write_text(MANAGER)
    code, output = launched(
        tmp_path, monkeypatch, 'Ready', beside=[sys.executable, str(manager)], model=str(model_dir), autostart='false'
    )
    assert code == 0 and output.index('unconfigured') < output.index('Loading') < output.index('Ready')
    assert 'ros2 lifecycle set /vlm_reuse_node configure' in output


@needs_launch
def test_a_parameter_file_is_read(tmp_path, monkeypatch, model_dir):
    (tmp_path / 'robot.yaml').write_text(
        f'/**:\n  ros__parameters:\n    model: {model_dir}\n    cameras: [hand]\n    max_age_s: 3\n'
    )
    code, output = launched(tmp_path, monkeypatch, 'Ready', params_file=str(tmp_path / 'robot.yaml'))
    assert code == 0 and 'looks at /hand/image_raw' in output


@needs_launch
def test_the_launch_fails_when_the_node_does(tmp_path, monkeypatch):
    """Whatever else was launched ends too."""
    code, output = launched(
        tmp_path, monkeypatch, 'never said', beside=['sleep', '1000'], model=str(tmp_path / 'no_model')
    )
    assert code == 1 and 'no_model' in output


@pytest.mark.parametrize('is_shutdown', [False, True])
@pytest.mark.parametrize('returncode', [0, 1, -9])
def test_a_failed_node_is_told_unless_everything_ends_anyway(launch_file, returncode, is_shutdown):
    ended = mock.Mock(returncode=returncode), mock.Mock(is_shutdown=is_shutdown)
    if returncode and not is_shutdown:
        with pytest.raises(RuntimeError, match=str(returncode)):
            launch_file.end_with_node(*ended)
    else:
        actions = launch_file.end_with_node(*ended)
        assert actions is None if is_shutdown else actions == [launch_file.Shutdown.return_value]


def test_the_player_waits_for_the_line_that_no_log_level_hides(launch_file, capfd):
    pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
    from vlm_reuse_node.ros.process import say_ready

    assert launch_file.play_when_ready('node', 'kitchen')
    on_output = launch_file.OnProcessIO.call_args.kwargs['on_stderr']
    say_ready()
    said = capfd.readouterr().err.encode()
    assert on_output(mock.Mock(text=b'[INFO] Ready: tiny looks at /camera\n')) is None
    assert on_output(mock.Mock(text=said[:9])) is None
    assert on_output(mock.Mock(text=said[9:])) == [launch_file.ExecuteProcess.return_value]
    assert on_output(mock.Mock(text=said)) is None


@needs_launch
def test_a_bag_is_played_with_its_clock_once_the_node_is_ready(tmp_path, monkeypatch, model_dir):
    """The program `ros2` is stood in for: it only says how it was called."""
    (tmp_path / 'ros2').write_text('#!/bin/sh\necho "called: $*"\n')
    (tmp_path / 'ros2').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    _, output = launched(tmp_path, monkeypatch, 'called', model=str(model_dir), bag='kitchen', log_level='warn')
    assert output.index('vlm_reuse_node: ready') < output.index('called: bag play kitchen --clock')
