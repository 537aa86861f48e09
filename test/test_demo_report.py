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

"""The demo's page: self-contained, escaped, and right about what it shows."""

import re

import pytest
from html_page import HOSTILE, Page

from vlm_reuse_node.demo.report import render
from vlm_reuse_node.demo.sidecar import PlannedQuestion
from vlm_reuse_node.demo.stills import Still
from vlm_reuse_node.demo.summary import CameraCounts, Look, Reply, Row, Summary
from vlm_reuse_node.replay.figures import factor
from vlm_reuse_node.replay.truth import Truth
from vlm_reuse_node.scene.refresh import Totals


def summary(text='red', warm_ms=10.0, cold_ms=50.0, paid=(100, 0, 0, 100, 0), rows=4, work_ms=80.0):
    question = PlannedQuestion(1.0, text, (text,), text, (Truth(0.0, 9.0, text),))
    replies = (Reply('OK', text, text, 0.2, 0.1, text, 112, 8, 0.0, 1.0, ms - 1) for ms in (warm_ms, cold_ms))
    looks = tuple(Look(index / 10, text, text, 100, each, 1.0, 5.0 * (each > 0)) for index, each in enumerate(paid))
    return Summary((Row(question, *replies),) * rows, looks, CameraCounts(5, 5), Totals(work_ms, 200.0))


def page(result, text='x'):
    stills = [Still(look, b'\xff\xd8jpeg') for look in result.looks[:3]]
    diagnostics = [{'name': text, 'level': 1, 'message': text, 'values': {text: 'value of a diagnostic'}}]
    html = render(result, settings=[(text, text)], stills=stills, video='overlay.webm', diagnostics=diagnostics)
    return html.replace('\N{NO-BREAK SPACE}%', ' %').replace('\N{NO-BREAK SPACE}×', ' ×')


def test_hostile_text_stays_text():
    html = page(summary(HOSTILE), HOSTILE)
    tags = Page(html).tags
    assert 'script' not in tags and tags.count('img') == 3
    assert not [name for name, _ in Page(html).attributes if name.startswith('on')]
    assert '&lt;script&gt;' in html and '7 * 6' in html


def test_the_page_needs_nothing_but_itself():
    html = page(summary())
    assert not re.search(r'https?:|//|@import|url\(|<script|<link', html.replace('</', '<'))
    sources = [value for name, value in Page(html).attributes if name in ('src', 'href')]
    assert {source[:16] for source in sources if source[0] != '#'} == {'data:image/jpeg;', 'overlay.webm'}


def test_the_verdict_comes_first_with_its_denominators():
    text = re.sub(r'<[^>]+>|\s+', ' ', page(summary()).split('<h2')[0].split('</style>')[1])
    assert text.index('Yes, ') < text.index('0.40 ×') < text.index('5.0 ×')
    for figure in (
        'the total work of cold-dense: 0.08 s against 0.20 s',
        'own account of everything it was asked',
        'All work together took 40 % of the model time of cold-dense.',
        '5.0 ×',
        '10.0 ms warm',
        '50.0 ms cold',
        '4 pairs, 0 of them remembered',
        '4 of 4',
        '40 %',
        '200 of 500 visual tokens',
        'as fast as cold-dense on the same picture',
        'in 4 of 4 pairs',
        's own time, without waiting for the model and DDS): only',
    ):
        assert figure in text, figure


@pytest.mark.parametrize(
    'paid, figure',
    [
        ((1, *[0] * 9), '&lt; 1 %'),
        ((100,) * 5, '100 %'),
        ((99, *[100] * 9), '&gt; 99 %'),
        ((0,) * 5, '0 %'),
        ((150, 100), '125 %'),  # a part of the first picture was computed twice
    ],
)
def test_shares_are_nothing_or_all_only_when_they_are(paid, figure):
    assert f'<b>{figure}</b>' in page(summary(paid=paid))


def test_a_verdict_that_is_bad_is_told():
    assert 'took as long as one computed from nothing' in page(summary(warm_ms=50.0, cold_ms=40.0))
    assert f'was more work than answering from nothing: {factor(1.5)} its model time' in page(summary(work_ms=300.0))
    assert 'more work' not in page(summary(work_ms=200.0))
    wrong = summary()
    wrong = Summary(
        tuple(Row(row.question, Reply('OK', text='no', picture_s=0.2, decode_ms=1.0), row.cold) for row in wrong.rows),
        wrong.looks,
        wrong.camera,
        wrong.totals,
    )
    assert '>No, most of its answers are wrong: ' in page(wrong)
    assert '>No, it did not pay in this run: ' in page(summary(work_ms=300.0))
    assert '>Yes, keeping the state paid in this run: 4 of 4 warm answers equal' in page(summary())


def test_a_run_in_which_nothing_happened_has_a_page():
    html = render(Summary((), (), CameraCounts(0)), settings=[])
    Page(html)
    assert 'too short' in html


def test_the_bill_tells_work_of_the_model_from_looking():
    html = page(summary())
    for text in (
        '0.01 s for 2 of 5 pictures; warm questions waited for 0.00 s',
        '0.01 s of a processor to find changes, without the model',
    ):
        assert text in html, text


def test_diagnostics_are_shown_with_their_values():
    html = page(summary(), 'a name')
    assert 'WARN: a name' in html and 'a name: value of a diagnostic' in html


def test_a_question_without_an_answer_shows_its_reason():
    row = Row(PlannedQuestion(1.0, 'why'), Reply('STALE', 'The newest picture is 9 s old.'))
    assert 'The newest picture is 9 s old.' in page(Summary((row,), summary().looks, CameraCounts(5)))


def test_the_strip_has_a_bar_for_each_picture_that_cost_something():
    html = page(summary(paid=(100, 0, 50, 0, 130)))
    heights = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', html.split('class="asked"')[0])
    assert heights == [('0.00', '100.00'), ('50.00', '50.00'), ('0.00', '100.00')]
