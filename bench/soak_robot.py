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

"""The soak's robot: cameras that never stop, a planner that never stops asking, and a monitor of the node."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np
import psutil
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.client import Client
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from soak_figures import Sample
from vlm_reuse_interfaces.msg import RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.demo import story
from vlm_reuse_node.demo.questions import single_question
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop, random_things, sense
from vlm_reuse_node.ros.conversion import image_message
from vlm_reuse_node.ros.messages import header_of, level_of
from vlm_reuse_node.session.answer import Status

NODE = 'vlm_reuse_node'
LOOP_S = 40.0  # length of a camera's story, played again and again
VIEWS = 5  # pictures of each scene
MAX_TOKENS = 16
COUNTS = ('received', 'lost', 'dropped', 'refused')
CHOICE_KINDS = ('colour', 'shape', 'exists', 'where')
TEXT_KINDS = ('list', 'colour', 'count', 'nearest', 'where')
STATUSES = tuple(str(status) for status in Status)


class SceneLoop:
    """A tabletop on which something happens every few seconds, drawn once and played again and again."""

    def __init__(self, seed: int) -> None:
        """Draw each steady scene of a story a few times, with another noise each time, as a real camera has."""
        rng = np.random.default_rng(seed)
        table = Tabletop(rng)
        spans = [span for span in story.tell(rng, LOOP_S) if span.is_steady]
        self._ends_s = [span.to_s for span in spans]
        self._views = [
            [
                image_message(sense(table.picture(span.things), Sensor(), rng), header_of(0, 'lens'))
                for _ in range(VIEWS)
            ]
            for span in spans
        ]

    def picture(self, number: int, time_s: float) -> Image:
        """Return the picture of that number, taken at that time. It is used again, and its stamp is to be set."""
        time_s %= LOOP_S
        scene = next(index for index, end_s in enumerate(self._ends_s) if time_s < end_s)
        return self._views[scene][number % VIEWS]


class SoakCameras:
    """Reliable cameras on a thread of their own, which publish in turn.

    sent: pictures by camera.
    """

    def __init__(self, node: Node, names: list[str], rate_hz: float) -> None:
        """Draw the scenes. rate_hz: pictures a second of each camera."""
        self.sent = Counter(dict.fromkeys(names, 0))
        self._names = names
        self._tick_s = 1.0 / rate_hz / len(names)
        self._clock = node.get_clock()
        self._scenes = {name: SceneLoop(seed) for seed, name in enumerate(names)}
        self._publishers = {
            name: node.create_publisher(Image, f'{name}/image_raw', QoSProfile(depth=1)) for name in names
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name='cameras')

    def __enter__(self) -> 'SoakCameras':
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def are_connected(self) -> bool:
        """Whether the node has subscribed to each."""
        return all(publisher.get_subscription_count() for publisher in self._publishers.values())

    def _run(self) -> None:
        start_s = time.monotonic()
        tick = 0
        while not self._ended.wait(max(0.0, start_s + tick * self._tick_s - time.monotonic())):
            name = self._names[tick % len(self._names)]
            message = self._scenes[name].picture(self.sent[name], tick * self._tick_s)
            message.header = header_of(self._clock.now().nanoseconds, f'{name}_lens')
            self._publishers[name].publish(message)
            self.sent[name] += 1
            # A camera that was held up skips pictures; it does not send them all at once.
            tick = max(tick + 1, int((time.monotonic() - start_s) / self._tick_s))


class SoakPlanner:
    """Asks the cameras in turn.

    asked: questions so far. statuses: of the answers, by name. answer_ms: how long each took, DDS included.
    """

    def __init__(self, node: Node, cameras: list[str], questions_hz: float) -> None:
        """Create the client."""
        self.asked = 0
        self.statuses: Counter[str] = Counter()
        self.answer_ms: list[float] = []
        self._client: Client = node.create_client(AskScene, f'{NODE}/ask', qos_profile=QoSProfile(depth=1000))
        self._cameras = cameras
        self._period_s = 1.0 / questions_hz
        self._questions = any_questions()
        self._rng = np.random.default_rng(0)
        self._due_s = time.monotonic()

    @property
    def is_connected(self) -> bool:
        """Whether the node serves."""
        return self._client.service_is_ready()

    @property
    def open(self) -> int:
        """Questions without an answer yet."""
        return self.asked - self.statuses.total()

    def ask_when_due(self) -> None:
        """Ask one question if it is time; call it often."""
        if time.monotonic() < self._due_s:
            return
        # Irregular intervals: in step with the node's diagnostics, these would see every question wait, or none. After
        # a delay the planner makes up for at most a second.
        self._due_s = max(self._due_s, time.monotonic() - 1.0) + self._period_s * self._rng.uniform(0.5, 1.5)
        self._ask(self._cameras[self.asked % len(self._cameras)], *next(self._questions))

    def _ask(self, camera: str, text: str, choices: tuple[str, ...]) -> None:
        start_s = time.perf_counter()

        def note(done: Any) -> None:
            self.answer_ms.append(1e3 * (time.perf_counter() - start_s))
            self.statuses[STATUSES[done.result().answer.status]] += 1

        self.asked += 1
        request = AskScene.Request(camera=camera, question=text, choices=choices, max_tokens=MAX_TOKENS)
        self._client.call_async(request).add_done_callback(note)


def any_questions() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield questions about tabletops, in turn two for text and two with choices. They need not fit the scene."""
    rng = np.random.default_rng(0)
    for number in count():
        has_choices = bool(number // 2 % 2)
        kinds = CHOICE_KINDS if has_choices else TEXT_KINDS
        question = None
        while question is None:
            things = random_things(rng, 4)
            question = single_question(rng, things, kinds[rng.integers(len(kinds))])
        yield question.text, question.choices if has_choices else ()


class NodeMonitor:
    """Takes a sample of the node with every message of its diagnostics.

    samples: since `begin`. counts: of all cameras together, as in diagnostics. levels: pictures looked at, by level.
    """

    def __init__(self, node: Node, pid: int, on_sample: Callable[[Sample], None]) -> None:
        """Subscribe. pid: the node's process."""
        self.samples: list[Sample] = []
        self.counts: Counter[str] = Counter()
        self.levels: Counter[str] = Counter()
        self._process = psutil.Process(pid)
        self._on_sample = on_sample
        self._start_s: float | None = None
        self._memory: list[tuple[float, float]] = []
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, QoSProfile(depth=10))
        node.create_subscription(RefreshBudget, f'{NODE}/refresh_budget', self._on_budget, QoSProfile(depth=100))

    def begin(self) -> None:
        """Take samples from now on."""
        self._start_s = time.monotonic()

    def _on_budget(self, message: RefreshBudget) -> None:
        self.levels[str(level_of(message))] += 1
        self._look()  # not only with the diagnostics, which may keep step with the pictures

    def _look(self) -> None:
        """Note the node's memory, in megabytes: its own, and what it may share."""
        with suppress(psutil.NoSuchProcess):  # reported by who watches the process
            memory = self._process.memory_info()
            shared = getattr(memory, 'shared', 0)  # Linux alone tells
            self._memory.append(((memory.rss - shared) / 1e6, shared / 1e6))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        parts = {
            status.name.removeprefix(f'{NODE}: '): {pair.key: pair.value for pair in status.values}
            for status in message.status
            if status.name.startswith(f'{NODE}: ')
        }
        self._look()
        if self._start_s is None or 'model' not in parts or not self._memory:
            return
        cameras = [values for part, values in parts.items() if part.startswith('camera ')]
        self.counts = Counter({name: sum(int(each[f'pictures {name}']) for each in cameras) for name in COUNTS})
        self.samples.append(
            Sample(
                time.monotonic() - self._start_s,
                self.counts['received'],
                *min(self._memory),
                waiting=int(parts['model']['questions waiting']),
            )
        )
        self._memory.clear()
        self._on_sample(self.samples[-1])
