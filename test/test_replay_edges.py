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

"""What the replay needs: no ROS anywhere, and a model only where arms are at work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from replay_bags import COMPRESSED, IMAGE, frames, write_bag

from vlm_reuse_node.replay.arms import ARMS
from vlm_reuse_node.replay.runners.makers import _MAKERS

REPLAY = Path(__file__).parents[1] / 'vlm_reuse_node' / 'replay'
ROS = ('rclpy', 'sensor_msgs', 'std_msgs', 'builtin_interfaces', 'cv_bridge', 'vlm_reuse_interfaces')
MODEL = ('mlx', 'mlx_vlm')
NEEDS_MODEL = {'camera_run', 'evaluate', 'jobs', 'model_thread', 'ray_jobs'}
WITHOUT_MODEL = sorted(path.stem for path in REPLAY.glob('*.py') if path.stem not in {'__init__', *NEEDS_MODEL})


def run_without(blocked, program, *arguments):
    """Run a Python program in a process of its own in which some modules cannot be imported."""
    block = f'import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n'
    return subprocess.run(
        [sys.executable, '-c', block + program, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def test_only_what_runs_arms_needs_a_model():
    done = run_without(MODEL, '\n'.join(f'import vlm_reuse_node.replay.{name}' for name in WITHOUT_MODEL))
    assert done.returncode == 0, done.stderr


def test_no_file_of_it_imports_ros():
    sources = [path.read_text() for path in REPLAY.rglob('*.py')]
    imported = {name for source in sources for name in re.findall(r'^\s*(?:from|import) (\w+)', source, re.M)}
    assert 'rosbags' in imported and not imported & set(ROS)
    assert not any('vlm_reuse_node.ros' in source for source in sources)


def test_its_help_needs_neither_a_model_nor_ros():
    done = run_without(MODEL + ROS, 'from vlm_reuse_node.replay.cli import main; main(["--help"])')
    assert done.returncode == 0 and 'usage: vlm-reuse-replay' in done.stdout, done.stderr


@pytest.mark.parametrize('kind', [IMAGE, COMPRESSED])
def test_a_bag_is_replayed_where_there_is_no_ros(kind, model_dir, tmp_path):
    bag = write_bag(tmp_path / 'bag', {'/camera/image_raw': frames(3)}, kind=kind)
    questions = tmp_path / 'questions.yaml'
    questions.write_text(yaml.safe_dump({'questions': [{'question': 'what is this', 'at_s': 0.6, 'max_tokens': 2}]}))
    arguments = [bag, '--questions', questions, '--model', model_dir, '--arms', 'cold', '--out', tmp_path / 'out']
    program = 'from vlm_reuse_node.replay.cli import main; sys.exit(main(sys.argv[1:]))'
    done = run_without(ROS, program, *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out' / 'results.json').exists()


def test_every_arm_has_a_runner():
    assert set(_MAKERS) == set(ARMS)
