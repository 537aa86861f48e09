"""A camera topic's subscription whose QoS follows its publishers: sensor data, but reliable where all of them are.

Best effort alone would hear every publisher, and lose nearly all pictures above 512 KB on one machine (640 x 480 rgb8
is 900 KB): Fast DDS drops what does not fit its shared memory at once, and only a reliable reader asks for it again.
So it starts reliable and loses nothing of a reliable camera; a best effort one is followed the moment it appears.
"""

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from vlm_reuse_node.ros.parameters import making

QOS_POLICIES = (QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)
RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


class ImageSubscription:
    """One picture waits at most. `qos_overrides` win; its reliability `best_available` follows the publishers.

    topic: the full name, remapped once.
    lost: pictures that the middleware began to receive and could not complete.
    incompatible_qos: the policy that a publisher offers and this subscription does not accept, '' for none.
    """

    def __init__(self, node: Node, kind: type, topic: str, on_message: Callable[[Any], None]):
        """Subscribe. topic: not remapped yet; ROS does that. Raises ConfigError for a QoS override that is none."""
        self.lost = 0
        self.incompatible_qos = ''
        self._node, self._kind, self._asked_topic, self._on_message = node, kind, topic, on_message
        self._qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=1,
            durability=DurabilityPolicy.VOLATILE,
            reliability=ReliabilityPolicy.BEST_AVAILABLE,
        )
        self._follows = True
        overrides = QoSOverridingOptions(QOS_POLICIES, callback=self._on_overridden)
        self.topic = node.resolve_topic_name(topic)
        with making(f'The subscription of {self.topic}'):
            self._subscription = self._subscribe(qos_overriding_options=overrides)

    def follow_publishers(self, *_: object) -> None:
        """Subscribe again when the publishers' reliability has become another one."""
        offered = self._offered()
        if not self._follows or offered == self._qos.reliability:
            return
        old = self._subscription
        self._qos.reliability, self.incompatible_qos = offered, ''
        self._subscription = self._subscribe()
        self._node.destroy_subscription(old)
        self._node.get_logger().debug(f'{self.topic}: subscribed {offered.name}, as its publishers offer.')

    def destroy(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def _subscribe(self, **options: Any) -> Subscription:
        events = SubscriptionEventCallbacks(
            incompatible_qos=self._on_incompatible_qos, matched=self.follow_publishers, message_lost=self._on_lost
        )
        try:
            return self._node.create_subscription(
                self._kind,
                self._asked_topic,
                self._on_message,
                self._qos,
                event_callbacks=events,
                **options,
            )
        except UnsupportedEventTypeError:  # the node asks for follow_publishers now and then
            return self._node.create_subscription(self._kind, self._asked_topic, self._on_message, self._qos, **options)

    def _on_overridden(self, qos: QoSProfile) -> SetParametersResult:
        """Called by rclpy when it has written the overrides into the profile and before it subscribes."""
        self._follows = qos.reliability == ReliabilityPolicy.BEST_AVAILABLE
        if self._follows:
            qos.reliability = self._offered()
        return SetParametersResult(successful=True)

    def _offered(self) -> ReliabilityPolicy:
        """The most that every known publisher can give."""
        publishers = self._node.get_publishers_info_by_topic(self._asked_topic)  # which remaps it, unlike its text says
        return BEST_EFFORT if any(info.qos_profile.reliability == BEST_EFFORT for info in publishers) else RELIABLE

    def _on_incompatible_qos(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        if self._follows and policy == 'RELIABILITY':
            self.follow_publishers()
            return
        self.incompatible_qos = policy
        self._node.get_logger().warning(
            f'A publisher on {self.topic} offers a {policy} policy that this subscription does not accept: no picture '
            f'will come from it. Change the publisher, or the qos_overrides of {self.topic}.'
        )

    def _on_lost(self, event: Any) -> None:
        self.lost += event.total_count_change
