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

"""How long a call takes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T')


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Call; return the milliseconds it took, and its result."""
    started = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - started), result


def wall_and_cpu_ms(call: Callable[[], object]) -> tuple[float, float]:
    """Call; return the milliseconds it took on the clock, and of this process on the processor."""
    wall_s = time.perf_counter()
    cpu_s = time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall_s), 1e3 * (time.process_time() - cpu_s)
