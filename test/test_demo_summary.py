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

"""What the demo's rows and pictures add up to, worked out by hand; and the table and stills made from them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from vlm_reuse_node.demo.sidecar import PlannedQuestion, SidecarError, read_sidecar
from vlm_reuse_node.demo.stills import choose_stills, write_still
from vlm_reuse_node.demo.summary import CameraCounts, Look, Reply, Row, Summary
from vlm_reuse_node.demo.table import QuestionTable, closing_lines
from vlm_reuse_node.replay.truth import Truth
from vlm_reuse_node.scene.refresh import Totals

QUESTION = PlannedQuestion(1.0, 'what color is the circle', truths=(Truth(0.0, 2.0, 'red'), Truth(3.0, 5.0, 'red')))
CAMERA = CameraCounts(sent=10, received=9, dropped=2, refused=1)


def reply(text='red', picture_s=1.0, ms=10.0, **more):
    return Reply('OK', text=text, picture_s=picture_s, tokens_reused=112, tokens_prefilled=8, decode_ms=ms, **more)


def row(warm=None, cold=None):
    return Row(QUESTION, warm or reply(), cold or reply(ms=50.0))


def look(picture_s, paid, level=''):
    return Look(picture_s, level or ('full' if paid else 'reuse'), 'why', 100, paid, 1.0, 40.0 if paid else 0.0)


def summary(*rows, looks=(), totals=Totals()):
    return Summary(rows, tuple(looks), CAMERA, totals)


def test_an_answer_is_judged_by_the_truth_of_its_own_picture():
    assert row(reply('Red ')).is_right is True
    assert row(reply('blue')).is_right is False
    assert row(reply(picture_s=2.0)).is_right is None  # the scene was changing then
    assert row(reply(picture_s=5.0)).is_right is None
    assert row(Reply('TIMEOUT', picture_s=1.0)).is_right is None


def test_warm_and_cold_are_compared_only_on_the_same_cached_picture():
    assert row(reply('blue', cached_ns=5), reply('blue', 1.9, cached_ns=5)).is_equal is True  # a newer picture, reused
    assert row(reply('blue'), reply('red')).is_equal is False
    assert row(reply(picture_s=2.5), reply(picture_s=2.5)).is_equal is True  # nobody knows the truth, yet equal
    assert row(reply(cached_ns=5), reply(cached_ns=6)).is_equal is None
    assert replace(row(), cold=None).is_equal is None
    assert row(cold=Reply('TIMEOUT', picture_s=1.0)).is_equal is None


def test_the_same_text_from_other_tokens_is_not_equal():
    assert row(reply(token_ids=(1, 2)), reply(token_ids=(1, 2))).is_equal is True
    assert row(reply(token_ids=(1, 2)), reply(token_ids=(1, 3))).is_equal is False


def test_pairs_with_another_picture_in_between_are_counted_apart():
    result = summary(row(), row(reply(ms=999, cached_ns=5), reply('blue', cached_ns=6)), Row(QUESTION, Reply('STALE')))
    assert (len(result.pairs), result.equal, result.apart) == (1, 1, 1)
    assert result.warm_ms_median == 10
    assert 'in 1 of 1 pairs (1 more had another picture in between).' in closing_lines(result)[2]


def test_counts_and_medians_are_those_worked_out_by_hand():
    result = summary(
        row(reply(ms=10, remembered=True), reply(ms=40)),
        row(reply('blue', ms=30), reply(ms=60)),
        row(reply(picture_s=2.5, ms=20), reply(picture_s=2.5, ms=90)),
        Row(QUESTION, Reply('STALE')),
        Row(QUESTION, reply(ms=999, remembered=True)),
    )
    assert (result.questions, result.answered, result.judged, result.correct) == (5, 4, 3, 2)
    assert (result.equal, len(result.pairs), result.apart) == (2, 3, 0)
    # The row without a cold answer is in no median, and in no count beside one.
    assert result.remembered == 1
    assert (result.warm_ms_median, result.cold_ms_median, result.speedup) == (20, 60, 3)
    assert (result.warm_ms, result.cold_ms) == (60, 190)


def test_the_nodes_own_time_is_every_stage_but_the_queue():
    assert Reply('OK', refresh_ms=5, prefill_ms=2, decode_ms=1, queue_ms=99).model_ms == 8


def test_what_pictures_cost_adds_up():
    result = summary(looks=[look(0.0, 100), look(0.1, 0), look(0.2, 20, 'patch')])
    assert (result.tokens, result.tokens_paid, result.refresh_ratio) == (300, 120, 0.4)
    assert result.refresh_levels == {'full': 1, 'patch': 1, 'reuse': 1}
    assert (result.refresh_ms, result.look_ms) == (80, 3)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_picture_is_one_look_with_all_that_was_computed_from_it(order):
    messages = [replace(look(0.5, 0), tokens_stale=20), look(0.5, 20, 'patch'), look(0.5, 100, 'frame')]
    first, second, third = (messages[number] for number in order)
    assert first.together(second).together(third) == Look(0.5, 'frame', 'why', 100, 120, 3.0, 80.0)


def test_the_work_is_the_nodes_own_account():
    assert summary(totals=Totals(30.0, 60.0)).work_ratio == 0.5 and summary().work_ratio is None


def test_nothing_measured_gives_no_figures_rather_than_zeros():
    result = summary()
    assert (result.speedup, result.warm_ms_median, result.refresh_ratio) == (None, None, None)
    verdict, work, _, times, _ = closing_lines(result)
    assert verdict.startswith('No verdict: ') and 'no work to compare' in work and 'no speedup' in times


def test_closing_lines_name_their_denominators():
    looks = [look(0.0, 100)] + [look(index / 10, 0) for index in range(1, 300)]
    totals = Totals(3000.0, 6000.0)
    verdict, work, answers, times, shares = closing_lines(
        summary(row(reply(remembered=True)), row(reply('blue')), looks=looks, totals=totals)
    )
    assert verdict.startswith('No, not every answer of this run can be trusted: 1 of 2 warm answers equal')
    assert work.startswith('Total work: 0.50 × that of cold-dense (3.00 s against 6.00 s; ')
    assert answers == '2 of 2 questions answered, 1 right; warm equals cold-dense on the same picture in 1 of 2 pairs.'
    assert (
        'warm 10.0 ms, cold-dense on the same picture 50.0 ms: 5.0 times as fast (2 pairs, 1 of them remembered; '
        in times
    )
    assert 'without waiting for the model and DDS' in times
    assert shares.startswith('< 1 % of the picture paid for, over 300 pictures looked at (full 1, reuse 299)')
    assert '10 sent, 9 received, 2 dropped for a newer one, 1 refused' in shares


@pytest.mark.parametrize('width', [100, 150, 400])
def test_every_line_of_the_table_is_as_wide_as_its_header(width):
    table = QuestionTable([QUESTION, PlannedQuestion(2.0, 'a very long question ' * 9)], width)
    titles, rule = table.header().split('\n')
    lines = [table.line(row()), table.line(row(reply('assistant ' * 20))), table.line(row(reply('')))]
    assert {len(line) for line in (titles, rule, *lines)} == {len(titles)}
    assert len(titles) <= width


def test_a_question_without_an_answer_says_why():
    line = QuestionTable([QUESTION]).line(Row(QUESTION, Reply('STALE', 'The newest picture is 9 s old.')))
    assert 'STALE' in line and line.endswith('The newest picture is 9 s old.')


def jpeg(value):
    return cv2.imencode('.jpg', np.full((48, 64, 3), value, np.uint8))[1].tobytes()


def test_stills_show_a_change_that_waits_its_refresh_and_quiet_after(tmp_path):
    paid, stale = [0, 100, 0, 0, 100, 100, 0, 0, 0], [100, 0, 0, 9, 0, 0, 7, 0, 0]
    looks = [
        replace(look(index / 10, tokens), tokens_stale=waiting)
        for index, (tokens, waiting) in enumerate(zip(paid, stale))
    ]
    stills = choose_stills(looks, {each.picture_s: jpeg(round(200 * each.picture_s)) for each in looks})
    assert [still.look.picture_s for still in stills] == [0.3, 0.4, 0.7]
    write_still(stills, tmp_path / 'overlay.png')
    written = cv2.imread(str(tmp_path / 'overlay.png'))
    assert written.shape == (48, 128, 3) and written[:, :64].mean() < 100 < written[:, 64:].mean()


def test_a_change_that_was_paid_in_part_is_the_better_still(tmp_path):
    looks = [look(index / 10, tokens) for index, tokens in enumerate([100, 0, 30, 0, 100, 0, 100, 0])]
    stills = choose_stills(looks, {each.picture_s: jpeg(20 + each.tokens_paid) for each in looks})
    assert [still.look.tokens_paid for still in stills] == [0, 30, 0]
    write_still(stills, tmp_path / 'overlay.png')
    written = cv2.imread(str(tmp_path / 'overlay.png'))
    assert written.shape == (48, 128, 3) and written[:, 64:].mean() > written[:, :64].mean() + 20  # its refresh


@pytest.mark.parametrize('paid', [[], [100], [100, 100, 100], [0, 0]])
def test_stills_of_a_run_without_a_change(paid, tmp_path):
    looks = [look(index / 10, tokens) for index, tokens in enumerate(paid)]
    stills = choose_stills(looks, {each.picture_s: jpeg(9) for each in looks})
    assert len(stills) == min(1, len(paid))
    write_still(stills, tmp_path / 'overlay.png')
    assert (tmp_path / 'overlay.png').exists() == bool(paid)


def test_a_sidecar_comes_back_by_time(tmp_path):
    path = tmp_path / 'bag.questions.yaml'
    path.write_text("""{topic: /camera/image_raw, camera: camera, seconds: 9, questions: [
        {at_s: 5, question: later, choices: [], kind: list, answers: []},
        {at_s: 1, question: how many, choices: ['1', '2'], kind: count, answers: [
            {from_s: 0, to_s: 2.5, answer: '1'}]}]}""")
    sidecar = read_sidecar(path)
    first = sidecar.questions[0]
    assert [question.at_s for question in sidecar.questions] == [1.0, 5.0]
    assert first.choices == ('1', '2') and first.truth_at(2.4) == '1' and first.truth_at(2.5) is None


@pytest.mark.parametrize('text', ['', '[]', '{topic: x}', 'a: [', '{questions: [{at_s: soon}]}'])
def test_a_sidecar_that_is_none_is_named(tmp_path, text):
    path = tmp_path / 'bag.questions.yaml'
    path.write_text(text)
    with pytest.raises(SidecarError, match='bag.questions.yaml'):
        read_sidecar(path)
