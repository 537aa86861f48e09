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

"""The SROS 2 policy under enforcement: who is granted asks and is answered, who is not is refused.

Runs where sros2 is installed and the middleware was built with DDS security, as on a robot host with ROS 2. Everybody
has a process of their own: a middleware may let a process have one enclave only.
"""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
keystores = pytest.importorskip(
    'sros2.keystore', reason='sros2 is missing: it comes with a ROS 2 installation, not with the wheels'
)
import rclpy
from lifecycle_msgs.srv import ChangeState
from patience import PATIENCE_S, wait_for
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from ros_harness import MINUTE, NodeProcess, picture_message
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from vlm_reuse_interfaces.action import AskScene as AskSceneAction
from vlm_reuse_interfaces.msg import Answer
from vlm_reuse_interfaces.srv import AddWatch, AskScene

POLICY = Path(__file__).parents[1] / 'config' / 'sros2_policy.xml'
CAMERA_POLICY = """<policy version="0.2.0"><enclaves><enclave path="/camera"><profiles><profile ns="/" node="camera">
  <topics publish="ALLOW"><topic>camera/image_raw</topic><topic>/parameter_events</topic></topics>
  <services reply="ALLOW"><service>~/get_type_description</service></services>
</profile></profiles></enclave></enclaves></policy>"""
BARE = {'start_parameter_services': False, 'enable_rosout': False}
QUESTION = {'question': 'what is it ?', 'max_age': MINUTE}
ASKING = {
    'service': lambda node: (node.create_client(AskScene, 'vlm_reuse_node/ask'), AskScene.Request(**QUESTION)),
    'action': lambda node: (
        ActionClient(node, AskSceneAction, 'vlm_reuse_node/ask_scene'),
        AskSceneAction.Goal(**QUESTION),
    ),
    'watch': lambda node: (
        node.create_client(AddWatch, 'vlm_reuse_node/add_watch'),
        AddWatch.Request(question='is it red ?', choices=['yes', 'no']),
    ),
}
NOT_GRANTED = {
    'send pictures': lambda node: node.create_publisher(Image, 'camera/image_raw', 1),
    'see pictures': lambda node: node.create_subscription(Image, 'camera/image_raw', print, 1),
    'see overlays': lambda node: node.create_subscription(Image, 'vlm_reuse_node/overlay/camera', print, 1),
    'measure': lambda node: node.create_client(AskScene, 'vlm_reuse_node/ask_cold'),
    'reset': lambda node: node.create_client(Trigger, 'vlm_reuse_node/reset'),
    'change the state': lambda node: node.create_client(ChangeState, 'vlm_reuse_node/change_state'),
    'set parameters': lambda node: node.create_client(SetParameters, 'vlm_reuse_node/set_parameters'),
}


def alone(function, *arguments):
    """Call a function of this file in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(in_domain, os.environ['ROS_DOMAIN_ID'], function, *arguments).result(3 * PATIENCE_S)


def in_domain(domain, function, *arguments):
    """Call a function in the domain that the keys are for; by itself each process of tests has its own."""
    os.environ['ROS_DOMAIN_ID'] = domain
    return function(*arguments)


@contextmanager
def member(name, **options):
    """A node in the enclave of its name."""
    context = rclpy.Context()
    rclpy.init(args=['--ros-args', '--enclave', f'/{name}'], context=context)
    try:
        yield rclpy.create_node(name, context=context, **options)
    finally:
        context.try_shutdown()


def send_a_picture():
    with member('camera', **BARE) as camera:
        pictures = camera.create_publisher(Image, 'camera/image_raw', 1)
        wait_for(pictures.get_subscription_count, 'a subscription of the camera')
        pictures.publish(picture_message(stamp_ns=camera.get_clock().now().nanoseconds))
        assert pictures.wait_for_all_acked(Duration(seconds=PATIENCE_S)), 'the picture did not reach the node'


def ask(way):
    """Ask by service or action, or leave a standing question; return the status, or whether it was taken."""
    with member('planner') as planner:
        client, request = ASKING[way](planner)
        ready = client.wait_for_server if way == 'action' else client.wait_for_service
        assert ready(PATIENCE_S), 'the planner does not find the node'
        if way == 'action':
            goal = finished(planner, client.send_goal_async(request))
            return finished(planner, goal.get_result_async()).result.answer.status
        response = finished(planner, client.call_async(request))
        return response.success if way == 'watch' else response.answer.status


def finished(node, future):
    """Spin the node until the future is done; return its result."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    executor.spin_until_future_complete(future, PATIENCE_S)
    executor.remove_node(node)
    return future.result()


def start_trouble():
    """What the middleware says to a planner that starts; '' when it may."""
    try:
        with member('planner'):
            return ''
    except RuntimeError as err:
        return str(err)


def refusal(attempt):
    """What the middleware says to a planner that started and attempts something; '' when it may."""
    with member('planner') as planner:
        try:
            NOT_GRANTED[attempt](planner)
        except RuntimeError as err:
            return str(err)
    return ''


def finds_the_node(name, within_s):
    """Whether a participant of this name finds the service in that time."""
    with member(name) as node:
        return node.create_client(AskScene, 'vlm_reuse_node/ask').wait_for_service(within_s)


@pytest.fixture(scope='module', autouse=True)
def keystore(tmp_path_factory):
    """Keys and permissions made from the policy; every process started from now on is secured."""
    folder = tmp_path_factory.mktemp('security')
    (folder / 'camera.xml').write_text(CAMERA_POLICY)
    keystores.create_keystore(folder / 'keys')
    for enclave, policy in {'/vlm_reuse_node': POLICY, '/planner': POLICY, '/camera': folder / 'camera.xml'}.items():
        keystores.create_enclave(folder / 'keys', enclave)
        keystores.create_permission(folder / 'keys', enclave, policy)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {'KEYSTORE': str(folder / 'keys'), 'ENABLE': 'true', 'STRATEGY': 'Enforce'}.items():
            environment.setenv(f'ROS_SECURITY_{name}', value)
        if 'security' in (trouble := alone(start_trouble)):
            pytest.skip(f'DDS security is missing in {rclpy.get_rmw_implementation_identifier()}: {trouble}')
        yield


@pytest.fixture
def scene_node(model_dir):
    """The program in its own enclave; it is ended whatever happens."""
    running = NodeProcess('-p', f'model:={model_dir}', '--enclave', '/vlm_reuse_node')
    try:
        running.wait_for_line('Ready')
        yield
    finally:
        running.end(signal.SIGINT)


def test_a_planner_asks_in_every_way_about_the_picture_of_a_camera(scene_node):
    alone(send_a_picture)
    assert {way: alone(ask, way) for way in ASKING} == {'service': Answer.OK, 'action': Answer.OK, 'watch': True}


def test_a_planner_exists_by_what_it_is_granted():
    assert alone(start_trouble) == ''


@pytest.mark.parametrize('attempt', NOT_GRANTED)
def test_a_planner_is_refused_what_it_is_not_granted(attempt):
    assert 'ailed to create' in alone(refusal, attempt)


def test_the_node_does_not_start_with_the_keys_of_another(model_dir):
    code, said = NodeProcess('-p', f'model:={model_dir}', '--enclave', '/planner').end()
    assert code != 0 and 'ailed to create' in said


def test_who_has_no_keys_does_not_find_the_node(scene_node, monkeypatch):
    assert alone(finds_the_node, 'planner', PATIENCE_S)
    monkeypatch.setenv('ROS_SECURITY_ENABLE', 'false')
    assert not alone(finds_the_node, 'stranger', 5.0)
