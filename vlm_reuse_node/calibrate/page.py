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

"""One self-contained page about a calibration: everything is computed in Python, the template only places it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from vlm_reuse_node.calibrate.measure import Judged, Measured
from vlm_reuse_node.calibrate.sample import SIGNALS, Sample, drift
from vlm_reuse_node.calibrate.verdict import KindVerdict, headline
from vlm_reuse_node.config import Config
from vlm_reuse_node.replay import svg
from vlm_reuse_node.replay.figures import NO_VALUE, counted, share_text, span_text
from vlm_reuse_node.replay.page import render_page
from vlm_reuse_node.session.drift_bounds import DriftCount

TEMPLATE = Path(__file__).with_name('page.html')
HEIGHT = 3.8  # of a plot, inches


def write_page(measured: Measured, found: Sequence[KindVerdict], config: Config, path: Path) -> None:
    """Write the page."""
    limits = measured.calibration.limits
    leasts = limits.min_confidence, limits.min_text_confidence
    kinds = [_kind(*each) for each in zip(found, (measured.choices, measured.texts), leasts, strict=True)]
    page = render_page(
        TEMPLATE,
        headline=headline(list(found)),
        about=_about(measured, config),
        kinds=[kind for kind in kinds if kind['rows']],
        sentences=[(verdict.name, verdict.sentence) for verdict in found],
        limits=list(vars(measured.calibration.limits).items()),
        signals=_signals(measured),
        settings=_settings(measured, config),
        failures=measured.failures.most_common(),
    )
    path.write_text(page, encoding='utf-8')


def _about(measured: Measured, config: Config) -> str:
    names = measured.calibration.recordings
    recordings = names[0] if len(names) == 1 else f'{len(names)} recordings'
    return (
        f'{recordings}, {measured.questions} different questions, model {config.model}. The limits were chosen on '
        'every other stretch; everything below is of the stretches between.'
    )


def _kind(verdict: KindVerdict, judged: Judged, least: float) -> dict:
    """A table and a plot of one kind of question. least: the least confidence of its answers."""
    if not judged.patched:
        return {'rows': []}
    trial, asked = judged.trial, judged.asked_twice
    rows = [
        ('drift of the answers from patched states', _drift_text(drift(s for s in judged.patched if not s.exact))),
        ('different patched states', f'{trial.states}'),
        ('drift of all answers', _drift_text(drift(judged.patched))),
        ('drift of all answers, whole pictures only (exact)', _drift_text(drift(judged.exact))),
        ('given again, because a patched state was not sure', counted(asked.drifted, asked.answers)),
        ("the model's work against cold-dense", f'{trial.work:.2f}, with whole pictures only {trial.exact_work:.2f}'),
    ]
    return {'name': verdict.name, 'rows': rows, 'plot': _plot(verdict.name, judged.unlimited, least)}


def _drift_text(count: DriftCount) -> str:
    low, high = count.bounds
    return (
        f'{counted(count.drifted, count.answers)}; {span_text(low, high)} with 95 % confidence'
        if count.answers
        else NO_VALUE
    )


def _plot(name: str, samples: Sequence[Sample], least: float) -> dict | None:
    """Drift and repeated answers over the least confidence; `least` was chosen. None without patched states."""
    patched = [sample for sample in samples if not sample.exact]
    if not patched:
        return None
    title = f'What a least confidence does to {name}'
    return {
        'title': title,
        'svg': svg.svg_of(f'{name}-confidence', title, partial(_draw, patched, least), HEIGHT),
        'caption': 'Patches without limits: how many answers drifted among those that reach a least confidence, and '
        'how many do not reach it and would be given again from a whole state.',
        'columns': ('least confidence', 'drifted', 'given again'),
        'rows': [_figures(patched, step / 10) for step in range(11)],
    }


def _figures(patched: Sequence[Sample], confidence: float) -> list[str]:
    kept = [sample for sample in patched if sample.confidence >= confidence]
    count = drift(kept)
    again = counted(len(patched) - len(kept), len(patched))
    return [f'{confidence:.1f}', counted(count.drifted, count.answers), again]


def _draw(samples: Sequence[Sample], least: float, figure: Figure) -> None:
    confidences = [number / 100 for number in range(101)]
    kept = [[sample for sample in samples if sample.confidence >= confidence] for confidence in confidences]
    curves = (
        ('% of the kept answers that drifted', [100 * drift(each).share for each in kept], svg.CHANGED),
        ('% of all answers that are given again', [100 * (1 - len(each) / len(samples)) for each in kept], svg.REUSED),
    )
    for axes, (title, shares, colour) in zip(figure.subplots(2, sharex=True), curves, strict=True):
        axes.plot(confidences, shares, color=colour)
        axes.axvline(least, color=svg.SOFT, linestyle=':')
        axes.set_title(title)
        axes.set_ylim(bottom=0)
    figure.axes[-1].set_xlabel('least confidence; dotted: the one that was chosen')


def _signals(measured: Measured) -> list[list[str]]:
    """Of each signal, how well it tells drifted answers from others, for choices and for texts."""
    kinds = measured.choices.signals, measured.texts.signals
    return [
        [name, *(NO_VALUE if (value := kind[name]) is None else f'{value:.2f}' for kind in kinds)] for name in SIGNALS
    ]


def _settings(measured: Measured, config: Config) -> list[tuple[str, str]]:
    model, default = measured.calibration.model, Config()
    fitted = {halo: drift(s for s in samples if not s.exact) for halo, samples in measured.fitted.items()}
    return [
        ('model', f'{config.model}, fingerprint {model.fingerprint}'),
        ('computed', f'{model.precision} on {model.device}, family {model.family}'),
        ('recordings', ', '.join(measured.calibration.recordings)),
        ('pictures read', f'{measured.pictures:,}'),
        ('max_drift', share_text(config.max_drift)),
        *(
            (
                f'chosen on, halo {halo}',
                f'{counted(count.drifted, count.answers)} of the answers from patches without limits drifted',
            )
            for halo, count in fitted.items()
        ),
        (
            'parameters',
            ', '.join(f'{name} {value}' for name, value in vars(config).items() if value != getattr(default, name))
            or 'defaults',
        ),
    ]
