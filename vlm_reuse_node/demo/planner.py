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

"""A robot's planner: asks about the live scene by service, at the times the questions are due on the robot's clock."""

import time
from collections.abc import Callable
from typing import Any

from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.time import Time
from vlm_reuse_interfaces.msg import Answer
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.demo.recorder import NODE, Recorder
from vlm_reuse_node.demo.sidecar import PlannedQuestion
from vlm_reuse_node.demo.summary import Reply, Row
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.ros.messages import level_of, seconds_of
from vlm_reuse_node.session.answer import Status

_STATUSES = [str(status) for status in Status]


class PlannerError(VlmReuseError):
    """Something the planner waited for did not happen."""


class Planner:
    """Asks through the demo's own ROS node. While it waits for anything, `check` may raise."""

    def __init__(
        self, node: Node, executor: SingleThreadedExecutor, recorder: Recorder, check: Callable[[], None]
    ) -> None:
        """Create the clients. node: uses simulated time and is spun by `executor`."""
        self._node = node
        self._executor = executor
        self._recorder = recorder
        self._check = check
        self._client: Client = node.create_client(AskScene, f'/{NODE}/ask')
        self._cold_client: Client = node.create_client(AskScene, f'/{NODE}/ask_cold')

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Spin until a condition holds. what: names it for the error.

        Raises PlannerError after so many seconds, and whatever `check` raises.
        """
        self._spin_until(condition, seconds)
        if not condition():
            raise PlannerError(f'Waited {seconds:.0f} s in vain for {what}.')

    def wait_for_node(self, seconds: float) -> None:
        """Wait until the node serves and publishes: it loads its model before it does either."""
        topics = (f'/{NODE}/refresh_budget', self._recorder.overlay_topic, '/diagnostics')
        self.wait_until(
            lambda: (
                self._client.service_is_ready()
                and self._cold_client.service_is_ready()
                and all(map(self._node.count_publishers, topics))
            ),
            'the node to serve',
            seconds,
        )

    def wait_for_time(self, due_ns: int, is_over: Callable[[], bool], seconds: float) -> None:
        """Wait until the robot's clock shows that time. is_over: whether nothing moves the clock any more."""
        self.wait_until(lambda: self._node.get_clock().now().nanoseconds >= due_ns or is_over(), 'the clock', seconds)

    def see_the_last(self, last_s: float, seconds: float) -> None:
        """Spin until the node has reported on the last picture too, at most that long."""
        self._spin_until(lambda: any(look.picture_s >= last_s for look in self._recorder.looks[-3:]), seconds)

    def ask_both(self, question: PlannedQuestion) -> Row:
        """Ask warm, and right after it cold-dense: from nothing, on the same picture unless another came in between."""
        warm = self.ask(question)
        return Row(question, warm, self.ask(question, cold=True) if warm.is_answer else None)

    def ask(self, question: PlannedQuestion, *, cold: bool = False) -> Reply:
        """Ask once and wait for the answer. cold: computed from nothing; the node's kept state stays as it is."""
        client = self._cold_client if cold else self._client
        future: Any = client.call_async(AskScene.Request(question=question.text, choices=list(question.choices)))
        self.wait_until(future.done, f"the answer to '{question.text}'", 120.0)
        return self._reply(future.result().answer)

    def _spin_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Spin until a condition holds, or for so many seconds."""
        end_s = time.monotonic() + seconds
        while not condition() and time.monotonic() < end_s:
            self._check()
            self._executor.spin_once(timeout_sec=0.1)

    def _reply(self, answer: Answer) -> Reply:
        has_picture = answer.header.stamp.sec or answer.header.stamp.nanosec
        return Reply(
            status=_STATUSES[answer.status],
            message=answer.message,
            text=answer.text,
            picture_s=self._recorder.seconds(answer.header) if has_picture else None,
            image_age_s=seconds_of(answer.image_age),
            level=str(level_of(answer)),
            tokens_reused=answer.tokens_reused,
            tokens_prefilled=answer.tokens_prefilled,
            refresh_ms=answer.refresh_ms,
            prefill_ms=answer.prefill_ms,
            decode_ms=answer.decode_ms,
            queue_ms=answer.queue_ms,
            cached_ns=Time.from_msg(answer.cached_stamp).nanoseconds,
            token_ids=tuple(answer.token_ids),
            remembered=answer.remembered,
        )
