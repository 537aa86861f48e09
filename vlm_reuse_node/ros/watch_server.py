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

"""Standing questions over ROS: services that add, remove and list them, and the topic `~/watch_answers`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from vlm_reuse_interfaces.msg import WatchAnswer
from vlm_reuse_interfaces.srv import AddWatch, ListWatches, RemoveWatch

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.plain_text import one_line
from vlm_reuse_node.ros.ask_server import awaitable
from vlm_reuse_node.ros.messages import watch_answer_message, watch_message, watch_of
from vlm_reuse_node.serving.watch import Watch
from vlm_reuse_node.session.answer import Answer, Status

if TYPE_CHECKING:
    from vlm_reuse_node.serving.worker import ModelWorker

# A late subscriber receives this many of the newest answers. `~/list_watches` has the current ones.
ANSWERS_KEPT = 64


class WatchServer:
    """Adds, removes and lists standing questions. They last until they are removed or the node is cleaned up."""

    def __init__(
        self,
        node: Node,
        worker: Callable[[], ModelWorker],
        standing: Callable[[], list[Watch]],
        now_ns: Callable[[], int],
    ) -> None:
        """Create the services and the topic.

        worker: returns the worker. Raises InvalidRequestError when the node is not active.
        standing: returns the standing questions, the oldest first, in every state of the node.
        now_ns: returns the time of pictures and questions.
        """
        self._node, self._worker, self._standing, self._now_ns = node, worker, standing, now_ns
        self._publisher = self._kept_publisher()
        group = ReentrantCallbackGroup()
        node.create_service(AddWatch, '~/add_watch', self._on_add, callback_group=group)
        node.create_service(RemoveWatch, '~/remove_watch', self._on_remove, callback_group=group)
        node.create_service(ListWatches, '~/list_watches', self._on_list, callback_group=group)

    def publish(self, watch: Watch, before: Answer | None) -> None:
        """Publish a new answer. May be called from any thread."""
        self._publisher.publish(watch_answer_message(watch, before))

    def forget(self) -> None:
        """Drop the kept answers, so late subscribers get no answers to old questions. Call it while no worker runs."""
        self._node.destroy_publisher(self._publisher)
        self._publisher = self._kept_publisher()

    def _kept_publisher(self) -> Publisher:
        kept = QoSProfile(depth=ANSWERS_KEPT, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        return self._node.create_publisher(WatchAnswer, '~/watch_answers', kept)

    async def _on_add(self, request: AddWatch.Request, response: AddWatch.Response) -> AddWatch.Response:
        try:
            response.watch_id = await self._add(self._worker(), watch_of(request))
            response.success = True
        except InvalidRequestError as error:
            response.message = one_line(str(error))
        return response

    def _on_remove(self, request: RemoveWatch.Request, response: RemoveWatch.Response) -> RemoveWatch.Response:
        try:
            self._worker().unwatch(request.watch_id)
            response.success = True
        except InvalidRequestError as error:
            response.message = one_line(str(error))
        return response

    def _on_list(self, request: ListWatches.Request, response: ListWatches.Response) -> ListWatches.Response:
        response.watches = [watch_message(watch) for watch in self._standing()]
        return response

    async def _add(self, worker: ModelWorker, watch: Watch) -> int:
        """Add a standing question and wait for its first answer, because only the model can check it fully."""
        watch, asked = worker.watch(watch, self._now_ns())
        answer = await awaitable(asked, self._node.executor)
        if answer.status in (Status.INVALID_REQUEST, Status.CANCELLED):
            with suppress(InvalidRequestError):  # it was removed in the meantime
                worker.unwatch(watch.watch_id)
            raise InvalidRequestError(answer.message)
        return watch.watch_id
