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

"""The replay's page: self-contained, escaped, right about what it shows, and open about what speaks against it."""

import re
from pathlib import Path

import pytest
from html_page import HOSTILE, Page
from replay_bags import frames
from test_replay_metrics import answer, picture, question, upkeep

from vlm_reuse_node.replay.counts import count_rows
from vlm_reuse_node.replay.keep_up import measure_keep_up
from vlm_reuse_node.replay.negatives import negatives
from vlm_reuse_node.replay.plots import drift
from vlm_reuse_node.replay.ratios import derive_ratios
from vlm_reuse_node.replay.report import render
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.samples import MOST, Samples, sampled
from vlm_reuse_node.replay.sessions import choose_sessions
from vlm_reuse_node.replay.stills import save_drift
from vlm_reuse_node.replay.table import table_lines
from vlm_reuse_node.replay.times import measure_times, timing_floor
from vlm_reuse_node.replay.verdict import sentence


def results(drifted=1, warm_ms=2.0, text='blue', complete=True, problems=()):
    """Results of six questions, of which default answered some with `text` and cold-dense all with red."""
    rows = []
    for number in range(6):
        rows.append(question(number) | {'text': text if number == 0 else 'what', 'tags': []})
        rows.append(answer(number, 'cold', total_ms=10.0))
        rows.append(answer(number, 'cold-again', total_ms=10.0))
        rows.append(answer(number, 'auto', text if number < drifted else 'red', total_ms=warm_ms, pictures_s=(0.5,)))
    rows = [each | ({'level': 'reuse', 'message': ''} if each['row'] == 'answer' else {}) for each in rows]
    looks = [picture('auto', 12, 'full'), picture('auto', 0, 'reuse'), picture('auto', 6, 'frame')]
    for number, look in enumerate(looks):
        look |= {'picture_s': number / 2, 'reason': text, 'oldest_cell_age_s': 0.1 * number, 'held_pictures': 1}
        look['times']['peak_process_mb'] = 100.0
    bag = {
        'row': 'bag',
        'bag': 'a',
        'seconds': 1.0,
        'frames_digest': 'd',
        'damage': [],
        'notes': [],
        'questions_asked': 6,
        'cameras': [
            {
                'camera': 'camera',
                'topic': text,
                'type': 'Image',
                'refresh_policy': 'exact',
                'policy_reason': text,
                'gaps': 0,
                'longest_gap_s': 0.0,
                'questions_skipped': 0,
                'clock_steps': {},
                'pictures_read': 3,
                'pictures_used': 3,
                'pictures_refused': {},
                'pictures_left_out': {},
                'times': {'conversion_ms': 1.0},
            }
        ],
    }
    sorted_rows = RowIndex([*rows, *looks, upkeep('auto'), bag])
    counts = count_rows(sorted_rows)
    return {
        'format': 6,
        'complete': complete,
        'problems': list(problems),
        'notes': [],
        'counts': counts,
        'ratios': derive_ratios(sorted_rows, counts),
        'comparison': None,
        'times': {
            'arms': measure_times(sorted_rows),
            'floor': timing_floor(sorted_rows),
            'sessions': choose_sessions(sorted_rows),
            'keep_up': measure_keep_up(sorted_rows),
        },
        'settings': {
            'model': text,
            'model_fingerprint': 'f',
            'window_s': 8.0,
            'order_seed': 0,
            'config': {'max_drift': 0.01},
            'versions': {},
            'selection': {'start_s': 0.0, 'duration_s': 'inf', 'rate_limit_hz': 0.0},
        },
        'arms': {arm: {'sees': text, 'compared_with': 'cold'} for arm in counts},
        'bags': sorted_rows.bags,
        'questions': sorted_rows.questions,
        'answers': sorted_rows.answers,
        'pictures': sorted_rows.pictures,
        'upkeep': sorted_rows.upkeep,
    }


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """The page of hostile results, with pictures of the drifted answer."""
    folder = tmp_path_factory.mktemp('bag')
    save_drift(folder / 'pictures' / '0000.auto', *frames(5)[::4], 8)
    return render(results(text=HOSTILE), {'a': folder}, ['overlay.webm'])


def test_hostile_text_stays_text(page):
    parsed = Page(page)
    assert 'script' not in parsed.tags and parsed.tags.count('img') == 2
    assert not [name for name, _ in parsed.attributes if name.startswith('on')]
    assert '&lt;script&gt;' in page and '7 * 6' in page


def test_the_page_needs_nothing_but_itself(page):
    assert not re.search(r'https?:|@import|<script|<link', page)
    assert set(re.findall(r'url\((.)', page)) <= {'#'}
    sources = [value for name, value in Page(page).attributes if name in ('src', 'href', 'xlink:href')]
    beside = [source for source in sources if not source.startswith(('data:image/jpeg;base64,', '#'))]
    assert len(sources) > len(beside) and beside == ['overlay.webm'] * 2  # to play here, and as a link


def test_plots_take_their_colours_from_the_page_and_share_no_names(page):
    plots = re.findall(r'<svg.*?</svg>', page, re.S)
    assert len(plots) == 7
    for plot in plots:
        assert 'var(--' in plot and not re.search(r'#[0-9a-f]{6}\b', plot)
        used = re.findall(r'(?:href="|url\()#([^")]+)', plot)
        assert set(used) <= set(re.findall(r'id="([^"]+)"', plot))


def test_the_verdict_comes_first_with_its_denominators():
    html = render(results(), {'a': Path('none')}, [])
    first = re.sub(r'<[^>]+>|\s+', ' ', html.split('<h2')[0].split('</style>')[1])  # \s: the no-break space, too
    assert first.index('No, do not trust it on this recording: 1 of 6 answers drifted') < first.index('the total work')
    for figure in (
        '0.40 ×',
        'timing floor: cold over cold-again is 1.00 × (median of 6 pairs',
        'the total work of cold-dense: 0.02 s of the model',
        'against 0.06 s for the same 6 questions',
        '0.80 × its tokens (158 against 198)',
        '5.0 ×',
        '10.0 ms',
        '2.0 ms',
        'n = 6',
        '1 of 6',
        '0.4 % to 64 %',
        '50 %',
        '18 of 36 visual tokens in 3 pictures',
        'frame 1, full 1, reuse 1',
        'cold-dense on the newest picture',
        'of 6 with a known truth 1 changed',
    ):
        assert figure in first, figure


def test_what_speaks_against_the_engine_is_told():
    found = ' '.join(negatives(results(warm_ms=20.0, complete=False, problems=['The bag is damaged.'])))
    for text in (
        'The bag is damaged.',
        'The replay is not complete',
        'auto: the median answer was no faster than that of cold-dense',
        'auto: 1 of 6 (17 %) of its answers drifted',
        'lost: 1, gained: 0 (McNemar p = 1, not',
        'not checked (arm cold-cached)',
    ):
        assert text in found, text
    assert 'was no faster on this bag' in sentence(results(warm_ms=20.0))


def test_no_drift_is_told_with_its_bound():
    told = sentence(results(drifted=0))
    assert 'none of 6 answers changed; with only 6 questions a true drift of up to 46 % cannot be excluded' in told


def test_a_type_with_dollars_is_no_formula():
    counts = results()['counts']['auto']
    assert r'>$\bad$<' in drift({'auto': {r'$\bad$': counts}}, 'kind', [r'$\bad$'], 'Drift')


def test_the_table_has_a_line_for_each_arm():
    lines = table_lines(results())
    assert [line.split()[0] for line in lines[:4]] == ['arm', 'cold', 'cold-again', 'auto']
    assert lines[4].startswith('Timing floor: ') and len(lines) == 5
    assert '1 of 6' in lines[3] and '50 %' in lines[3]


def test_the_page_shows_a_sample_of_picture_question_and_answer(tmp_path):
    samples = Samples(tmp_path / 'pictures')
    samples.add(0, frames(1)[0])
    page = render(results(text='the blue one'), {'a': tmp_path}, [])
    assert page.count('alt="the newest picture at the time') == 1 and 'a sample' in page
    assert 'a sample' not in render(results(), {'a': tmp_path / 'none'}, [])


@pytest.mark.parametrize('count', [1, 12, 13, 100, 1000])
def test_a_sample_is_small_and_spread_evenly_over_a_recording_of_any_length(tmp_path, count):
    samples, picture = Samples(tmp_path), frames(1)[0]
    for number in range(1, count + 1):
        samples.add(number, picture)
    numbers = list(sampled(tmp_path))
    gaps = {after - before for before, after in zip(numbers, numbers[1:])}
    assert len(numbers) <= MOST and (count <= MOST or len(numbers) >= MOST / 2) and len(gaps) <= 1 and numbers[0] == 1
