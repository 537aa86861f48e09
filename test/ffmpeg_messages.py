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

"""The message package of ffmpeg_image_transport, built where it is not installed: it is on no index of wheels."""

import ctypes
import importlib
import os
import shutil
import subprocess
import sys

import pytest
from programs import cmake_arguments

NAME = 'ffmpeg_image_transport_msgs'
PACKAGE = f"""<package format="3">
  <name>{NAME}</name><version>0.0.0</version><description>For tests.</description>
  <maintainer email="maintainers@vlm-reuse-node.dev">vlm_reuse_node maintainers</maintainer>
  <license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <build_depend>rosidl_default_generators</build_depend>
  <depend>std_msgs</depend>
  <exec_depend>rosidl_default_runtime</exec_depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""
CMAKE = """cmake_minimum_required(VERSION 3.20)
project(ffmpeg_image_transport_msgs)
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
find_package(std_msgs REQUIRED)
rosidl_generate_interfaces(${PROJECT_NAME} "msg/FFMPEGPacket.msg" DEPENDENCIES std_msgs)
ament_package()
"""
MESSAGE = """std_msgs/Header header
int32 width
int32 height
string encoding
uint64 pts
uint8 flags
bool is_bigendian
uint8[] data
"""
# In the order in which one needs the other.
LIBRARIES = (
    'generator_c', 'typesupport_fastrtps_cpp', 'typesupport_fastrtps_c', 'typesupport_introspection_c',
    'typesupport_c', 'generator_py',
)  # fmt: skip


def make_importable(folder):
    """Make the package importable in this process; it is built in a folder (20 s) unless ROS has it."""
    try:
        importlib.import_module(NAME)
    except ImportError:
        _load(_build(folder))


def _build(folder):
    if shutil.which('colcon') is None:
        pytest.skip(f'{NAME} is neither installed nor can it be built: colcon is missing')
    source = folder / NAME
    (source / 'msg').mkdir(parents=True)
    (source / 'package.xml').write_text(PACKAGE)
    (source / 'CMakeLists.txt').write_text(CMAKE)
    (source / 'msg' / 'FFMPEGPacket.msg').write_text(MESSAGE)
    environment = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'LD_PRELOAD')}
    options = ['-DBUILD_TESTING=OFF', *cmake_arguments()]
    command = ['colcon', '--log-level', 'error', 'build', '--base-paths', str(source), '--cmake-args', *options]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return folder / 'install' / NAME


def _load(prefix):
    """What sourcing the workspace does, for a process that runs already."""
    for name, value in (('LD_LIBRARY_PATH', prefix / 'lib'), ('AMENT_PREFIX_PATH', prefix)):
        os.environ[name] = f'{value}:{os.environ.get(name, "")}'.rstrip(':')
    sys.path.append(str(next(prefix.glob('lib/python3*/site-packages'))))
    for name in LIBRARIES:
        ctypes.CDLL(str(prefix / 'lib' / f'lib{NAME}__rosidl_{name}.so'), ctypes.RTLD_GLOBAL)
