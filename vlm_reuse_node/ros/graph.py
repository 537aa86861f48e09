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

"""What the ROS graph says about a camera's topic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rclpy.node import Node

from vlm_reuse_node.config import FFMPEG_TRANSPORT
from vlm_reuse_node.ros.middleware import way_of

# The type that each image_transport brings.
TRANSPORTS = {
    'raw': 'sensor_msgs/msg/Image',
    'compressed': 'sensor_msgs/msg/CompressedImage',
    FFMPEG_TRANSPORT: 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket',
}
MOST_NAMED = 3


@dataclass(frozen=True)
class TopicPublishers:
    """Who publishes a topic.

    types: of each publisher. nodes: full names of those that publish the expected type. way: on which their messages
    come; '' without one.
    """

    types: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    way: str = ''


def publishers_of(node: Node, topic: str, kind: str) -> TopicPublishers:
    """Look up a topic. topic: the name before remapping. kind: the expected type."""
    found = node.get_publishers_info_by_topic(topic)  # remaps the name, unlike documented
    right = [info for info in found if info.topic_type == kind]
    own = (
        info.endpoint_gid
        for info in node.get_subscriptions_info_by_topic(topic)
        if (info.node_namespace, info.node_name) == (node.get_namespace(), node.get_name())
    )
    return TopicPublishers(
        tuple(info.topic_type for info in found),
        tuple(f'{info.node_namespace.rstrip("/")}/{info.node_name}' for info in right),
        way_of(right[0].endpoint_gid, next(own, ())) if right else '',
    )


def published_pictures(node: Node) -> dict[str, Sequence[str]]:
    """The types of every topic with pictures that another node publishes, by name. The node's own overlays are none."""
    own = f'{node.get_fully_qualified_name()}/overlay/'
    return {
        name: types
        for name, types in node.get_topic_names_and_types()
        if set(TRANSPORTS.values()) & set(types) and not name.startswith(own) and node.count_publishers(name)
    }


def topic_of(base: str, transport: str) -> str:
    """The topic of a transport, as image_transport names it."""
    return base if transport == 'raw' else f'{base}/{transport}'


def hint(name: str, base: str, transport: str, offered: Sequence[str], pictures: Mapping[str, Sequence[str]]) -> str:
    """Say why no picture of a camera comes, and what to do; '' when a publisher of the right type is there.

    name: of the camera. base: its topic, without that of its image_transport. offered: the types of the publishers on
    the topic. pictures: see `published_pictures`.
    """
    topic, kind = topic_of(base, transport), TRANSPORTS[transport]
    if kind in offered:
        return ''
    for other, its_kind in TRANSPORTS.items():
        its_topic = topic_of(base, other)
        if other != transport and its_kind in pictures.get(its_topic, ()):
            return f'Only {its_topic} is published, not {topic}; set image_transport:={other}.'
    for other, its_kind in TRANSPORTS.items():
        if transport == 'raw' and its_kind in offered:
            return (
                f'{topic} has pictures of type {its_kind}; set image_transport:={other}, and remap '
                f'{topic_of(base, other)} to {topic}.'
            )
    others = [other for other in sorted(pictures) if other not in (topic, base)]
    listed = ', '.join(others[:MOST_NAMED]) + (' and others' if len(others) > MOST_NAMED else '')
    found = f' Pictures are published on {listed}.' if others else ''
    if offered:
        return f'{topic} is published as {offered[0]}, and expected as {kind}; remap {name}/image_raw.{found}'
    return f'Nobody publishes {topic}; start the camera, or remap {name}/image_raw to its topic.{found}'


def twins_of(node: Node) -> str:
    """Say that other nodes have the same name, and what to do; '' when none has."""
    name = node.get_fully_qualified_name()
    if node.get_fully_qualified_node_names().count(name) < 2:
        return ''
    return (
        f'Another node has the name {name}: planners get every answer twice, and tools reach either of the two. Give '
        "one another name ('--ros-args -r __node:=NAME') or namespace."
    )
