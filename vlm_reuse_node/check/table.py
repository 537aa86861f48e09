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

"""A report as text of at most 80 columns."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from vlm_reuse_node.check.claim import Claim, Mark
from vlm_reuse_node.check.lines import LONGEST, WIDTH, cut
from vlm_reuse_node.check.report import Report
from vlm_reuse_node.check.stages import Stage
from vlm_reuse_node.plain_text import one_line

HEAD = ('', 'equal', 'log-prob apart', 'noise up to', 'restored', '')
SIZES = (12, 9, 14, 11, 9, 13)
SIZE_WIDTHS = (7, 8, 10, 8, 8, 8, 6)
NOISY = 0.5  # log-probabilities: noise above this hides what a planner would see
NONE = '-'
LONGEST_WHY = 1000


def table_lines(report: Report) -> list[str]:
    """Return the whole table, each line at most WIDTH wide."""
    lines: list[str] = []
    for title, part in (
        (f'Check of {one_line(report.model.name, LONGEST)}', _about(report)),
        ('Is a warm answer the cold one?', _claims(report)),
        ('Milliseconds of each stage (medians)', _stages(report.stages)),
        ('The picture at other sizes (visual_tokens; ms, MB of the state)', _sizes(report)),
        ('What that gives, and memory', _rates(report)),
        ('Suggested parameters', _suggestions(report)),
    ):
        if found := list(part):
            lines += [title, '-' * len(title), *found, '']
    return [cut(line.rstrip()) for line in [*lines, *_verdict(report)]]


def _about(report: Report) -> Iterator[str]:
    model, machine, pictures = report.model, report.machine, report.pictures
    context = f', context of {model.context} tokens' if model.context else ''
    yield from _named('model', f'{model.model_type}, {model.precision}, {model.weights_mb:.0f} MB{context}')
    yield from _named('processor', f'{machine.processor}, {machine.memory_mb / 1e3:.0f} GB')
    device = f'{machine.device}, {machine.device_mb / 1e3:.0f} GB' if machine.device_mb else machine.device
    yield from _named('device', device)
    yield from _named('system', machine.system)
    yield from _named(
        'MLX', f'{machine.build}; ' + ', '.join(f'{name} {each}' for name, each in _mlx(machine.versions))
    )
    rows, columns = pictures.cells
    size = f'{pictures.width} x {pictures.height}, {rows * columns} cells ({rows} x {columns})'
    yield from _named('pictures', f'{pictures.different} {one_line(pictures.source, LONGEST)}, {size}')


def _mlx(versions: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, each) for name, each in versions.items() if name.startswith('mlx')]


def _claims(report: Report) -> Iterator[str]:
    yield _row(HEAD)
    for claim in report.claims:
        yield _row(_claim_cells(claim))
    yield ''
    for claim in report.claims:
        for fault in claim.faults:
            yield from _wrapped(f'FAULT  {claim.name}: ', one_line(fault, 400))
    for reason, names in _reasons(report.claims):
        yield from _wrapped(f'{", ".join(names)}: ', one_line(reason, 300))
    for claim in report.claims:
        if claim.is_measurement and claim.asked:
            drifted = claim.asked - claim.equal
            yield from _wrapped(
                f'{claim.name}: ',
                f'{drifted} of {claim.asked} answers differ from cold ones. This is a measurement, no fault: patches '
                'are approximate. calibrate measures their drift on a recording.',
            )
    noise = max((each.bound for claim in report.claims if (each := claim.worst_score)), default=0.0)
    if noise > NOISY:
        yield from _wrapped(
            'noise: ',
            f'{report.model.precision} moves log-probabilities by up to {noise:.2g} here. Smaller faults cannot be '
            'told from it; tokens, restored states and passes are compared all the same.',
        )


def _claim_cells(claim: Claim) -> Sequence[str]:
    worst = claim.worst_score
    ties = f' ~{claim.ties}' if claim.ties else ''
    return (
        claim.name,
        f'{claim.equal} of {claim.asked}{ties}' if claim.asked else NONE,
        f'{worst.apart:.1e}' if worst else NONE,
        f'{worst.bound:.1e}' if worst else NONE,
        f'{claim.restored} of {claim.restored_of}' if claim.restored_of else NONE,
        str(claim.mark),
    )


def _reasons(claims: Iterable[Claim]) -> Iterator[tuple[str, list[str]]]:
    """Each reason why a claim is not available, with the claims that it is for."""
    found: dict[str, list[str]] = {}
    for claim in claims:
        if claim.mark == Mark.NOT_AVAILABLE:
            found.setdefault(claim.reason, []).append(claim.name)
    yield from found.items()


def _stages(stages: Sequence[Stage]) -> Iterator[str]:
    for stage in stages:
        passes = f'{stage.passes} pass{"es" * (stage.passes > 1)}' if stage.passes else ''
        yield f'  {stage.name:<19} {stage.amount:>11} {stage.ms:>9.1f}  {passes:<9} {stage.about}'


def _sizes(report: Report) -> Iterator[str]:
    if report.sizes:
        titles = 'visual_tokens', 'tokens', '640x480', '1920x1080', 'vision', 'frame', 'cold', 'MB'
        yield _size_row(titles)
    for size in report.sizes:
        times = (size.vision_ms, size.frame_ms, size.cold_ms, size.picture_mb)
        numbers = (NONE if each is None else f'{each:.1f}' for each in times)
        yield _size_row([size.visual_tokens or 'as it is', size.cells, size.cells_480, size.cells_1080, *numbers])
    if report.sizes_note:
        yield from _wrapped('  ', one_line(report.sizes_note, 300))


def _size_row(cells: Iterable[object]) -> str:
    first, *others = map(str, cells)
    return '  ' + ' '.join([first.ljust(13), *(cell.rjust(size) for cell, size in zip(others, SIZE_WIDTHS))])


def _rates(report: Report) -> Iterator[str]:
    for name, each in report.rates.items():
        yield f'  {name:<34} {_count(each):>9} a second'
    if fits := report.memory:
        yield f'  {"weights":<34} {fits.weights_mb:>9.0f} MB'
        yield f'  {"a picture in the state":<34} {fits.picture_mb:>9.2f} MB, {fits.picture_tokens} tokens'
        yield f'  {"most that was held here":<34} {fits.peak_mb:>9.0f} MB'
        yield f'  {"room beside the weights":<34} {fits.room_mb:>9.0f} MB'


def _count(number: float) -> str:
    return f'{number:.0f}' if number >= 100 else f'{number:.2g}'


def _suggestions(report: Report) -> Iterator[str]:
    if not report.suggestions:
        return
    yield '/**:'
    yield '  ros__parameters:'
    for each in report.suggestions:
        line, why = f'    {each.name}: {_yaml(each.value)}', one_line(each.why, LONGEST_WHY)
        if len(line) > WIDTH:
            yield f'    # {each.name}: as you gave it; it is too long for this table'
        elif len(line) + 4 + len(why) > WIDTH:
            yield from (f'    # {part}' for part in textwrap.wrap(why, WIDTH - 6))
            yield line
        else:
            yield f'{line}  # {why}'


def _yaml(value: str | float) -> str:
    """A value as YAML takes it, in one line."""
    if not isinstance(value, str):
        return str(value)
    return value if value.isalpha() else "'" + one_line(value, 2 * WIDTH).replace("'", "''") + "'"


def _verdict(report: Report) -> Iterator[str]:
    seconds = f'{report.seconds:.0f} s'
    if report.is_trusted:
        held = sum(claim.mark == Mark.PASS for claim in report.claims)
        yield f'PASS   every claim held ({held} of {held}; {seconds})'
    else:
        failed = sum(claim.mark == Mark.FAULT for claim in report.claims)
        yield f'FAULT  do not trust this model here: {failed} claims failed ({seconds})'


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return '  ' + ' '.join([first.ljust(SIZES[0]), *(cell.rjust(size) for cell, size in zip(others, SIZES[1:]))])


def _named(name: str, text: str) -> Iterator[str]:
    yield from _wrapped(f'  {name:<10} ', one_line(text, 300))


def _wrapped(start: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=' ' * min(len(start), 13))
