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

"""The replay's table in the terminal: one line for each arm, and the verdict."""

from vlm_reuse_node.replay.conclusion import floor_sentence
from vlm_reuse_node.replay.figures import NO_VALUE, factor, milliseconds, paid_text, span_text
from vlm_reuse_node.replay.keep_up import keep_up_lines
from vlm_reuse_node.replay.support import support_lines
from vlm_reuse_node.replay.verdict import sentence, verdict

COLUMNS = (
    ('arm', 12),
    ('total work', 10),
    ('in tokens', 9),
    ('answers', 9),
    ('remembered', 10),
    ('median ms', 9),
    ('p95 ms', 8),
    ('speedup', 8),
    ('drift', 10),
    ('95 % interval', 18),
    ('right', 10),
    ('picture paid', 12),
)


def table_lines(results: dict) -> list[str]:
    """Return the titles, a line for each arm, and how far apart two measurements of the same time are."""
    titles = [name.ljust(size) if name == 'arm' else name.rjust(size) for name, size in COLUMNS]
    rows = ('  '.join(_padded(cells(results, arm))) for arm in results['counts'])
    return ['  '.join(titles), *rows, floor_sentence(results['times']['floor'])]


def cells(results: dict, arm: str) -> list[str]:
    """Return an arm's figures as text, in the order of COLUMNS."""
    counts = results['counts'][arm]
    times = results['times']['arms'][arm]
    drift = results['ratios'][arm]['drift']
    looks = counts['looks']
    return [
        arm,
        factor(times.get('work_ratio')),
        factor(results['ratios'][arm]['work_tokens_ratio']),
        f'{counts["statuses"].get("OK", 0)} of {counts["asked"]}',
        f'{counts["remembered"]}',
        milliseconds(times.get('median_ms')),
        milliseconds(times.get('p95_ms')),
        factor(times.get('speedup')),
        f'{counts["drifted"]} of {counts["pairs"]}',
        span_text(drift['low'], drift['high']),
        f'{counts["right"]} of {counts["judged"]}' if counts['judged'] else NO_VALUE,
        paid_text(looks['visual_tokens_refreshed'], looks['visual_tokens']) if looks else NO_VALUE,
    ]


def verdict_lines(results: dict) -> list[str]:
    """Return the policy that the recording supports, the figures of the verdict, what they mean, and the live rates."""
    figures = (f'{each["figure"]} {each["label"]}.' for each in verdict(results))
    return [*support_lines(results), *figures, sentence(results), *keep_up_lines(results)]


def _padded(row: list[str]) -> list[str]:
    return [text.ljust(size) if name == 'arm' else text.rjust(size) for text, (name, size) in zip(row, COLUMNS)]
