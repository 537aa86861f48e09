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

"""Declares `Config` as ROS parameters. Names, defaults, ranges and descriptions come from that record alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import InvalidQoSProfileException
from rclpy.qos_overriding_options import QoSOverridingOptions

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError
from vlm_reuse_node.plain_text import one_line

NAMES = tuple(parameter.name for parameter in fields(Config))
QOS_OVERRIDES = 'qos_overrides.'


def declare_parameters(node: Node) -> Config:
    """Declare every field of `Config` on the node and return the values it was started with.

    Raises ConfigError for a value of a wrong type or out of range, for a camera name that cannot be part of a topic
    name, and for an unknown parameter.
    """
    overrides = _overrides(node)
    config = Config(**{name: value for name, value in overrides.items() if name in NAMES})
    for field in fields(Config):
        value = getattr(config, field.name)
        value = list(value) if isinstance(value, tuple) else value
        # `Config` has checked the value and accepts an integer for a float. rclpy itself would refuse `max_age_s: 2`.
        node.declare_parameter(field.name, value, descriptor_of(field), ignore_override=True)
    for name in sorted(overrides):
        if not node.has_parameter(name) and not name.startswith(QOS_OVERRIDES):
            raise ConfigError(f"There is no parameter '{name}'; known are {', '.join(sorted(NAMES))}.")
    _check_cameras(node, config)
    return config


def overridable() -> QoSOverridingOptions:
    """The QoS policies that operators may override on a topic that the node publishes."""
    return QoSOverridingOptions.with_default_policies()


@contextmanager
def making(what: str) -> Iterator[None]:
    """Turn an error of ROS while something is created, mostly due to a QoS override, into a ConfigError."""
    try:
        yield
    except (RuntimeError, ParameterException, NameValidationException, InvalidQoSProfileException) as error:
        reason = ' '.join(str(error).partition(', at ')[0].split()).rstrip('.')
        raise ConfigError(f'{what} cannot be created: {reason}.') from error


def check_qos_overrides_are_used(node: Node) -> None:
    """Refuse QoS overrides that do not apply to any topic of the node. Call it when every topic exists.

    An override for an unknown topic only logs a warning, because a camera that is added later may have that topic.
    Raises ConfigError that names the parameter.
    """
    known = sorted(QOS_OVERRIDES + name for name in node.get_parameters_by_prefix(QOS_OVERRIDES.rstrip('.')))
    topics = {_overridden_topic(name) for name in known}
    for name in sorted(_overrides(node)):
        if not name.startswith(QOS_OVERRIDES) or name in known:
            continue
        if not _overridden_topic(name) or _overridden_topic(name) in topics:
            raise ConfigError(f"'{name}' overrides nothing on this node; known are {', '.join(known)}.")
        node.get_logger().warning(
            f"'{name}' overrides nothing so far: no camera has this topic. Known are {', '.join(known)}."
        )


def watch_parameters(
    node: Node, get_config: Callable[[], Config], apply: Callable[[Config], None], is_configured: Callable[[], bool]
) -> None:
    """Check every later change of parameters as a whole, then pass the new configuration to `apply`.

    A change that `Config` refuses is refused with the message of its ConfigError. While the node is configured, a
    change of a parameter that is not live is refused too.
    """

    def check(parameters: list[Parameter]) -> SetParametersResult:
        try:
            config = get_config()
            changed = config.with_values(**_ours(parameters))
            if is_configured():
                _check_live(node, config, changed)
            _check_cameras(node, changed)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=one_line(str(error)))
        return SetParametersResult(successful=True)

    def take(parameters: list[Parameter]) -> None:
        if _ours(parameters):
            apply(get_config().with_values(**_ours(parameters)))

    node.add_on_set_parameters_callback(check)
    node.add_post_set_parameters_callback(take)


def descriptor_of(field: Field) -> ParameterDescriptor:
    """Describe one field of `Config`: its text, range and choices, and when it may change."""
    low, high, choices, live = (field.metadata[key] for key in ('low', 'high', 'choices', 'live'))
    descriptor = ParameterDescriptor(description=field.metadata['description'])
    constraints = ([f'one of {", ".join(choices)}'] if choices else []) + (
        [] if live else ['changes only while the node is unconfigured']
    )
    descriptor.additional_constraints = '; '.join(constraints)
    if low is not None and isinstance(field.default, int):
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    elif low is not None:
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    return descriptor


def _check_live(node: Node, config: Config, changed: Config) -> None:
    fixed = [
        field.name
        for field in fields(Config)
        if not field.metadata['live'] and getattr(changed, field.name) != getattr(config, field.name)
    ]
    if fixed:
        name = node.get_fully_qualified_name()
        raise ConfigError(
            f'{", ".join(fixed)} cannot change while the node is configured; deactivate it and clean it '
            f"up first ('ros2 lifecycle set {name} cleanup')."
        )


def _overridden_topic(name: str) -> str:
    """The topic of a QoS override; '' for a name that has not the form of one."""
    parts = name.removeprefix(QOS_OVERRIDES).split('.')
    return parts[0] if len(parts) == 3 and parts[1] in ('publisher', 'subscription') else ''


def _check_cameras(node: Node, config: Config) -> None:
    for camera in config.cameras:
        try:
            # Check the longest topic names of the camera. The first also refuses an absolute name.
            node.resolve_topic_name(f'~/overlay/{camera}')
            node.resolve_topic_name(f'{camera}/image_raw/compressed')
        except (RuntimeError, NameValidationException) as error:
            raise ConfigError(
                f"cameras has '{camera}', which cannot begin a topic name; expected letters, digits and "
                "underscores, as in 'front_camera', and a name that is short enough."
            ) from error


def _overrides(node: Node) -> dict:
    """Parameter values from the command line and the parameter files. rclpy has no public way to list them."""
    return {name: parameter.value for name, parameter in node._parameter_overrides.items()}


def _ours(parameters: list[Parameter]) -> dict:
    """The values of parameters in `Config`. The others, use_sim_time and QoS overrides, belong to rclpy."""
    return {parameter.name: parameter.value for parameter in parameters if parameter.name in NAMES}
