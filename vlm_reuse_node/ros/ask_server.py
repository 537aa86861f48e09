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

"""Questions over ROS: the services `~/ask` and `~/ask_cold` and the action `~/ask_scene`.

No callback blocks: it awaits a future that the model's thread sets, while the executor runs other callbacks.
"""

from collections.abc import Awaitable, Callable
from concurrent.futures import Future as WorkerFuture
from functools import partial
from threading import Event
from typing import Any, TypeAlias

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.task import Future
from vlm_reuse_interfaces.action import AskScene as AskSceneAction
from vlm_reuse_interfaces.srv import AskScene

from vlm_reuse_node.ros.messages import answer_message, progress_message
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.progress import Progress

# The middleware silently drops requests beyond this depth (ROS's default is 10). It is large, so that the node itself
# can answer BUSY.
QUESTIONS_AT_ONCE = 1000

# How long a goal's result can be fetched after its end, seconds.
RESULT_KEPT_S = 60

Request: TypeAlias = Any  # AskScene.Request or AskSceneAction.Goal: ROS generates them without types
Listener = Callable[[Progress], None]

# Queues a request's question for the model: (request, cold, cancel, listener) -> the answer's future.
# cold: answer cold-dense, without changing the kept state.
Ask = Callable[[Request, bool, Event | None, Listener | None], WorkerFuture[Answer]]


class AskServer:
    """Serves questions in every state of the node. When the node is not active, `ask` returns INACTIVE."""

    def __init__(self, node: Node, ask: Ask, explain: Callable[[Answer], Answer]) -> None:
        """Create the services and the action. explain: adds a reason to an answer's message."""
        self._node, self._ask, self._explain = node, ask, explain
        self._cancels: dict[bytes, Event] = {}
        # Callbacks of this group may run while others of it wait for the model.
        group, roomy = ReentrantCallbackGroup(), QoSProfile(depth=QUESTIONS_AT_ONCE)
        node.create_service(AskScene, '~/ask', self._on_ask, qos_profile=roomy, callback_group=group)
        node.create_service(AskScene, '~/ask_cold', self._on_ask_cold, qos_profile=roomy, callback_group=group)
        self._action = ActionServer(
            node,
            AskSceneAction,
            '~/ask_scene',
            self._on_goal,
            callback_group=group,
            cancel_callback=self._on_cancel,
            goal_service_qos_profile=roomy,
            result_service_qos_profile=roomy,
            cancel_service_qos_profile=roomy,
            feedback_pub_qos_profile=roomy,
            result_timeout=RESULT_KEPT_S,
        )

    def destroy(self) -> None:
        """Destroy the action, because the node does not do it.

        Without this the process may crash when Python frees the node: the action of rclpy (Jazzy, Kilted) points to the
        node's clock and does not keep it, and garbage collection may free the clock first.
        """
        self._action.destroy()

    async def _on_ask(self, request: AskScene.Request, response: AskScene.Response) -> AskScene.Response:
        response.answer = answer_message(await self._answer(request, False))
        return response

    async def _on_ask_cold(self, request: AskScene.Request, response: AskScene.Response) -> AskScene.Response:
        response.answer = answer_message(await self._answer(request, True))
        return response

    async def _on_goal(self, goal: ServerGoalHandle) -> AskSceneAction.Result:
        """Answer one goal. The model's thread publishes its feedback while the text grows."""
        cancel = self._cancels[bytes(goal.goal_id.uuid)] = Event()
        if goal.is_cancel_requested:  # before this callback began
            cancel.set()
        feed = partial(self._feed, goal)
        feed(Progress('queue'))
        try:
            answer = await self._answer(goal.request, False, cancel, feed)
        finally:
            del self._cancels[bytes(goal.goal_id.uuid)]
        if answer.status is Status.OK:
            goal.succeed()
        elif answer.status is Status.CANCELLED and goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return AskSceneAction.Result(answer=answer_message(answer))

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        """Accept every cancel request. A goal that has not begun checks for it when it begins."""
        if cancel := self._cancels.get(bytes(goal.goal_id.uuid)):
            cancel.set()
        return CancelResponse.ACCEPT

    async def _answer(
        self, request: Request, cold: bool, cancel: Event | None = None, listener: Listener | None = None
    ) -> Answer:
        return self._explain(await awaitable(self._ask(request, cold, cancel, listener), self._node.executor))

    def _feed(self, goal: ServerGoalHandle, progress: Progress) -> None:
        try:
            goal.publish_feedback(progress_message(progress))
        except RuntimeError:
            if self._node.context.ok():  # otherwise ROS was shut down in the meantime
                raise


def answered(answer: Answer) -> WorkerFuture[Answer]:
    """A future that has this answer already."""
    future: WorkerFuture[Answer] = WorkerFuture()
    future.set_result(answer)
    return future


def awaitable(asked: WorkerFuture[Answer], executor: Executor) -> Awaitable[Answer]:
    """Make an answer's future awaitable in an rclpy coroutine. A dropped question gets an answer too."""
    answer: Future = Future(executor=executor)

    def finish(done: WorkerFuture[Answer]) -> None:
        if done.cancelled():
            answer.set_result(Answer(Status.CANCELLED, 'The question was dropped.'))
        elif error := done.exception():
            answer.set_result(Answer(Status.MODEL_ERROR, f'The question was dropped: {error}.'))
        else:
            answer.set_result(done.result())
        # Setting a future does not wake an executor that waits for work.
        executor.wake()

    asked.add_done_callback(finish)
    return answer
