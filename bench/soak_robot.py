"""The soak's robot: cameras that never stop, a planner that asks without pause, and what the node says about itself."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import numpy as np
import psutil
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from soak_figures import Sample
from vlm_reuse_interfaces.msg import RefreshBudget
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.demo import questions, story
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop, random_things, sense
from vlm_reuse_node.ros.conversion import image_message
from vlm_reuse_node.ros.messages import header_of, level_of
from vlm_reuse_node.session.answer import Status

NODE = 'vlm_reuse_node'
LOOP_S, VIEWS = 40.0, 5
MAX_TOKENS = 16
COUNTS = 'received', 'lost', 'dropped', 'refused'
CHOICE_KINDS, TEXT_KINDS = ('colour', 'shape', 'exists', 'where'), ('list', 'colour', 'count', 'nearest', 'where')
STATUSES = tuple(str(status) for status in Status)


class Scene:
    """A tabletop on which something happens every few seconds, drawn once and played again and again."""

    def __init__(self, seed: int):
        """Draw each steady scene of a story a few times: the noise is another one, as in a real camera's pictures."""
        rng = np.random.default_rng(seed)
        table, spans = Tabletop(rng), [span for span in story.tell(rng, LOOP_S) if span.is_steady]
        self._ends_s = [span.to_s for span in spans]
        self._views = [
            [
                image_message(sense(table.picture(span.things), Sensor(), rng), header_of(0, 'lens'))
                for _ in range(VIEWS)
            ]
            for span in spans
        ]

    def picture(self, number: int, time_s: float) -> Image:
        """The camera's picture of that number, taken at that time; the message is the scene's own, without a stamp."""
        time_s %= LOOP_S
        scene = next(index for index, end_s in enumerate(self._ends_s) if time_s < end_s)
        return self._views[scene][number % VIEWS]


class Cameras:
    """Reliable cameras on a thread of their own, one picture after the other in turn; sent: by camera."""

    def __init__(self, node: Node, names: list[str], rate_hz: float):
        """Draw the scenes. rate_hz: pictures a second of each camera."""
        self.sent = Counter(dict.fromkeys(names, 0))
        self._names, self._tick_s, self._clock = names, 1.0 / rate_hz / len(names), node.get_clock()
        self._scenes = {name: Scene(seed) for seed, name in enumerate(names)}
        self._publishers = {
            name: node.create_publisher(Image, f'{name}/image_raw', QoSProfile(depth=1)) for name in names
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name='cameras')

    def __enter__(self) -> 'Cameras':
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def are_connected(self) -> bool:
        """Whether the node has subscribed to each."""
        return all(publisher.get_subscription_count() for publisher in self._publishers.values())

    def _run(self) -> None:
        start_s, tick = time.monotonic(), 0
        while not self._ended.wait(max(0.0, start_s + tick * self._tick_s - time.monotonic())):
            name = self._names[tick % len(self._names)]
            message = self._scenes[name].picture(self.sent[name], tick * self._tick_s)
            message.header = header_of(self._clock.now().nanoseconds, f'{name}_lens')
            self._publishers[name].publish(message)
            self.sent[name] += 1
            # A camera that was held up leaves pictures out; it does not send them all at once.
            tick = max(tick + 1, int((time.monotonic() - start_s) / self._tick_s))


class Planner:
    """Asks the cameras in turn.

    asked: questions so far. statuses: of the answers, by name. answer_ms: how long each took, DDS included.
    """

    def __init__(self, node: Node, cameras: list[str], questions_hz: float):
        """Create the client."""
        self.asked, self.statuses, self.answer_ms = 0, Counter(), []
        self._client = node.create_client(AskScene, f'{NODE}/ask', qos_profile=QoSProfile(depth=1000))
        self._cameras, self._period_s = cameras, 1.0 / questions_hz
        self._questions, self._rng = any_questions(), np.random.default_rng(0)
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
        # Irregularly: in step with the node's diagnostics, these would see every question wait, or none. Who was held
        # up makes up for a second at most.
        self._due_s = max(self._due_s, time.monotonic() - 1.0) + self._period_s * self._rng.uniform(0.5, 1.5)
        self._ask(self._cameras[self.asked % len(self._cameras)], *next(self._questions))

    def _ask(self, camera, text, choices) -> None:
        start_s = time.perf_counter()

        def note(done) -> None:
            self.answer_ms.append(1e3 * (time.perf_counter() - start_s))
            self.statuses[STATUSES[done.result().answer.status]] += 1

        self.asked += 1
        request = AskScene.Request(camera=camera, question=text, choices=choices, max_tokens=MAX_TOKENS)
        self._client.call_async(request).add_done_callback(note)


def any_questions() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Questions about tabletops, two for text, two with choices, and so on: whether they fit the scene is no matter."""
    rng = np.random.default_rng(0)
    for number in count():
        has_choices, asked = bool(number // 2 % 2), None
        while asked is None:
            kinds = CHOICE_KINDS if has_choices else TEXT_KINDS
            asked = questions.single_question(rng, random_things(rng, 4), kinds[rng.integers(len(kinds))])
        yield asked.text, asked.choices if has_choices else ()


class Watch:
    """Takes a sample of the node with every message of its diagnostics.

    samples: since `begin`. counts: of all cameras together, as in diagnostics. levels: pictures looked at, by level.
    """

    def __init__(self, node: Node, pid: int, on_sample: Callable[[Sample], None]):
        """Subscribe. pid: the node's process."""
        self.samples: list[Sample] = []
        self.counts: Counter[str] = Counter()
        self.levels: Counter[str] = Counter()
        self._process, self._on_sample = psutil.Process(pid), on_sample
        self._start_s: float | None = None
        self._memory: list[tuple[float, float]] = []
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, QoSProfile(depth=10))
        node.create_subscription(RefreshBudget, f'{NODE}/refresh_budget', self._on_budget, QoSProfile(depth=100))

    def begin(self) -> None:
        """Take samples from now on."""
        self._start_s = time.monotonic()

    def _on_budget(self, message: RefreshBudget) -> None:
        self.levels[str(level_of(message))] += 1
        self._look()  # not only at diagnostics: those may keep step with the pictures

    def _look(self) -> None:
        """Note the node's memory, in megabytes: its own, and what it may share."""
        with suppress(psutil.NoSuchProcess):  # whoever watches the process says so
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
