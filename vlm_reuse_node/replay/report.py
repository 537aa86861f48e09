"""One self-contained page about a replay: everything is computed here and in `plots`, the template only places it."""

from base64 import b64encode
from pathlib import Path
from textwrap import shorten

from jinja2 import Environment, StrictUndefined

from vlm_reuse_node.replay import plots
from vlm_reuse_node.replay.arms import POLICY
from vlm_reuse_node.replay.compare import arm_sentence
from vlm_reuse_node.replay.figures import NO_VALUE, counted, factor, share_text, span_text
from vlm_reuse_node.replay.metrics import STAGES, Rows
from vlm_reuse_node.replay.rows import differs
from vlm_reuse_node.replay.table import COLUMNS, cells
from vlm_reuse_node.replay.verdict import DENOMINATOR, EXACT, negatives, sentence, verdict

TEMPLATE = Path(__file__).with_name('report.html')
MOST_CAMERAS, MOST_DRIFTED, LONGEST_ANSWER = 6, 24, 120
# Arms whose drift is shown by age and type: those that keep a state.
KEEPING = 'default', 'patch', 'frame', 'reuse', 'mlx-vlm'


def write_report(results: dict, path: Path, folders: dict[str, Path], videos: list[str]) -> None:
    """Write the page. folders: where each bag's pictures are. videos: names of the overlays beside the page."""
    path.write_text(render(results, folders, videos), encoding='utf-8')


def render(results: dict, folders: dict[str, Path], videos: list[str]) -> str:
    """The page as HTML; every text in it is escaped."""
    rows = Rows(
        results[kind][number]
        for kind in ('questions', 'answers', 'pictures', 'bags')
        for number in range(len(results[kind]))
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding='utf-8')).render(
        denominator=DENOMINATOR,
        verdicts=verdict(results),
        sentence=sentence(results),
        about=_about(results),
        columns=[name for name, _ in COLUMNS],
        arms=[_arm_view(results, arm) for arm in results['counts']],
        figures=_figures(results, rows),
        ceilings=_ceilings(results),
        exactness=_exactness(results),
        drifted=_drifted(rows, folders),
        shown_of=_drift_total(rows),
        comparison=_comparison(results['comparison']),
        negatives=negatives(results),
        videos=videos,
        settings=_settings(results),
    )


def _about(results: dict) -> str:
    """What was replayed, in one line."""
    looks = [row for row in results['pictures'] if row['arm'] == POLICY]
    pictures = {(row['bag'], row['camera'], row['picture_s']) for row in looks}
    last_s: dict[str, float] = {}  # from rows, which a stopped run has too
    for bag, _, picture_s in pictures:
        last_s[bag] = max(last_s.get(bag, 0.0), picture_s)
    bags, cameras, seconds = len(last_s), len({key[:2] for key in pictures}), sum(last_s.values())
    text = (
        f'{bags} bag{"s" * (bags != 1)}, {cameras} camera{"s" * (cameras != 1)}, {len(pictures):,} pictures over '
        f'{seconds:,.0f} s, {len(results["questions"])} questions, model {results["settings"]["model"]}'
    )
    return text if results['complete'] else f'{text}. Not complete'


def _arm_view(results: dict, arm: str) -> dict:
    return {
        'name': arm,
        'sees': results['arms'][arm]['sees'],
        'cells': list(zip([name for name, _ in COLUMNS], cells(results, arm)))[1:],
    }


# --- plots ------------------------------------------------------------------------------------------------------------


def _figures(results: dict, rows: Rows) -> list[dict]:
    """The plots with their captions, in the order of the page."""
    times, figures = plots.arms_to_show(results['times']['arms']), []
    values = {arm: [row['times']['total_ms'] for _, row, _ in rows.pairs(arm)] for arm in times}

    def add(title, svg, caption):
        figures.append({'title': title, 'svg': svg, 'caption': caption})

    if values:
        add('How long an answer takes', plots.latency(values), 'Every answer is a dot. The axis is logarithmic.')
    for bag, camera in _cameras(rows)[:MOST_CAMERAS]:
        name = '' if len(_cameras(rows)) == 1 else f': {bag}, {camera}'
        add(
            f'What was paid for, over time{name}',
            plots.over_time(rows, bag, camera),
            (
                f'Arm {POLICY}. The line is the refresh ratio; of N pictures 1 + (N - 1) times the ratio were computed '
                f'in effect, here {results["ratios"][POLICY]["effective_pictures"]:.1f} of '
                f'{results["counts"][POLICY]["looks"]["pictures"]}.'
            ),
        )
    keeping = {arm: results['counts'][arm] for arm in KEEPING if arm in results['counts']}
    kinds = sorted({row['kind'] for row in rows.questions})
    for what, key, order in (
        ('age of what the answer was given from', 'by_age', plots.ages_order()),
        ('type of question', 'by_kind', kinds),
    ):
        groups = {arm: counts[key] for arm, counts in keeping.items()}
        order = [group for group in order if any(group in counts for counts in groups.values())]
        if order:
            add(
                f'Drift by {what}',
                plots.drift(groups, key, order),
                (
                    f'Against {DENOMINATOR}; exact 95 % intervals. mlx-vlm does not tell which picture it answers '
                    'from, so it counts as the newest.'
                    if key == 'by_age'
                    else f'Against {DENOMINATOR}; exact 95 % intervals.'
                ),
            )
    if times:
        add(
            'Where the time goes',
            plots.stages(times),
            (
                'Vision, prefill and decode of one answer; black: what it would take if every stage cost as much for '
                'each token as in cold-dense.'
            ),
        )
    if sessions := plots.with_sessions(times):
        add(
            'From how many questions on it pays',
            plots.sessions(sessions),
            (
                'Setup-inclusive: one picture is computed and asked about n times, against n times cold-dense; from '
                'medians.'
            ),
        )
    if rows.looks(POLICY):
        add('Memory', plots.memory(rows), f'Arm {POLICY}; bags one after the other.')
    return figures


def _cameras(rows: Rows) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row['bag'], row['camera']) for row in rows.looks(POLICY)))


def _ceilings(results: dict) -> list[dict]:
    """Stage shares in cold-dense, and for each arm the predicted and the measured speedup."""
    views = []
    for arm, times in results['times']['arms'].items():
        if not times['pairs'] or not times['ceiling']:
            continue
        stages, ceiling = times['stages_ms'], times['ceiling']
        total = sum(stages.values())
        shares = [share_text(max(0.0, stages[stage]) / total) for stage in STAGES]
        views.append(
            {
                'arm': arm,
                'shares': shares,
                'predicted': factor(ceiling['predicted_speedup']),
                'measured': factor(ceiling['measured_speedup']),
                'residual': f'{ceiling["residual_ms"] / times["pairs"]:+,.1f}',
            }
        )
    return views


# --- drift ------------------------------------------------------------------------------------------------------------


def _exactness(results: dict) -> list[str]:
    """What the noise floor and the cached pictures say about exactness."""
    lines, counts, ratios = [], results['counts'], results['ratios']
    if 'cold-again' in counts:
        floor = counts['cold-again']
        lines.append(
            f'Noise floor: cold-dense asked again differs in {counted(floor["drifted"], floor["pairs"])}, '
            f'{_score(ratios["cold-again"])}.'
        )
    if against := counts[POLICY]['against_cached']:
        drift = ratios[POLICY]['against_cached']['drift']
        lines.append(
            f'Exactness: default differs from cold-dense on the very pictures it has cached in '
            f'{counted(against["drifted"], against["pairs"])}, with 95 % confidence '
            f'{span_text(drift["low"], drift["high"])}.'
        )
    for arm in EXACT:
        if arm in counts and counts[arm]['same_pictures']:
            same = counts[arm]
            lines.append(
                f'{arm}: where its pictures were those of cold-dense, it differs in '
                f'{counted(same["same_pictures_drifted"], same["same_pictures"])}, {_score(ratios[arm])}.'
            )
    return lines


def _score(ratios: dict) -> str:
    largest = ratios['largest_score_difference']
    return (
        'no choices to compare'
        if largest is None
        else (f"choices' probabilities by at most {largest:.2g}" if largest else "choices' probabilities are the same")
    )


def _drift_rows(rows: Rows) -> list[tuple[dict, dict, dict]]:
    return [each for arm in KEEPING if arm in rows.of for each in rows.pairs(arm) if differs(*each[1:])]


def _drift_total(rows: Rows) -> int:
    return len(_drift_rows(rows))


def _drifted(rows: Rows, folders: dict[str, Path]) -> list[dict]:
    """The first drifted answers of arms that keep a state, those with pictures first."""
    found = []
    for question, row, reference in _drift_rows(rows):
        stem = folders[row['bag']] / 'pictures' / f'{row["question"]:04d}.{row["arm"]}'
        files = [stem.with_name(f'{stem.name}.{name}.jpg') for name in ('newest', 'cached')]
        found.append(
            {
                'arm': row['arm'],
                'question': question['text'],
                'choices': ' / '.join(question['choices']),
                'at': f'{question["at_s"]:.1f} s, {question["kind"]}',
                'truth': question['truth'] or NO_VALUE,
                'cold': shorten(reference['text'], LONGEST_ANSWER, placeholder=' …'),
                'own': shorten(row['text'], LONGEST_ANSWER, placeholder=' …'),
                'level': row['level'],
                'newest_s': f'{reference["pictures_s"][-1]:.2f} s',
                'cached_s': f'{row["pictures_s"][-1]:.2f} s',
                'pictures': [_uri(file) for file in files] if all(file.exists() for file in files) else [],
            }
        )
    found.sort(key=lambda each: not each['pictures'])
    return found[:MOST_DRIFTED]


def _uri(file: Path) -> str:
    return f'data:image/jpeg;base64,{b64encode(file.read_bytes()).decode()}'


def _comparison(comparison: dict | None) -> dict | None:
    if not comparison:
        return None
    return {
        'questions': comparison['questions_in_common'],
        'settings': comparison['settings'],
        'other_pictures': comparison['other_pictures'],
        'arms': [(arm, arm_sentence(comparison, arm)) for arm in comparison['arms']],
    }


def _settings(results: dict) -> list[tuple[str, str]]:
    """What the figures belong to."""
    settings, times = results['settings'], results['times']
    chosen = settings['selection']
    part = f'from {chosen["start_s"]:g} s on, {chosen["duration_s"]} s long'
    if chosen['rate_limit_hz']:
        part += f', at most {chosen["rate_limit_hz"]:g} pictures a second'
    lines = [
        ('model', f'{settings["model"]}, fingerprint {settings["model_fingerprint"]}'),
        ('part', part),
        ('window of low-rate', f'{settings["window_s"]:g} s'),
        *((f'bag {bag["bag"]}', _bag_line(bag)) for bag in results['bags']),
    ]
    lines += [(name, str(number)) for name, number in settings['versions'].items()]
    lines += [(name, times[name]) for name in ('made', 'machine') if name in times]
    if 'wall_s' in times:
        lines.append(('took', f'{times["wall_s"]:,.0f} s, {times["cpu_s"]:,.0f} s of processor time in this process'))
    values = ', '.join(f'{name} {value}' for name, value in settings['config'].items() if value != '')
    return [*lines, ('parameters', values)]


def _bag_line(bag: dict) -> str:
    cameras = [
        f'{each["topic"]}: {each["pictures_used"]} of {each["pictures_read"]} pictures replayed'
        + ''.join(f', {count} {why}' for why, count in each['pictures_left_out'].items())
        + ''.join(f', {count} refused ({why})' for why, count in each['pictures_refused'].items())
        for each in bag['cameras']
    ]
    return f'{"; ".join(cameras)}; {bag["seconds"]:.1f} s; digest {bag["frames_digest"]}'
