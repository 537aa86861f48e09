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

"""What the model runs on: processor, device, MLX's build, precision, memory."""

import platform
import subprocess
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx.utils import tree_flatten

from vlm_reuse_node import __version__
from vlm_reuse_node.model.device_memory import working_set_bytes
from vlm_reuse_node.model.vlm import Vlm

MB = 1e6
BACKENDS = ('mlx-metal', 'mlx-cuda-13', 'mlx-cuda-12', 'mlx-cuda', 'mlx-cpu')
NEURAL = 'kernels for the neural accelerators of an M5, on macOS 26'


@dataclass(frozen=True)
class Machine:
    """What the model runs on. Sizes are in megabytes; 0: not known.

    device: what MLX computes on. build: MLX's build, on Apple silicon with the Metal library of its wheel.
    device_mb: what a program should use on the device. memory_mb: of the machine. available_mb: what was left of that
    with the model loaded, before the check.
    """

    system: str
    processor: str
    device: str
    build: str
    versions: dict[str, str]
    device_mb: float
    memory_mb: float
    available_mb: float


@dataclass(frozen=True)
class ModelFacts:
    """The model as it is loaded. precision: such as 'float32' or '4-bit affine, bfloat16'.

    context: tokens; None: not known.
    """

    name: str
    model_type: str
    family: str
    precision: str
    weights_mb: float
    context: int | None


def this_machine() -> Machine:
    """Look at this machine. Nothing that names it is told."""
    device = mx.default_device()
    info = mx.device_info()
    name = str(info.get('device_name', '')) if device.type == mx.gpu else 'CPU'
    versions = {'vlm_reuse_node': __version__, 'python': platform.python_version()}
    versions |= {package: version for package in ('mlx', 'mlx-vlm') if (version := _version(package))}
    return Machine(
        f'{_system()}, {platform.machine()}, {psutil.cpu_count()} cores',
        processor_name(),
        name or 'GPU',
        mlx_build(),
        versions,
        working_set_bytes() / MB,
        psutil.virtual_memory().total / MB,
        psutil.virtual_memory().available / MB,
    )


def model_facts(vlm: Vlm) -> ModelFacts:
    """Look at a loaded model."""
    weights: Any = tree_flatten(vlm._model.parameters())
    family = type(vlm.family).__module__.rpartition('.')[2]
    return ModelFacts(
        vlm.name,
        str(getattr(vlm._model.config, 'model_type', '')),
        family,
        _precision(vlm._model, [array for _, array in weights]),
        sum(array.nbytes for _, array in weights) / MB,
        vlm.context,
    )


def peak_mb() -> float:
    """The most that MLX's arrays took so far."""
    return mx.get_peak_memory() / MB


def mlx_build() -> str:
    """MLX's build: which Metal library its wheel holds, or CUDA, or CPU."""
    for package in BACKENDS:
        if not (version := _version(package)):
            continue
        kind = package.removeprefix('mlx-')
        if kind != 'metal':
            return f'{kind.upper().replace("-", " ")} build ({package} {version})'
        library = wheel_platform(metadata.distribution(package))
        return f'Metal, library of {library}' + (f': {NEURAL}' if library.startswith('macosx_26') else '')
    return 'Metal' if mx.metal.is_available() else 'unknown build'


def wheel_platform(distribution: metadata.Distribution) -> str:
    """The platform that a wheel was built for, such as macosx_26_0_arm64, from its WHEEL file."""
    for line in (distribution.read_text('WHEEL') or '').splitlines():
        if line.startswith('Tag:'):
            return line.rpartition('-')[2].strip()
    return 'an unknown wheel'


def processor_name() -> str:
    """What the processor is sold as."""
    try:
        if platform.system() == 'Darwin':
            command = ['sysctl', '-n', 'machdep.cpu.brand_string']
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, subprocess.SubprocessError, StopIteration):
        return platform.processor() or platform.machine()


def _precision(model: Any, weights: list[mx.array]) -> str:
    """The quantisations, and the type of most other weights."""
    quantised = {
        f'{module.bits}-bit {getattr(module, "mode", "")}'.strip()
        for _, module in model.named_modules()
        if hasattr(module, 'bits') and hasattr(module, 'group_size')
    }
    sizes: Counter[str] = Counter()
    for array in weights:
        if mx.issubdtype(array.dtype, mx.floating):
            sizes[str(array.dtype).rpartition('.')[2]] += array.nbytes
    return ', '.join([*sorted(quantised), *(name for name, _ in sizes.most_common(1))])


def _system() -> str:
    return f'macOS {platform.mac_ver()[0]}' if platform.system() == 'Darwin' else platform.system()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ''
