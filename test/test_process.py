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

"""The engine's log through ROS."""

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='rclpy is missing: install ROS 2 (make setup)')
pytest.importorskip('vlm_reuse_interfaces', reason='vlm_reuse_interfaces is not built: make setup')
from vlm_reuse_node.ros import process
from vlm_reuse_node.ros.process import EXIT_FAULT, EngineLog


@pytest.fixture
def said():
    """(level, text) of all that reaches ROS from a logger of the engine, at ROS's level INFO."""
    yield from said_at(20)


@pytest.fixture
def said_at_debug():
    yield from said_at(10)


def said_at(lowest):
    said, engine = [], logging.getLogger('vlm_reuse_node')
    before = engine.level

    def writer(level):
        return lambda text: said.append((level, text))

    handler = EngineLog(
        SimpleNamespace(
            get_effective_level=lambda: lowest,
            **{level: writer(level) for level in ('error', 'warning', 'info', 'debug')},
        )
    )
    yield said
    engine.removeHandler(handler)
    engine.setLevel(before)


def test_every_level_from_the_nodes_own_on_is_written(said):
    log = logging.getLogger('vlm_reuse_node.session.scene_session')
    for level in ('error', 'warning', 'info', 'debug'):
        getattr(log, level)(level)
    assert said == [(level, level) for level in ('error', 'warning', 'info')]


def test_one_sentence_is_written_once_in_five_seconds(said):
    log = logging.getLogger('vlm_reuse_node.session.scene_session')
    for _ in range(3):
        log.warning("Camera '%s' is slow", 'front')
        log.warning("Camera '%s' is slow", 'rear')
    assert [text for _, text in said] == ["Camera 'front' is slow", "Camera 'rear' is slow"]


def test_at_debug_every_line_is_written(said_at_debug):
    log = logging.getLogger('vlm_reuse_node.serving.steps')
    for _ in range(3):
        log.debug('a picture')
    assert said_at_debug == [('debug', 'a picture')] * 3


def test_an_internal_error_leaves_no_open_node(monkeypatch):
    closed, events = [], []
    node = SimpleNamespace(
        config=SimpleNamespace(autostart=True),
        start=lambda: 1 / 0,
        dismiss=lambda: None,
        close=lambda: closed.append(True),
        get_logger=lambda: SimpleNamespace(get_effective_level=lambda: 20),
    )
    executor = SimpleNamespace(add_node=lambda node: None)
    monkeypatch.setattr(process, 'SceneNode', lambda **_: node)
    monkeypatch.setattr(process, 'SingleThreadedExecutor', lambda: executor)
    monkeypatch.setattr(process, 'EngineLog', lambda logger: None)
    monkeypatch.setattr(process._Running, '_answer_open_questions', lambda self: node.dismiss())
    running = process._Running(SimpleNamespace(put=events.append))
    running.start()  # a thread of its own: it frees what MLX has for its thread
    running.join()
    assert closed and running.exit_code == EXIT_FAULT and events == [process.END]
