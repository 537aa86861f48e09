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

"""Fixtures: a tiny random-weight model, loaded by the code that loads real ones, and a robot around the real node."""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings
from tiny_model import write_tiny_model

os.environ.setdefault('HF_HUB_OFFLINE', '1')
# An example on a busy machine may take any time. All else stays as it was set outside, by CI or the mutation runner.
settings.register_profile('busy machine', settings(deadline=None, suppress_health_check=[HealthCheck.too_slow]))
settings.load_profile('busy machine')
# Of the node: no picture is too old and no question too late, however slow the machine; tests of either say how much.
PATIENT = {'max_age_s': 3600.0, 'timeout_s': 3600.0}
# Files that take longest. The last one to be started would keep one worker busy while the others have nothing to do.
LONG = {
    f'test_{name}.py'
    for name in (
        'bench_soak check_faults checkpoints colcon demo_run gemma4 kept_positions kernels node_process precisions '
        'replay_command replay_run seeing warm_equals_cold'
    ).split()
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the long files; the order is random otherwise."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope='module', autouse=True)
def _old_objects_are_not_collected_again():
    """A model's thread collects garbage when it ends. What older tests and imports left would make that slow."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope='session')
def model_dir(tmp_path_factory):
    """A tiny Qwen2.5-VL model directory."""
    return write_tiny_model(tmp_path_factory.mktemp('models') / 'tiny')


@pytest.fixture(scope='session')
def vlm(model_dir):
    """The tiny model, for tests that stay on pytest's thread."""
    from vlm_reuse_node.model.loading import load

    return load(str(model_dir))


@pytest.fixture(scope='module', params=['qwen3_5', 'qwen3_5_moe'])
def recurrent_dir(request, tmp_path_factory):
    """The directory of a tiny model with recurrent layers, dense and as a mixture of experts."""
    from tiny_qwen3 import write_tiny_qwen3

    return write_tiny_qwen3(tmp_path_factory.mktemp('models') / request.param, request.param)


@pytest.fixture(scope='module')
def recurrent(recurrent_dir):
    """That model, of the test module's own, on pytest's thread."""
    from vlm_reuse_node.model.loading import load

    return load(str(recurrent_dir))


@pytest.fixture
def brake(monkeypatch):
    """A hand on the tiny model's forward passes."""
    from brake import Brake

    brake = Brake(monkeypatch)
    yield brake
    brake.go_on.set()


@pytest.fixture
def make_worker(model_dir, brake):
    """Start workers on the tiny model (working.py)."""
    from working import ObservedWorker

    workers = []

    def make(**values):
        workers.append(ObservedWorker(model_dir, **values))
        workers[-1].start()
        return workers[-1]

    yield make
    brake.go_on.set()
    for worker in workers:
        worker.looks_go_on.set()
        worker.stop()


@pytest.fixture(scope='module')
def ros():
    """A ROS context of the test module's own."""
    from ros_harness import graph

    with graph() as context:
        yield context


@pytest.fixture
def namespace(request):
    """A namespace of the test's own."""
    return '/' + ''.join(letter if letter.isalnum() else '_' for letter in request.node.name)


@pytest.fixture
def start(ros, model_dir, namespace):
    """Start the node; gives the robot around it, whose `scene` is the node."""
    from ros_harness import Robot, scene_node

    running = []

    def start(**parameters):
        running.append(scene_node(ros, namespace, **({'model': str(model_dir)} | PATIENT | parameters)))
        scene = running[-1].__enter__()
        robot = Robot(ros, namespace)
        robot.scene = scene
        return robot

    yield start
    for node in running:
        node.__exit__(None, None, None)


@pytest.fixture
def robot(start):
    """A robot with one camera."""
    return start()
