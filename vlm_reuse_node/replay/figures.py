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

"""Figures as text: a share is never written as 0 % or 100 % unless it is exactly that."""

from vlm_reuse_node.scene.overlay import percent

NO_VALUE = '–'
__all__ = [
    'NO_VALUE',
    'counted',
    'factor',
    'milliseconds',
    'paid_text',
    'percent',
    'p_text',
    'seconds',
    'share_text',
    'span_text',
]


def share_text(share: float | None) -> str:
    """Write a share between 0 and 1 that is no count, such as the bound of an interval."""
    if share is None:
        return NO_VALUE
    if share in (0, 1):
        return f'{share:.0%}'.replace('%', ' %')
    if share < 0.001:
        return '< 0.1 %'
    if share > 0.999:
        return '> 99.9 %'
    digits = 1 if share < 0.1 or share > 0.9 else 0
    return f'{100 * share:.{digits}f} %'


def paid_text(count: int, total: int) -> str:
    """Write computed visual tokens as a share of all; it is above 100 % where pictures were computed again."""
    if count <= total:
        return percent(count, total)
    return f'{100 * count / total:.0f} %' if count >= 1.01 * total else '> 100 %'


def counted(count: int, total: int) -> str:
    """Write a share with the counts it comes from."""
    return f'{count} of {total} ({percent(count, total)})' if total else 'none to count'


def span_text(low: float | None, high: float | None) -> str:
    """Write an interval of shares."""
    return NO_VALUE if low is None or high is None else f'{share_text(low)} to {share_text(high)}'


def seconds(ms: float) -> str:
    """Write a time in milliseconds as seconds."""
    return f'{ms / 1e3:.2f} s' if ms < 1e5 else f'{ms / 1e3:,.0f} s'


def factor(value: float | None) -> str:
    """Write how many times as fast, or as much, something is."""
    if value is None:
        return NO_VALUE
    return f'{value:.2f} ×' if value < 3 else f'{value:.1f} ×' if value < 30 else f'{value:.0f} ×'


def milliseconds(value: float | None) -> str:
    """Write a time in milliseconds, with two to four digits."""
    if value is None:
        return NO_VALUE
    return f'{value:.2f}' if value < 1 else f'{value:.1f}' if value < 100 else f'{value:,.0f}'


def p_text(p: float, limit: float = 0.05) -> str:
    """Write the p of a McNemar test, and whether it is significant."""
    return f'McNemar p {"< 0.001" if p < 0.001 else f"= {p:.3g}"}, {"significant" if p < limit else "not significant"}'
