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
