"""The counts of a soak, the figures that follow from them, and what is wrong. No ROS."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

# Memory goes up and down within half a minute, and neighbouring samples are nearly equal. The lowest value of each
# stretch leaves these ups and downs out, and the lowest values of stretches are nearly independent of each other.
SHORTEST_STRETCH = 30  # samples
FEWEST_STRETCHES, MOST_STRETCHES = 4, 12
CONFIDENCE = 0.95
FRAMES_PER_SLOPE = 10_000


@dataclass(frozen=True)
class Sample:
    """The node at one moment.

    seconds: from the first picture. frames: pictures received by then. waiting: questions that wait.
    rss_mb: resident memory without shared_mb, the lowest since the sample before. shared_mb: resident pages that other
    processes may have too: program files, and the DDS segments through which the cameras hand over their pictures.
    """

    seconds: float
    frames: int
    rss_mb: float
    shared_mb: float
    waiting: int


@dataclass(frozen=True)
class Slope:
    """Growth of memory, megabytes per 10,000 pictures received; low_mb, high_mb: its 95 % confidence interval."""

    mb: float
    low_mb: float
    high_mb: float


@dataclass(frozen=True)
class Soak:
    """The counts of one soak; figures that follow from them are properties.

    seconds: from the first picture to the last question. samples: one a second. sent: pictures, by the cameras.
    counts: of the node's cameras together, by name: received, lost, dropped, refused. levels: pictures looked at.
    asked: questions. statuses: their answers, by name. stopped: why it ended early, '' when it did not.
    """

    seconds: float
    warmup_s: float
    samples: Sequence[Sample]
    sent: int
    counts: Mapping[str, int]
    levels: Mapping[str, int]
    asked: int
    statuses: Mapping[str, int]
    answer_ms: Sequence[float]
    stopped: str = ''

    @property
    def frames(self) -> int:
        """Pictures that the node received."""
        return self.counts.get('received', 0)

    @property
    def unanswered(self) -> int:
        """Questions that got neither an answer nor a refusal."""
        return self.asked - sum(self.statuses.values())

    @property
    def warm(self) -> Sequence[Sample]:
        """The samples after the warm-up."""
        return [sample for sample in self.samples if sample.seconds >= self.warmup_s]

    @property
    def queue_longest(self) -> int:
        """Most questions that were seen waiting."""
        return max((sample.waiting for sample in self.samples), default=0)

    @property
    def queue_left(self) -> int:
        """Fewest questions that were seen waiting in the last third: a queue that does not grow is empty at times."""
        return min((sample.waiting for sample in self.samples[len(self.samples) * 2 // 3 :]), default=0)

    @property
    def slope(self) -> Slope | None:
        """Growth of memory after the warm-up, see `memory_slope`."""
        return memory_slope(self.warm)

    @property
    def slope_with_shared(self) -> Slope | None:
        """The same for all resident pages, those of DDS and the cameras included."""
        return memory_slope([replace(sample, rss_mb=sample.rss_mb + sample.shared_mb) for sample in self.warm])


def memory_slope(samples: Sequence[Sample]) -> Slope | None:
    """Fit memory over the pictures received by least squares, through the lowest sample of each of up to 12 stretches.

    None when there are too few samples, or no picture came between the first and the last.
    """
    if len(samples) < 2 * FEWEST_STRETCHES or samples[0].frames == samples[-1].frames:
        return None
    count = min(MOST_STRETCHES, max(FEWEST_STRETCHES, len(samples) // SHORTEST_STRETCH))
    series = np.array([(sample.frames / FRAMES_PER_SLOPE, sample.rss_mb) for sample in samples])  # (samples, 2)
    stretches = np.array_split(series, count)
    fit = stats.linregress([each[:, 0].mean() for each in stretches], [each[:, 1].min() for each in stretches])
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 2) * fit.stderr
    return Slope(*(float(mb) for mb in (fit.slope, fit.slope - reach, fit.slope + reach)))


def faults(soak: Soak, max_slope_mb: float) -> list[str]:
    """Return what went wrong, in full sentences; empty when nothing did."""
    errors = soak.statuses.get('MODEL_ERROR')
    checks = [
        (soak.stopped, f'It ended early: {soak.stopped}'),
        (soak.unanswered, f'{soak.unanswered} of {soak.asked} questions got neither an answer nor a status.'),
        (not soak.statuses.get('OK'), f'None of {soak.asked} questions was answered.'),
        (errors, f"{errors} of {soak.asked} answers are MODEL_ERROR; see the node's log."),
        (soak.queue_left, f'Questions pile up: in the last third never fewer than {soak.queue_left} waited.'),
        (soak.frames * 2 < soak.sent, f'Only {soak.frames} of {soak.sent} pictures reached the node.'),
        *_slope_faults(soak.slope, max_slope_mb),
    ]
    return [sentence for is_so, sentence in checks if is_so]


def _slope_faults(slope: Slope | None, limit_mb: float) -> list[tuple[bool, str]]:
    if slope is None:
        return [(True, 'Too little was measured after the warm-up to tell how memory grows; soak longer.')]
    sure = 'surely' if slope.low_mb > limit_mb else 'perhaps by chance: soak longer'
    return [
        (
            slope.mb > limit_mb,
            f'Memory grows by {slope.mb:.2f} MB per 10,000 pictures, more than {limit_mb:g} '
            f'({sure}; 95 %: {slope.low_mb:.2f} to {slope.high_mb:.2f}).',
        )
    ]


def as_json(soak: Soak, max_slope_mb: float) -> dict:
    """Return everything as JSON types, units in the names."""
    slope = soak.slope
    slope_with_shared = soak.slope_with_shared
    warm = soak.warm
    times = soak.answer_ms
    return {
        'minutes': round(soak.seconds / 60, 2),
        'warmup_minutes': round(soak.warmup_s / 60, 2),
        'frames': soak.frames,
        'frames_sent': soak.sent,
        **{f'frames_{name}': soak.counts[name] for name in soak.counts if name != 'received'},
        'frames_looked_at': sum(soak.levels.values()),
        'levels': dict(soak.levels),
        'rss_slope_mb_per_10k_frames': slope and round(slope.mb, 3),
        'rss_slope_95': slope and [round(slope.low_mb, 3), round(slope.high_mb, 3)],
        'rss_slope_with_shared_mb_per_10k_frames': slope_with_shared and round(slope_with_shared.mb, 3),
        'rss_mb_after_warmup': round(warm[0].rss_mb, 1) if warm else None,
        'rss_mb_end': round(warm[-1].rss_mb, 1) if warm else None,
        'shared_mb_end': round(warm[-1].shared_mb, 1) if warm else None,
        'questions': soak.asked,
        'unanswered': soak.unanswered,
        'statuses': dict(soak.statuses),
        **{
            f'answer_ms_{name}': round(float(np.percentile(times, percentile)), 1) if times else None
            for name, percentile in (('median', 50), ('p95', 95), ('longest', 100))
        },
        'queue_longest': soak.queue_longest,
        'queue_left': soak.queue_left,
        'faults': faults(soak, max_slope_mb),
    }
