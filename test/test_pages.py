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

"""Every page can be read on a phone, with the keyboard alone, without seeing it, and in light and dark."""

import re
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
from html_page import elements
from replay_bags import frames
from test_calibrate import many, measured
from test_demo_report import page as demo_page
from test_demo_report import summary
from test_replay_report import results

from vlm_reuse_node.calibrate.page import write_page
from vlm_reuse_node.calibrate.verdict import verdicts
from vlm_reuse_node.config import Config
from vlm_reuse_node.replay.page import render_page
from vlm_reuse_node.replay.report import NOTHING, render
from vlm_reuse_node.replay.samples import Samples
from vlm_reuse_node.replay.stills import save_drift
from vlm_reuse_node.session.calibration import PatchLimits

NARROWEST = 390  # pixels: a phone
LEAST_FOR_TEXT, LEAST_FOR_SHAPES = 4.5, 3.0  # contrast, WCAG 2.2 AA
PAGES = ('replay', 'nothing', 'demo', 'calibrate')


def calibrate_page(folder):
    """The page of a calibration whose choices may be patched, with an answer that could not be compared."""
    found = measured(many(300, drifted=2), many(100, has_choices=False))
    found.calibration = SimpleNamespace(
        limits=PatchLimits(0, 4, 0.5, 0.7, 0.7),
        model=SimpleNamespace(fingerprint='f', precision='float32', device='cpu', family='generic'),
        recordings=('a bag',),
    )
    found.fitted, found.questions, found.pictures = {0: many(9)}, 7, 300
    found.failures = Counter({'TIMEOUT: it took too long': 2})
    write_page(found, verdicts(found, 0.01), Config(), folder / 'calibration.html')
    return (folder / 'calibration.html').read_text()


def replay_page(folder):
    """The page of a replay with everything that one can have."""
    Samples(folder / 'pictures').add(0, frames(1)[0])
    save_drift(folder / 'pictures' / '0000.auto', *frames(5)[::4], 8)
    found = results(text='what') | {'notes': ['The camera stood still.']}
    found['comparison'] = {'questions_in_common': 6, 'settings': [], 'other_pictures': ['a'], 'arms': {}, 'times': {}}
    return render(found, {'a': folder}, ['overlay.a.front.webm', 'overlay.a.back.webm'])


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pages')
    return {
        'replay': replay_page(folder),
        'nothing': render_page(NOTHING, why='No question was due.', lines=['Look at the times.']),
        'demo': demo_page(summary('what')),
        'calibrate': calibrate_page(folder),
    }


@pytest.fixture(params=PAGES)
def page(pages, request):
    return pages[request.param]


def of(page, *tags):
    return [element for element in elements(page) if element.tag in tags]


def test_the_page_says_its_language_and_what_it_is_about(page):
    (html,), titles, headlines = of(page, 'html'), of(page, 'title'), of(page, 'h1')
    assert html.get('lang') == 'en' and headlines[0].text.strip() in titles[0].text and len(headlines) == 1
    (viewport,) = (each.get('content') for each in of(page, 'meta') if each.get('name') == 'viewport')
    assert viewport == 'width=device-width, initial-scale=1'  # the reader may zoom


def test_headings_are_in_order_and_sections_can_be_linked_to(page):
    headings = of(page, 'h1', 'h2', 'h3', 'h4')
    levels = [int(each.tag[1]) for each in headings]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    listed = [each.get('href') for each in of(page, 'a') if any(around.tag == 'nav' for around in each.around)]
    assert listed == [f'#{each.get("id")}' for each in headings if each.tag == 'h2']
    assert all(each.text.strip() for each in headings)


def test_names_are_unique_and_whatever_refers_to_one_finds_it(page):
    found = elements(page)
    names = [each.get('id') for each in found if each.get('id')]
    assert len(set(names)) == len(names)
    for each in found:
        wanted = [each.get('href')[1:]] if each.get('href').startswith('#') else []
        wanted += each.get('aria-labelledby').split() + each.get('aria-describedby').split()
        assert set(wanted) <= set(names), wanted


def test_the_keyboard_reaches_the_content_and_whatever_scrolls(page):
    first = next(each for each in elements(page) if each.tag == 'a')
    (main,) = of(page, 'main')
    assert first.get('href') == f'#{main.get("id")}' and main.get('tabindex') == '-1'
    assert ':focus-visible' in page and not re.search(r'focus[^{]*{[^}]*outline: *none', page)
    assert all(each.get('tabindex') in ('', '0', '-1') for each in elements(page))
    for table in of(page, 'table'):
        (scrolled,) = (each for each in table.around if 'wide' in each.get('class').split())
        assert (scrolled.get('tabindex'), scrolled.get('role')) == ('0', 'region') and scrolled.get('aria-label')
    labels = [each.get('aria-label') for each in elements(page) if each.get('role') == 'region']
    assert len(set(labels)) == len(labels)


def test_everything_is_in_a_landmark(page):
    (body,) = of(page, 'body')
    inside = [each for each in body.children if len(each.around) == 2]
    assert {each.tag for each in inside} - {'header', 'nav', 'main'} == {'a'}  # the link past them


def test_tables_have_titles_of_columns_and_of_rows(page):
    for table in of(page, 'table'):
        scopes = Counter(each.get('scope') for each in table.children if each.tag == 'th')
        rows = sum(each.tag == 'tr' for each in table.children)
        assert scopes['col'] > 1 and scopes['row'] == rows - 1 and set(scopes) == {'col', 'row'}


def test_who_does_not_see_a_plot_a_picture_or_a_video_is_told_what_it_shows(page):
    found = elements(page)
    texts = {each.get('id'): each.text for each in found}
    for plot in of(page, 'svg'):
        assert plot.get('role') == 'img'
        assert (plot.get('aria-label') or texts[plot.get('aria-labelledby')]).strip()
    for figure in (each for each in of(page, 'figure') if any(child.tag == 'svg' for child in each.children)):
        table = [each for each in figure.children if each.tag == 'td']
        assert any(each.tag == 'details' for each in figure.children) and table
    assert all(each.get('alt').strip() for each in of(page, 'img'))
    for video in of(page, 'video'):
        assert 'controls' in video.attributes and video.get('aria-label') and 'autoplay' not in video.attributes
        assert any(link.get('href') == video.get('src') for link in of(page, 'a'))


def test_nothing_is_wider_than_a_phone(page):
    styles = re.sub(r'<svg.*?</svg>', '', page, flags=re.S)
    widths = re.findall(r'(?<!max-)\bwidth: *(\d+)px', styles) + re.findall(r'minmax\((\d+)px', styles)
    assert all(int(width) <= NARROWEST for width in widths)
    assert not [each for each in elements(page) if each.get('width').isdigit() and each.tag in ('img', 'table', 'svg')]
    assert '.wide { overflow-x: auto;' in page


def luminance(colour):
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize('scheme', [0, 1], ids=['light', 'dark'])
def test_text_and_shapes_stand_out_in_light_and_dark(pages, scheme):
    schemes = re.findall(r':root {(.*?)}', pages['replay'], re.S)
    assert len(schemes) == 2 and 'prefers-color-scheme: dark' in pages['replay']
    colours = dict(re.findall(r'--(\w+): (#[0-9a-f]{6})', schemes[scheme]))
    for name, least in (
        *((name, LEAST_FOR_TEXT) for name in ('ink', 'soft', 'link', 'good', 'bad')),
        *((name, LEAST_FOR_SHAPES) for name in ('paid', 'reused', 'changed', 'third', 'other')),
    ):
        assert all(contrast(colours[name], colours[under]) >= least for under in ('page', 'card')), name


def test_no_caption_names_a_colour_that_another_scheme_changes(page):
    captions = ' '.join(each.text for each in of(page, 'figcaption', 'p')).lower()
    assert not re.search(r'\b(black|white|blue|red)\b', captions)


@pytest.mark.parametrize('name', ['replay', 'calibrate'])
def test_no_line_ends_between_a_figure_and_its_unit(pages, name):
    text = re.sub(r'<style>.*?</style>', '', pages[name], flags=re.S)
    assert not re.search(r'\d [%×]', text) and re.search(r'\d\N{NO-BREAK SPACE}%', text)


def test_all_pages_have_one_style(pages):
    styles = {re.search('<style>.*?</style>', page, re.S).group() for page in pages.values()}
    assert len(styles) == 1 and not any(
        'style=' in re.sub(r'<svg.*?</svg>', '', page, flags=re.S) for page in pages.values()
    )


def test_a_recording_that_is_replayed_whole_has_no_length_of_infinity(pages):
    assert 'to the end' in pages['replay'] and 'inf s' not in pages['replay']
