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

"""The tree shows the edges: which folder may import which, and where MLX and ROS may appear."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LONG

PACKAGE = Path(__file__).parents[1] / 'vlm_reuse_node'
NAME = PACKAGE.name
FOLDERS = ('scene', 'model', 'session', 'serving', 'ros', 'replay', 'calibrate', 'check', 'ask', 'demo')
# The root holds what everything shares: config.py and errors.py.
MAY_IMPORT = {
    '': {''},
    'scene': {'', 'scene'},
    'model': {'', 'model'},
    'session': {'', 'session', 'model', 'scene'},
    'serving': {'', 'serving', 'session', 'model', 'scene'},
    'ros': {'', 'ros', 'serving', 'session', 'scene'},
    'replay': {'', 'replay', 'session', 'model', 'scene'},
    'calibrate': {'', 'calibrate', 'replay', 'session', 'model', 'scene'},
    'check': {'', 'check', 'session', 'model', 'scene', 'replay', 'demo', 'ros'},
    'ask': {'', 'ask', 'session', 'model', 'scene', 'replay', 'ros'},
    'demo': {'', *FOLDERS},
}
ROS = {
    'rclpy', 'cv_bridge', 'sensor_msgs', 'std_msgs', 'std_srvs', 'diagnostic_msgs', 'builtin_interfaces',
    'rcl_interfaces', 'rosgraph_msgs', 'lifecycle_msgs', 'ament_index_python', 'vlm_reuse_interfaces',
    'ffmpeg_image_transport_msgs',
}  # fmt: skip
CHECK_MLX = ('check/bits.py', 'check/cold.py', 'check/machine.py', 'check/peer.py')
LIVE_DEMO = ('demo/dds.py', 'demo/live.py', 'demo/planner.py', 'demo/play.py', 'demo/recorder.py')
# Where a library may be imported: folders, or files in other folders.
ONLY_IN = {
    'mlx': {'model', 'session/live_slot.py', 'replay/runners', *CHECK_MLX},
    'av': {'scene/video_decoder.py'},
    'mlx_vlm': {'model', 'replay/runners', 'check/bits.py', 'check/peer.py'},
    **dict.fromkeys(ROS, {'ros', 'ask/live.py', 'check/live.py', *LIVE_DEMO}),
}
LONGEST_FILE = 300
LONGEST = {'session/scene_session.py': 250, 'serving/worker.py': 250, 'serving/model_loop.py': 250}


def sources():
    """Every Python file of the package, by its path in it."""
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob('*.py'))


def imports(path):
    """Every module that a file imports, wherever in it, as it is written."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} imports from the folder it is in; name the whole module'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def folder_of(module):
    """The folder that a module of the package belongs to, '' for the root, None for another package's."""
    if module.split('.')[0] != NAME:
        return None
    part = (*module.split('.'), '', '')[1]
    return part if (PACKAGE / part).is_dir() else ''


def test_the_long_test_files_that_start_first_are_there():
    assert [name for name in sorted(LONG) if not Path(__file__).with_name(name).exists()] == []


@pytest.mark.parametrize('folder', MAY_IMPORT)
def test_imports_go_one_way(folder):
    for path in sources():
        if (path.parts[0] if len(path.parts) > 1 else '') == folder:
            found = {folder_of(module) for module in imports(path)} - {None}
            assert found <= MAY_IMPORT[folder], f'{path} imports from {sorted(found - MAY_IMPORT[folder])}'


@pytest.mark.parametrize('library', sorted(ONLY_IN))
def test_a_library_appears_at_its_edge_only(library):
    users = {path for path in sources() if any(module.split('.')[0] == library for module in imports(path))}
    outside = {str(path) for path in users if not any(path.is_relative_to(allowed) for allowed in ONLY_IN[library])}
    assert not outside


def test_every_folder_is_known_and_says_what_it_is_for():
    folders = {path.parent for path in sources()} - {Path('.')}
    assert {folder.parts[0] for folder in folders} == set(FOLDERS)
    for folder in folders:
        text = ast.get_docstring(ast.parse((PACKAGE / folder / '__init__.py').read_text(encoding='utf-8')))
        assert text, f'{folder}/__init__.py says nothing'


def code_lines(path):
    """Lines of a file behind its licence header."""
    lines = (PACKAGE / path).read_text(encoding='utf-8').splitlines()
    return len(lines) - next((number for number, line in enumerate(lines) if not line.startswith('#')), 0)


def test_no_file_is_too_long_to_read_in_one_sitting():
    long = {
        str(path): lines for path in sources() if (lines := code_lines(path)) > LONGEST.get(str(path), LONGEST_FILE)
    }
    assert not long


@pytest.mark.parametrize(
    'module, blocked',
    [
        ('scene.change', {'mlx', 'rclpy'}),
        ('scene.refresh_plan', {'mlx', 'rclpy'}),
        ('scene.overlay', {'mlx', 'rclpy'}),
        ('session.answer', {'mlx', 'rclpy'}),
        ('serving.watches', {'mlx', 'rclpy'}),
        ('serving.inbox', {'mlx', 'rclpy'}),
        ('serving.worker', {'rclpy'}),
        ('session.scene_session', {'rclpy'}),
        ('check.cli', {'mlx', 'rclpy'}),
        ('check.self_test', {'rclpy'}),
        ('ros.node', {'mlx'}),
    ],
)
def test_what_needs_no_model_or_no_ros_runs_without(module, blocked):
    """A static edge says what a file names; this one says what loading it really brings."""
    code = f'import sys; sys.modules |= dict.fromkeys({sorted(blocked)!r}); import {NAME}.{module}'
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
