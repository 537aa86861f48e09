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

"""The subscription of a camera topic. Its QoS follows the publishers: reliable when all of them are, else best effort.

A best effort subscription receives from every publisher. But on one machine it loses nearly all pictures above 512 KB
(640 x 480 rgb8 is 900 KB): Fast DDS drops a message that does not fit into its shared memory, and only a reliable
reader requests it again. So the subscription starts reliable, and switches as soon as a best effort publisher appears.
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
    """A subscription of pictures. `qos_overrides` win; the reliability `best_available` follows the publishers.

    topic: the full name after remapping.
    lost: pictures that the middleware began to receive and could not complete.
    incompatible_qos: the policy that a publisher offers and this subscription does not accept; '' for none.
    """

    def __init__(self, node: Node, kind: type, topic: str, on_message: Callable[..., None], depth: int = 1) -> None:
        """Subscribe. topic: the name before remapping. on_message: takes a message, or a message and its info.

        depth: how many messages wait; 1 keeps the newest. Of a video each one is needed.
        Raises ConfigError for an invalid QoS override.
        """
        self.lost = 0
        self.incompatible_qos = ''
        self._node, self._kind, self._asked_topic, self._on_message = node, kind, topic, on_message
        self._qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=depth,
            durability=DurabilityPolicy.VOLATILE,
            reliability=ReliabilityPolicy.BEST_AVAILABLE,
        )
        self._follows = True
        overrides = QoSOverridingOptions(QOS_POLICIES, callback=self._on_overridden)
        self.topic = node.resolve_topic_name(topic)
        with making(f'The subscription of {self.topic}'):
            self._subscription = self._subscribe(qos_overriding_options=overrides)

    def follow_publishers(self, *_: object) -> None:
        """Subscribe again if the publishers' reliability has changed."""
        offered = self._offered()
        if not self._follows or offered == self._qos.reliability:
            return
        old = self._subscription
        self._qos.reliability, self.incompatible_qos = offered, ''
        self._subscription = self._subscribe()
        self._node.destroy_subscription(old)
        self._node.get_logger().debug(f'{self.topic}: subscribed as {offered.name}, which its publishers offer.')

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
        except UnsupportedEventTypeError:  # the node calls follow_publishers regularly instead
            return self._node.create_subscription(self._kind, self._asked_topic, self._on_message, self._qos, **options)

    def _on_overridden(self, qos: QoSProfile) -> SetParametersResult:
        """Called by rclpy after it has applied the overrides to the profile, before it subscribes."""
        self._follows = qos.reliability == ReliabilityPolicy.BEST_AVAILABLE
        if self._follows:
            qos.reliability = self._offered()
        return SetParametersResult(successful=True)

    def _offered(self) -> ReliabilityPolicy:
        """The strictest reliability that every known publisher offers."""
        publishers = self._node.get_publishers_info_by_topic(self._asked_topic)  # remaps the name, unlike documented
        return BEST_EFFORT if any(info.qos_profile.reliability == BEST_EFFORT for info in publishers) else RELIABLE

    def _on_incompatible_qos(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        if self._follows and policy == 'RELIABILITY':
            self.follow_publishers()
            return
        self.incompatible_qos = policy
        self._node.get_logger().warning(
            f'A publisher on {self.topic} offers a {policy} policy that this subscription does not accept, so none of '
            f'its pictures arrive. Change the publisher, or the qos_overrides of {self.topic}.'
        )

    def _on_lost(self, event: Any) -> None:
        self.lost += event.total_count_change
