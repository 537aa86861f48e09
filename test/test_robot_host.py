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

"""requirements-robot.txt is all that a host with ROS needs beside it, and agrees with what is tested."""

import re
from importlib.metadata import distribution
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# Ubuntu's SciPy and cv_bridge are compiled for NumPy 1, which pandas 3 refuses; pandas 2 needs pytz.
OTHER_VERSION = {'pandas', 'pytz'}
# Keys of package.xml whose wheels have other names.
WHEEL_NAMES = {'yaml': 'pyyaml', 'opencv': 'opencv-python', 'pil': 'pillow'}
# What the node and its programs import or load by themselves; all others come along with them.
ROOTS = {
    'mlx', 'mlx-cpu', 'mlx-vlm', 'huggingface-hub', 'llguidance', 'tokenizers',
    'rosbags', 'mcap', 'mcap-protobuf-support', 'zstandard',
}  # fmt: skip
HOST = {'extra': '', 'python_version': '3.12', 'python_full_version': '3.12.3', 'sys_platform': 'linux'}


def canonical(name):
    return re.sub('[-_.]+', '-', name).lower()


def pins(lock):
    """Map every wheel of a lock file to its version."""
    lines = (line for line in (ROOT / lock).read_text().splitlines() if line and not line.startswith('#'))
    asked = map(Requirement, lines)
    return {canonical(each.name): str(each.specifier) for each in asked}


def from_rosdep():
    """Name the wheels in whose place package.xml has Debian packages."""
    keys = [element.text for element in ElementTree.parse(ROOT / 'package.xml').iter('exec_depend')]
    names = [key.removeprefix('python3-') for key in keys if key.startswith('python3-')]
    return {WHEEL_NAMES.get(name, name) for name in names}


def needed(names):
    """Add to the names all that they require, as far as it does not come from rosdep."""
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            for line in distribution(name).requires or ():
                asked = Requirement(line)
                if asked.marker is None or asked.marker.evaluate(HOST):
                    todo += {canonical(asked.name)} - {'numpy', 'opencv-python', 'scipy', 'matplotlib', 'psutil'}
    return found


def test_nothing_is_missing_and_nothing_is_superfluous():
    """pip is told not to look, because it would bring a NumPy for which ROS is not compiled."""
    robot = set(pins('requirements-robot.txt'))
    assert robot - {'pytz'} == needed(ROOTS) - {'pyyaml', 'jsonschema', 'opencv-python'}


def test_the_versions_are_those_that_are_tested():
    robot, tested = pins('requirements-robot.txt'), pins('requirements.txt')
    assert {name: pin for name, pin in robot.items() if name not in OTHER_VERSION and tested[name] != pin} == {}


def test_what_ros_is_compiled_for_stays_that_of_the_host():
    robot = set(pins('requirements-robot.txt'))
    left = {'numpy', 'scipy', 'matplotlib', 'opencv-python', 'psutil', 'pyyaml', 'jsonschema'}
    assert not robot & (left | {'opencv-python-headless'}) and left <= from_rosdep()


def test_both_distributions_differ_in_the_wheels_of_ros_alone():
    kilted, jazzy = pins('requirements.txt'), pins('requirements-jazzy.txt')
    assert {name for name in kilted.keys() | jazzy.keys() if kilted.get(name) != jazzy.get(name)} <= {
        name for name in kilted.keys() | jazzy.keys() if name.startswith('ros-')
    }
    assert kilted['ros-rclpy'].startswith('==9.') and jazzy['ros-rclpy'].startswith('==7.')
