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

"""What a live node would keep up with: properties of the simulation, on made-up times."""

import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_bags import frames, write_bag

from vlm_reuse_node.replay import cli, results
from vlm_reuse_node.replay.keep_up import LEFT_OUT, MOST_DROPPED, keep_up_lines, most_pictures_per_s
from vlm_reuse_node.replay.live_node import LivePicture, LiveQuestion, simulate

times_s = st.floats(0.0, 10.0)
costs_s = st.floats(0.0, 1.0)
cameras = st.sampled_from(['front', 'rear'])
all_pictures = st.lists(st.builds(LivePicture, times_s, costs_s, cameras, costs_s, costs_s), max_size=30)
all_questions = st.lists(st.builds(LiveQuestion, times_s, costs_s, cameras), max_size=10)


def steady(rate, look_s, count=200, **costs):
    """Pictures at a rate."""
    return [LivePicture(number / rate, look_s, **costs) for number in range(count)]


@given(all_pictures, all_questions)
def test_every_question_gets_its_answer_and_no_sooner_than_it_takes(pictures, questions):
    run = simulate(pictures, questions)
    assert run.pictures == len(pictures) and 0 <= run.dropped <= max(0, len(pictures) - 1)
    assert len(run.answers_s) == len(questions)
    assert sum(run.answers_s) >= sum(question.answer_s for question in questions) - 1e-6


@given(all_pictures, all_questions)
def test_the_last_picture_of_a_camera_is_never_dropped(pictures, questions):
    """So a camera of one picture loses none."""
    newest = {picture.camera: picture for picture in sorted(pictures, key=lambda picture: picture.at_s)}
    assert simulate(newest.values(), questions).dropped == 0


@given(all_pictures, all_questions)
def test_pictures_that_cost_nothing_are_not_dropped(pictures, questions):
    free = [
        replace(each, at_s=number * 0.01, look_s=0, convert_s=0, upkeep_s=0) for number, each in enumerate(pictures)
    ]
    assert simulate(free, ()).dropped == 0
    assert simulate(free, questions).answers_s == pytest.approx(simulate((), questions).answers_s)


@given(st.lists(costs_s, min_size=1, max_size=10))
def test_questions_that_come_together_are_answered_one_after_the_other(costs):
    run = simulate((), [LiveQuestion(0.0, cost) for cost in costs])
    assert run.answers_s == pytest.approx([sum(costs[: number + 1]) for number in range(len(costs))])


@pytest.mark.parametrize('rate, share', [(5, 0.0), (9, 0.0), (20, 0.5), (30, 2 / 3), (40, 0.75)])
def test_looks_of_100_ms_keep_up_with_10_pictures_a_second(rate, share):
    run = simulate(steady(rate, 0.1), ())
    assert run.dropped / run.pictures == pytest.approx(share, abs=0.02)


def test_a_conversion_that_takes_longer_than_a_look_drops_pictures_too():
    run = simulate(steady(20, 0.01, convert_s=0.1), ())
    assert run.dropped / run.pictures == pytest.approx(0.5, abs=0.02)


def test_two_cameras_share_the_thread_that_looks():
    both = [*steady(9, 0.1, camera='front'), *steady(9, 0.1, camera='rear')]
    assert simulate(both, ()).dropped / len(both) == pytest.approx(4 / 9, abs=0.02)


def test_a_busy_model_drops_no_picture():
    assert simulate(steady(9, 0.1), [LiveQuestion(0.0, 60.0)]).dropped == 0


def test_a_question_waits_for_the_stage_of_upkeep_that_runs_and_for_no_more():
    picture = LivePicture(0.0, 0.0, upkeep_s=2.0)
    assert simulate([picture], [LiveQuestion(0.5, 0.25)]).answers_s == pytest.approx((0.75,))


def test_a_question_looks_at_the_picture_that_waits_and_waits_for_the_look_that_runs():
    pictures = [LivePicture(0.0, 1.0), LivePicture(0.1, 0.5)]
    assert simulate(pictures, [LiveQuestion(0.2, 0.25)]).answers_s == pytest.approx((1.0 - 0.2 + 0.5 + 0.25,))
    other = simulate([LivePicture(0.0, 1.0, 'rear')], [LiveQuestion(0.2, 0.25, 'front')])
    assert other.answers_s == pytest.approx((0.25,))


@settings(max_examples=15)
@given(st.lists(st.floats(0.01, 0.05), min_size=1, max_size=20), st.floats(0.0, 0.05))
def test_a_node_keeps_up_with_the_rate_that_is_told_and_not_with_much_more(looks, convert_s):
    pictures = [LivePicture(0.0, look_s, convert_s=convert_s) for look_s in looks]
    rate = most_pictures_per_s(pictures, [], 10.0)
    slowest = max(sum(looks) / len(looks), convert_s)
    assert 0 < rate <= 1.05 / slowest
    if len(set(looks)) == 1:  # only then the mean alone decides
        assert rate == pytest.approx(1 / slowest, rel=0.1)
    evenly = [replace(pictures[number % len(looks)], at_s=number / rate) for number in range(int(20 * rate))]
    assert simulate(evenly, ()).dropped <= MOST_DROPPED * len(evenly)


def test_a_replay_tells_what_it_would_keep_up_with(tmp_path, model_dir, capsys):
    questions = tmp_path / 'questions.yaml'
    questions.write_text(yaml.safe_dump({'questions': [{'question': 'what is this', 'every_s': 1.0, 'max_tokens': 2}]}))
    bag = write_bag(tmp_path / 'bag', {'/camera/image_raw': frames(8)})
    arguments = ['--questions', str(questions), '--model', str(model_dir), '--arms', 'exact']
    assert cli.main([str(bag), *arguments, '--out', str(tmp_path / 'out')]) == 0
    found = results.read(tmp_path / 'out' / 'results.json')
    told = found['times']['keep_up']
    assert set(told) == {'auto', 'exact'}
    for figures in told.values():
        assert figures['pictures'] == 8 and figures['questions'] == len(found['questions'])
        assert figures['recorded_per_s'] == pytest.approx(2.0)
        assert figures['pictures_per_s'] > 0 and figures['questions_per_s'] > 0
        assert figures['service_median_ms'] <= figures['answer_most_ms']
    lines = keep_up_lines(found)
    assert len(lines) == 3 and lines[-1] == LEFT_OUT
    page, printed = (tmp_path / 'out' / 'report.html').read_text(), capsys.readouterr().out
    assert all('keeps up with' in text and 'Left out: DDS' in text for text in (page, printed))
    assert json.dumps(results.without_times(found)).find('keep_up') < 0
