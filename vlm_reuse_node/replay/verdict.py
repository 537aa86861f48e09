"""What the figures of a replay mean, in words: the first screen of the report, and what speaks against the engine."""

from vlm_reuse_node.replay.arms import POLICY, REFERENCE
from vlm_reuse_node.replay.figures import counted, factor, milliseconds, p_text, paid_text, share_text, span_text

# Arms that say which pictures are in their prompt: on the same ones they answer as cold-dense does, or are not exact.
EXACT = 'default', 'frame', 'reuse', 'newest'
DENOMINATOR = 'cold-dense on the newest picture'


def verdict(results: dict) -> list[dict]:
    """The three figures, each with its unit and what it is a share of: speed, drift, and what was paid for."""
    return [_speed(results), _drift(results), _paid(results)]


def _speed(results):
    times = results['times']['arms'][POLICY]
    if not times['pairs']:
        return {'figure': 'no pair', 'label': 'No question was answered by both default and cold-dense.'}
    span = (
        ''
        if times['speedup_low'] is None
        else (
            f' (95 % interval {factor(times["speedup_low"])} to {factor(times["speedup_high"])}'
            f'{", which includes 1" if _may_be_chance(times) else ""})'
        )
    )
    return {
        'figure': factor(times['speedup']),
        'label': (
            f'as fast as {DENOMINATOR}{span}: median answer {milliseconds(times["median_ms"])} ms against '
            f'{milliseconds(times["cold_median_ms"])} ms, n = {times["pairs"]}; with the pictures computed between '
            f'questions counted too {factor(times["whole_speedup"])}'
        ),
    }


def _drift(results):
    drift, counts = results['ratios'][POLICY]['drift'], results['counts'][POLICY]
    label = f'answers that drifted from {DENOMINATOR}: {span_text(drift["low"], drift["high"])} with 95 % confidence'
    if counts['judged_pairs']:
        changed = counts['lost'] + counts['gained']
        label += (
            f'; of {counts["judged_pairs"]} with a known truth {changed} changed between right and wrong '
            f'({counts["lost"]} lost, {counts["gained"]} gained)'
        )
    floor = results['counts'].get('cold-again')
    if floor and floor['drifted']:
        label += f'; noise floor: cold-dense asked again changed {counted(floor["drifted"], floor["pairs"])}'
    return {'figure': f'{counts["drifted"]} of {counts["pairs"]}', 'label': label}


def _paid(results):
    looks = results['counts'][POLICY]['looks']
    if not looks:
        return {'figure': 'none', 'label': 'No picture was looked at.'}
    levels = ', '.join(f'{name} {count}' for name, count in looks['levels'].items())
    return {
        'figure': paid_text(looks['visual_tokens_refreshed'], looks['visual_tokens']),
        'label': (
            f'of the picture paid for: {looks["visual_tokens_refreshed"]:,} of {looks["visual_tokens"]:,} visual '
            f'tokens in {looks["pictures"]:,} pictures ({levels})'
        ),
    }


def sentence(results: dict) -> str:
    """One sentence that says what the three figures mean."""
    times, drift = results['times']['arms'][POLICY], results['ratios'][POLICY]['drift']
    if not times['pairs']:
        return 'Too little was answered to tell whether keeping the state pays.'
    faster = (
        f'A planner waits {milliseconds(times["median_ms"])} ms instead of '
        f'{milliseconds(times["cold_median_ms"])} ms for an answer'
    )
    if times['speedup'] <= 1:
        faster = 'The median answer from the kept state was no faster on this bag'
    elif _may_be_chance(times):
        faster += ', a difference that chance alone could make'
    if drift['share'] == 0:
        return (
            f'{faster}, and none of {drift["n"]} answers changed; with so many questions that is up to '
            f'{share_text(drift["high"])} that may still change.'
        )
    return (
        f'{faster}, and about {share_text(drift["share"])} of the answers (at most {share_text(drift["high"])}) '
        'are other ones than on a fresh picture.'
    )


def _may_be_chance(times):
    return times['speedup_low'] is not None and times['speedup_low'] <= 1 <= times['speedup_high']


def negatives(results: dict) -> list[str]:
    """Everything that speaks against the engine, or against trusting these figures."""
    found = list(results['problems'])
    if not results['complete']:
        found.append('The replay is not complete: some bags or parts of them are missing.')
    found += _noise(results) + _exactness(results) + _slow(results) + _drifted(results) + _unanswered(results)
    return found or ['None: no arm was slower than cold-dense, none drifted, nothing was refused.']


def _noise(results):
    ratios, counts = results['ratios'].get('cold-again'), results['counts'].get('cold-again')
    if not ratios:
        return ['The noise floor was not measured (arm cold-again).']
    if counts['drifted']:
        return [
            f'Cold-dense itself is not reproducible: {counted(counts["drifted"], counts["pairs"])} of its answers '
            'changed when asked again; drift below that says nothing.'
        ]
    return []


def _exactness(results):
    against = results['counts'][POLICY]['against_cached']
    if not against:
        return ['Whether default equals cold-dense on its own pictures was not checked (arm cold-cached).']
    if against['drifted']:
        return [
            f'Default is not exact: {counted(against["drifted"], against["pairs"])} of its answers differ from '
            'cold-dense on the very pictures it has cached.'
        ]
    return []


def _slow(results):
    found = []
    for arm, times in results['times']['arms'].items():
        if not times['pairs'] or arm in (REFERENCE, 'cold-again', 'cold-cached', 'newest'):
            continue
        if times['speedup'] <= 1:
            found.append(
                f'{arm}: the median answer was no faster than that of cold-dense: '
                f'{milliseconds(times["median_ms"])} ms against {milliseconds(times["cold_median_ms"])} ms.'
            )
        if times['keep_up_ms'] and times['whole_speedup'] <= 1 < times['speedup']:
            found.append(
                f'{arm}: with the pictures it computed between the questions it is more work than cold-dense '
                f'at this number of questions ({factor(times["whole_speedup"])}); what it gains is latency.'
            )
        found += [
            f'{arm}: the first question about a new picture is no faster ({factor(each["speedup"])}).'
            for each in times['sessions']
            if each['questions'] == 1 and each['speedup'] <= 1.005
        ]
    return found


def _drifted(results):
    found = []
    for arm, counts in results['counts'].items():
        if arm in (REFERENCE, 'cold-again', 'cold-cached') or not counts['drifted']:
            continue
        drift, judged = results['ratios'][arm]['drift'], results['ratios'][arm]['correctness_drift']
        text = (
            f'{arm}: {counted(counts["drifted"], counts["pairs"])} of its answers drifted from cold-dense '
            f'(at most {share_text(drift["high"])})'
        )
        if counts['lost'] + counts['gained']:
            text += (
                f'; right answers lost: {counts["lost"]}, gained: {counts["gained"]} ({p_text(judged["mcnemar_p"])})'
            )
        if counts['same_pictures_drifted'] and arm in EXACT:
            text += f'; {counts["same_pictures_drifted"]} of them on the very same pictures'
        found.append(f'{text}.')
    return found


def _unanswered(results):
    found = []
    for arm, counts in results['counts'].items():
        missing = {status: count for status, count in counts['statuses'].items() if status != 'OK'}
        if missing:
            kinds = ', '.join(f'{status} {count}' for status, count in missing.items())
            found.append(f'{arm}: {counted(sum(missing.values()), counts["asked"])} questions got no answer ({kinds}).')
        for name, what in (
            ('parse_failure', 'named none of the choices'),
            ('degenerate', 'were empty or repetitive'),
            ('cut', 'were cut at the limit of tokens'),
        ):
            if counts[name]:
                found.append(f'{arm}: {counted(counts[name], counts["asked"])} answers {what}.')
    return found
