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

"""All parameters with their defaults: one validated record for the node, the launch file and the replay.

ROS parameters take their names, defaults, ranges and descriptions from here. YAML files only hold overrides.
"""

from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from vlm_reuse_node.errors import ConfigError

# The values of refresh_policy.
AUTO_POLICY, EXACT_POLICY, PATCH_POLICY = 'auto', 'exact', 'patch'
# The value of image_transport that is a video.
FFMPEG_TRANSPORT = 'ffmpeg'


def _parameter(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
) -> Any:
    """Declare one parameter. A `live` parameter may change at any time, the others only while no model is loaded."""
    metadata = {'description': description, 'low': low, 'high': high, 'choices': choices, 'live': live}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The whole configuration. Construction raises `ConfigError` for a wrong type or a value out of range."""

    model: str = _parameter('tabletop', "'tabletop' (embedded), a model directory in mlx-vlm's format, or a hub name")
    visual_tokens: int = _parameter(
        0,
        'about the most visual tokens of a picture: the first dial between cost and sight. The nearest size that the '
        "model's processor allows is taken; 0: as the processor says",
        low=0,
        high=65_536,
    )
    thinking: bool = _parameter(
        False,
        'true: the model thinks before it answers in free text; its thoughts are left out of the answer. Choices and '
        'documents are answered without thoughts in any case',
    )
    autostart: bool = _parameter(
        True, "true: load the model and take pictures at the start; false: wait for 'ros2 lifecycle set'"
    )
    cameras: tuple[str, ...] = _parameter(
        ('camera',), 'camera names; each subscribes to <name>/image_raw (remap it to your topic)', live=True
    )
    image_transport: str = _parameter(
        'raw',
        'raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage on <topic>/compressed; ffmpeg: video, '
        'ffmpeg_image_transport_msgs/FFMPEGPacket on <topic>/ffmpeg, which needs PyAV',
        choices=('raw', 'compressed', FFMPEG_TRANSPORT),
    )
    system_prompt: str = _parameter('', 'text before the pictures in the prompt; empty: the chat template decides')
    max_tokens: int = _parameter(
        64, 'most tokens of an answer, when the question does not set max_tokens', low=1, high=4096, live=True
    )
    temperature: float = _parameter(
        0.0, 'temperature for sampling free text; 0: always the most likely token', low=0.0, high=5.0, live=True
    )
    seed: int = _parameter(
        0,
        'seed for sampling; with one seed, the same question on the same state gets the same answer',
        low=0,
        high=2**31 - 1,
        live=True,
    )
    max_image_pixels: int = _parameter(
        33_177_600, 'most pixels of a picture; a larger picture is refused', low=1, high=268_435_456, live=True
    )
    max_age_s: float = _parameter(
        2.0,
        'largest age of the picture behind an answer, seconds, when the question does not set max_age; older: STALE',
        low=0.001,
        high=86_400.0,
        live=True,
    )
    max_lag_s: float = _parameter(
        0.0,
        'how long the kept state may have differed from the newest picture, seconds, when the question does not set '
        'max_lag; 0: the answer is given from the newest picture',
        low=0.0,
        high=86_400.0,
        live=True,
    )
    timeout_s: float = _parameter(
        30.0,
        'most time until an answer, seconds, when the question does not set timeout',
        low=0.001,
        high=3600.0,
        live=True,
    )
    queue_size: int = _parameter(
        16, 'most questions about one camera that may wait; the next one gets BUSY', low=1, high=10_000, live=True
    )
    change_threshold: int = _parameter(
        20,
        'a cell has changed when one in a hundred of its values (pixels times channels, 0 to 255) differs by this; '
        'sensor noise raises it',
        low=1,
        high=255,
        live=True,
    )
    max_cell_age_s: float = _parameter(
        10.0,
        'a cell that differs too little to count as changed is refreshed after this time, seconds',
        low=0.0,
        high=3600.0,
        live=True,
    )
    change_halo: int = _parameter(
        0, 'a changed cell is refreshed with this many cells on every side', low=0, high=16, live=True
    )
    exposure_compensation: float = _parameter(
        0.25,
        'share by which the whole picture may get brighter or darker without a change; its cells are then refreshed '
        'after max_cell_age_s',
        low=0.0,
        high=1.0,
        live=True,
    )
    refresh_policy: str = _parameter(
        AUTO_POLICY,
        'exact: compute a changed picture whole; patch: compute only its changed cells, which is approximate; auto: '
        'patch where a calibration of this model says that it drifts less than max_drift, else exact',
        choices=(AUTO_POLICY, EXACT_POLICY, PATCH_POLICY),
        live=True,
    )
    calibration: str = _parameter(
        '',
        "calibration.json that refresh_policy 'auto' goes by; it brings its own change_halo, max_patches, "
        "max_patch_share, min_confidence and min_text_confidence; empty: the one in the model's directory, if any",
        live=True,
    )
    max_patches: int = _parameter(
        8, 'most patches in a row; then a picture is computed whole', low=1, high=1000, live=True
    )
    max_patch_share: float = _parameter(
        0.25,
        'largest share of cells that may be patched; a picture with more is computed whole',
        low=0.0,
        high=1.0,
        live=True,
    )
    min_confidence: float = _parameter(
        0.7,
        'when the choice that a patched state gives has a lower probability, the state is computed whole and answers '
        'again; 1: a patched state gives no choice',
        low=0.0,
        high=1.0,
        live=True,
    )
    min_text_confidence: float = _parameter(
        0.7,
        'min_confidence for texts, whose probability is that of their least likely token; 1: a patched state gives '
        'no text',
        low=0.0,
        high=1.0,
        live=True,
    )
    budget_ms: float = _parameter(
        0.0,
        'time limit of a refresh (vision and prefill), milliseconds; cells that do not fit stay stale, but not '
        'longer than max_cell_age_s; 0: no limit',
        low=0.0,
        high=60_000.0,
        live=True,
    )
    upkeep_share: float = _parameter(
        1.0,
        'model work without a question (refreshes, repairs, audits) is done only while all work stays below this many '
        'times that of cold-dense; 0: only when asked',
        low=0.0,
        high=1000.0,
        live=True,
    )
    audit_share: float = _parameter(
        0.05,
        'share of the answers that are repeated cold-dense while the model is idle, to count drift',
        low=0.0,
        high=1.0,
        live=True,
    )
    max_drift: float = _parameter(
        0.01,
        'accepted share of drifted answers; patching stops when the audit finds more than it explains',
        low=0.0001,
        high=1.0,
        live=True,
    )
    history_frames: int = _parameter(
        0,
        'most past pictures (keyframes) in the prompt; 0: only the newest picture',
        low=0,
        high=256,
        live=True,
    )
    keyframe_interval_s: float = _parameter(
        1.0,
        'a picture becomes a keyframe when it is at least this much newer than the last keyframe, seconds',
        low=0.0,
        high=3600.0,
        live=True,
    )
    max_cache_mb: int = _parameter(
        4096,
        'memory limit for the state of one camera, megabytes; the history is shortened to fit',
        low=1,
        high=1_000_000,
        live=True,
    )

    def __post_init__(self) -> None:
        for parameter in fields(self):
            object.__setattr__(self, parameter.name, _checked(parameter, getattr(self, parameter.name)))
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f'cameras is {list(self.cameras)}; expected one or more different names.')

    @property
    def static_threshold(self) -> float:
        """A cell is static when hardly any of its values (0 to 255) differs by this: half of change_threshold."""
        return self.change_threshold / 2

    def unknown_camera(self, camera: str) -> str:
        """Error message for a camera that is not configured."""
        return f"There is no camera '{camera}'; known are {', '.join(self.cameras)}."

    def with_values(self, **values: Any) -> 'Config':
        """A checked copy with some values replaced.

        Raises ConfigError for an unknown name, a wrong type, or a value out of range.
        """
        known = {parameter.name for parameter in fields(self)}
        for name in values:
            if name not in known:
                raise ConfigError(f"There is no parameter '{name}'; known are {', '.join(sorted(known))}.")
        return replace(self, **values)


def _checked(parameter: Field, value: Any) -> Any:
    """The value converted to the parameter's type. Raises ConfigError with the expected type or range."""
    name, expected = parameter.name, type(parameter.default)
    if expected is tuple and isinstance(value, (list, tuple)) and all(isinstance(item, str) and item for item in value):
        value = tuple(value)
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        kind = 'list of names' if expected is tuple else expected.__name__
        raise ConfigError(f'{name} is {value!r}; expected a {kind}.')
    low, high, choices = (parameter.metadata[key] for key in ('low', 'high', 'choices'))
    if low is not None and not low <= value <= high:
        raise ConfigError(f'{name} is {value}; expected {low} to {high}.')
    if choices and value not in choices:
        raise ConfigError(f"{name} is '{value}'; expected one of {', '.join(choices)}.")
    return value
