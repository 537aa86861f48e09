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

"""The package: what is declared, installed and promised agrees with what the code says."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ament_index_python.packages import get_package_prefix, get_package_share_directory, get_packages_with_prefixes
from vlm_reuse_interfaces.action import AskScene as AskSceneAction
from vlm_reuse_interfaces.msg import Answer as AnswerMessage
from vlm_reuse_interfaces.msg import RefreshBudget, WatchAnswer
from vlm_reuse_interfaces.srv import AskScene

import vlm_reuse_node
from vlm_reuse_node.scene.refresh import Level, Refresh, Totals
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question

ROOT = Path(__file__).parents[1]
PACKAGES = ('vlm_reuse_node', 'vlm_reuse_interfaces')

# Modules whose rosdep key or wheel has another name.
PROVIDED_BY = {
    'cv2': 'python3-opencv',
    'numpy': 'python3-numpy',
    'yaml': 'python3-yaml',
    'PIL': 'python3-pil',
    'jinja2': 'python3-jinja2',
    'mlx_vlm': 'mlx-vlm',
    'mcap_protobuf': 'mcap-protobuf-support',
    'jsonschema': 'python3-jsonschema',
    'matplotlib': 'python3-matplotlib',
    'scipy': 'python3-scipy',
    'tqdm': 'python3-tqdm',
    'psutil': 'python3-psutil',
}


def manifest(package):
    """Parse the package.xml of one of the two packages."""
    folder = ROOT if package == 'vlm_reuse_node' else ROOT / package
    return ElementTree.parse(folder / 'package.xml').getroot()


def declared_names():
    """Name what package.xml needs at run time, and the wheels that have no rosdep key."""
    tags = ('depend', 'exec_depend')
    names = {element.text for tag in tags for element in manifest('vlm_reuse_node').iter(tag)}
    wheels = (re.match(r'[A-Za-z0-9_.-]+', line) for line in (ROOT / 'requirements.in').read_text().splitlines())
    return names | {wheel.group() for wheel in wheels if wheel}


def imported_modules(path):
    """Name the top-level modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split('.')[0]


def constants(message):
    """Collect the constants of a message's type by name; a field's default is none."""
    values = {name: getattr(type(message), name, None) for name in dir(type(message)) if not name.endswith('__DEFAULT')}
    return {name: value for name, value in values.items() if name.isupper() and isinstance(value, int)}


@pytest.mark.parametrize('package', PACKAGES)
def test_versions_agree(package):
    assert manifest(package).findtext('version') == vlm_reuse_node.__version__


def test_setup_py_agrees_with_package_xml():
    command = [sys.executable, 'setup.py', '--name', '--version', '--license']
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert printed == [manifest('vlm_reuse_node').findtext(tag) for tag in ('name', 'version', 'license')]


def test_every_import_is_declared():
    sources = [*(ROOT / 'vlm_reuse_node').rglob('*.py'), *(ROOT / 'launch').glob('*.py')]
    modules = {module for path in sources for module in imported_modules(path)}
    third_party = modules - set(sys.stdlib_module_names) - {'vlm_reuse_node'}
    assert {PROVIDED_BY.get(module, module) for module in third_party} <= declared_names()


def test_every_code_folder_is_installed():
    # find_packages sees only folders with __init__.py; without one a folder works here and is missing on a robot.
    folders = {path.parent for path in (ROOT / 'vlm_reuse_node').rglob('*.py')}
    assert [folder for folder in folders if not (folder / '__init__.py').exists()] == []


@pytest.mark.parametrize('package', PACKAGES)
def test_package_is_in_the_ament_index(package):
    assert package in get_packages_with_prefixes()
    assert Path(get_package_share_directory(package), 'package.xml').exists()


@pytest.mark.parametrize('folder, pattern', [('launch', '*.launch.py'), ('config', '*'), ('examples', '*')])
def test_launch_config_and_example_files_are_installed(folder, pattern):
    installed = Path(get_package_share_directory('vlm_reuse_node'), folder)
    assert {path.name for path in installed.glob(pattern)} == {path.name for path in (ROOT / folder).glob(pattern)}


@pytest.mark.parametrize('script', ['node', 'demo', 'make_bag', 'replay', 'calibrate', 'check', 'ask'])
def test_console_script_is_installed(script):
    path = Path(get_package_prefix('vlm_reuse_node'), 'lib', 'vlm_reuse_node', script)
    assert os.access(path, os.X_OK)


def test_the_replay_is_on_the_path():
    path = Path(get_package_prefix('vlm_reuse_node'), 'bin', 'vlm-reuse-replay')
    assert os.access(path, os.X_OK) and str(path.parent) in os.environ['PATH'].split(os.pathsep)


def test_wheel_lock_is_complete_and_names_no_place():
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith('#')]
    assert all(re.fullmatch(r'[a-z0-9_.-]+==[a-z0-9_.]+', pin) for pin in pins)


def test_status_constants_follow_the_order_of_status():
    expected = {status.name: number for number, status in enumerate(Status)}
    found = {name: number for name, number in constants(AnswerMessage()).items() if not name.startswith('LEVEL_')}
    assert found == expected


@pytest.mark.parametrize('message', [AnswerMessage, RefreshBudget])
def test_level_constants_follow_the_order_of_level(message):
    """The cheapest first, so that a planner can compare them; 0 is none."""
    expected = {'LEVEL_NONE': 0} | {f'LEVEL_{level.name}': number for number, level in enumerate(Level, start=1)}
    found = {name: number for name, number in constants(message()).items() if name.startswith('LEVEL_')}
    assert found == expected


@pytest.mark.parametrize('message', [AnswerMessage, RefreshBudget, WatchAnswer])
def test_the_header_is_the_first_field(message):
    """Where message filters and tf look for it."""
    assert next(iter(message.get_fields_and_field_types().items())) == ('header', 'std_msgs/Header')


# Seconds of the engine that are a Duration in a message.
DURATIONS = {
    'image_age_s': 'image_age',
    'oldest_cell_age_s': 'oldest_cell_age',
    'max_age_s': 'max_age',
    'lag_s': 'lag',
    'max_lag_s': 'max_lag',
    'timeout_s': 'timeout',
}


@pytest.mark.parametrize('message', [AnswerMessage, RefreshBudget, AskScene.Request, AskSceneAction.Goal])
def test_measured_costs_are_milliseconds_and_other_durations_are_durations(message):
    for name, kind in message.get_fields_and_field_types().items():
        assert not name.endswith('_s')
        assert kind in ('float', 'double') or not name.endswith(('_ms', '_ms_total'))
        assert (kind == 'builtin_interfaces/Duration') == (name in DURATIONS.values())


def test_answer_message_has_every_field_of_the_record():
    # stamp_ns and frame_id are in header.
    elsewhere = {'stamp_ns', 'frame_id', 'cached_stamp_ns'}
    expected = {DURATIONS.get(item.name, item.name) for item in fields(Answer)} - elsewhere
    expected |= {'header', 'cached_stamp', 'total_ms'}
    assert set(AnswerMessage.get_fields_and_field_types()) == expected


def test_answer_message_starts_with_no_choice():
    assert AnswerMessage().choice_index == Answer(status=Status.OK).choice_index == -1


def test_refresh_budget_has_every_count_and_time_of_the_record():
    names = {DURATIONS.get(item.name, item.name) for item in fields(Refresh)}
    names -= {'stamp_ns', 'frame_id', 'refreshed', 'encoded', 'changed', 'stale', 'totals'}
    counts = {f'visual_tokens_{part}' for part in ('total', 'refreshed', 'encoded', 'changed', 'stale')}
    totals = {'work_ms_total', 'cold_ms_total', 'credit_ms'}
    assert {item.name for item in fields(Totals)} == {name.removesuffix('_total') for name in totals}
    assert names | counts | totals | {'header'} <= set(RefreshBudget.get_fields_and_field_types())


@pytest.mark.parametrize('request_type', [AskScene.Request, AskSceneAction.Goal])
def test_request_has_every_field_of_question(request_type):
    renamed = {'text': 'question'} | DURATIONS
    expected = {renamed.get(item.name, item.name) for item in fields(Question)}
    assert expected | {'camera'} == set(request_type.get_fields_and_field_types())


def test_service_and_action_take_the_same_request():
    service, action = (request.get_fields_and_field_types() for request in (AskScene.Request, AskSceneAction.Goal))
    assert service == action
