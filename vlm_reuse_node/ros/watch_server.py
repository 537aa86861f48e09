"""Standing questions over ROS: the service `~/watch` and the topic `~/watch_answers`."""

from collections.abc import Callable
from contextlib import suppress

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from vlm_reuse_interfaces.msg import WatchAnswer
from vlm_reuse_interfaces.srv import WatchScene

from vlm_reuse_node.errors import InvalidRequestError
from vlm_reuse_node.ros.ask_server import awaitable
from vlm_reuse_node.ros.messages import watch_answer_message, watch_message, watch_of
from vlm_reuse_node.serving.watch import Watch
from vlm_reuse_node.session.answer import Answer, Status

# Who subscribes late still hears the newest answers, so many; what stands now is for LIST to say.
ANSWERS_KEPT = 64


class WatchServer:
    """Adds, removes and lists standing questions; they stand until they are removed or the node is cleaned up."""

    def __init__(self, node: Node, worker: Callable[[], object]):
        """Create the service and the topic.

        worker: gives the `ModelWorker` now. Raises InvalidRequestError when there is none.
        """
        self._node, self._worker = node, worker
        self._publisher = self._kept_publisher()
        node.create_service(WatchScene, '~/watch', self._on_watch, callback_group=ReentrantCallbackGroup())

    def publish(self, watch: Watch, before: Answer | None) -> None:
        """Tell a new answer. For any thread."""
        self._publisher.publish(watch_answer_message(watch, before))

    def forget(self) -> None:
        """The standing questions are gone: who subscribes late must not hear their answers. With no model's thread."""
        self._node.destroy_publisher(self._publisher)
        self._publisher = self._kept_publisher()

    def _kept_publisher(self):
        kept = QoSProfile(depth=ANSWERS_KEPT, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        return self._node.create_publisher(WatchAnswer, '~/watch_answers', kept)

    async def _on_watch(self, request: WatchScene.Request, response: WatchScene.Response) -> WatchScene.Response:
        try:
            worker = self._worker()
            if request.command == WatchScene.Request.ADD:
                response.watch_id = await self._add(worker, request)
            elif request.command == WatchScene.Request.REMOVE:
                worker.unwatch(request.watch_id)
            elif request.command != WatchScene.Request.LIST:
                raise InvalidRequestError(f'command is {request.command}; expected ADD, REMOVE or LIST.')
            response.watches = [watch_message(watch) for watch in worker.watches()]
            response.success = True
        except InvalidRequestError as err:
            response.message = str(err)
        return response

    async def _add(self, worker, request) -> int:
        """Wait for the first answer: only the model can tell whether the question can be asked at all."""
        watch, asked = worker.watch(watch_of(request), self._node.get_clock().now().nanoseconds)
        answer = await awaitable(asked, self._node.executor)
        if answer.status in (Status.INVALID_REQUEST, Status.CANCELLED):
            with suppress(InvalidRequestError):  # somebody removed it already
                worker.unwatch(watch.number)
            raise InvalidRequestError(answer.message)
        return watch.number
