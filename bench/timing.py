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

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from vlm_reuse_node.model.vlm import Vlm

T = TypeVar('T')


@dataclass(frozen=True)
class Run:
    """A timed call.

    ms: on the clock. cpu_ms: of this process on the processor. passes: calls of the language model.
    result: of the call.
    """

    ms: float
    cpu_ms: float
    passes: int
    result: Any


# Prepares a call, and times it alone.
Arm = Callable[[], Run]


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


def run(vlm: Vlm, call: Callable[[], Any]) -> Run:
    """Call, and count the passes of this model too."""
    results = []
    before = vlm.meter.done.passes
    times = wall_and_cpu_ms(lambda: results.append(call()))
    return Run(*times, vlm.meter.done.passes - before, results[0])


def in_random_order(arms: Mapping[str, Arm], rounds: int, chance: random.Random) -> dict[str, list[Run]]:
    """Run each arm once in every round, in another order each time. A first round warms up and does not count."""
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in chance.sample(list(arms), len(arms)):
            result = arms[name]()
            if number:
                runs[name].append(result)
    return runs


def medians(name: str, runs: list[Run]) -> dict[str, float | None]:
    """Return the medians of both times, by name; None without a run."""
    return {
        f'{name}_ms': median(each.ms for each in runs) if runs else None,
        f'{name}_cpu_ms': median(each.cpu_ms for each in runs) if runs else None,
    }
