"""The replay's table for people: one line for each arm, and the verdict."""

from vlm_reuse_node.replay.figures import NO_VALUE, factor, milliseconds, paid_text, span_text
from vlm_reuse_node.replay.verdict import sentence, verdict

COLUMNS = (
    ('arm', 12),
    ('answers', 9),
    ('median ms', 9),
    ('p95 ms', 8),
    ('speedup', 8),
    ('with upkeep', 11),
    ('drift', 10),
    ('95 % interval', 18),
    ('right', 10),
    ('picture paid', 12),
)


def table_lines(results: dict) -> list[str]:
    """Titles and a line for each arm."""
    titles = [name.ljust(size) if name == 'arm' else name.rjust(size) for name, size in COLUMNS]
    return ['  '.join(titles), *('  '.join(_padded(cells(results, arm))) for arm in results['counts'])]


def cells(results: dict, arm: str) -> list[str]:
    """An arm's figures as text, in the order of COLUMNS."""
    counts, times, ratios = (part[arm] for part in (results['counts'], results['times']['arms'], results['ratios']))
    answered, looks = counts['statuses'].get('OK', 0), counts['looks']
    row = [arm, f'{answered} of {counts["asked"]}']
    row += [milliseconds(times.get(name)) for name in ('median_ms', 'p95_ms')]
    row += [factor(times.get(name)) for name in ('speedup', 'whole_speedup')]
    row += [f'{counts["drifted"]} of {counts["pairs"]}', span_text(ratios['drift']['low'], ratios['drift']['high'])]
    row.append(f'{counts["right"]} of {counts["judged"]}' if counts['judged'] else NO_VALUE)
    row.append(paid_text(looks['visual_tokens_refreshed'], looks['visual_tokens']) if looks else NO_VALUE)
    return row


def verdict_lines(results: dict) -> list[str]:
    """The figures of the verdict, and what they mean."""
    return [*(f'{each["figure"]} {each["label"]}.' for each in verdict(results)), sentence(results)]


def _padded(row):
    return [text.ljust(size) if name == 'arm' else text.rjust(size) for text, (name, size) in zip(row, COLUMNS)]
