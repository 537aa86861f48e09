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

"""Programs that tests start: they import this checkout's package, wherever they run."""

import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment():
    """The variables of such a program."""
    return os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}


def cmake_arguments():
    """What a ROS installation knows by itself and the wheels must be told: which Python, and where its headers are."""
    headers = Path(sys.prefix, 'include', Path(sysconfig.get_path('include')).name)
    found = [f'-DPython3_INCLUDE_DIR={headers}'] if (headers / 'Python.h').exists() else []
    return [f'-DPython3_EXECUTABLE={sys.executable}', *found]
