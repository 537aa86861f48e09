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

"""Whole replays of tiny bags with a tiny model: exact where it must be, the same twice, and kept when interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import cv2
import pytest
import yaml
from replay_bags import frames, truncate, write_bag
from rounding import choice_bound

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.work import Cost
from vlm_reuse_node.replay import cli, jobs, results
from vlm_reuse_node.replay.arms import ARMS
from vlm_reuse_node.replay.journal import NAME, read_rows
from vlm_reuse_node.replay.order import ArmOrder
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

QUESTIONS = {
    'questions': [
        {
            'question': 'what color is the square',
            'at_s': [0.7, 2.9],
            'kind': 'colour',
            'choices': ['red', 'blue'],
            'expected': 'red',
        },
        {'question': 'describe the scene', 'every_s': 2.0, 'from_s': 1.0, 'max_tokens': 4},
        {
            'question': 'how many objects',
            'on_change': {'settle_s': 0.0},
            'choices': ['one', 'two', 'three'],
            'tags': ['count'],
        },
    ]
}
TOPIC = '/camera/image_raw'
REPLAYED = ['--param', 'change_threshold=32']


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """Twelve pictures over six seconds; the scene changes twice."""
    return write_bag(tmp_path_factory.mktemp('bags') / 'bag', {TOPIC: frames(12)})


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp('questions') / 'questions.yaml'
    path.write_text(yaml.safe_dump(QUESTIONS))
    return path


@pytest.fixture(scope='module')
def arguments(bag, questions, model_dir):
    """The command line but for --out."""
    return [str(bag), '--questions', str(questions), '--model', str(model_dir), *REPLAYED]


@pytest.fixture(scope='module')
def replayed(arguments, tmp_path_factory):
    """The folder of a whole replay."""
    out = tmp_path_factory.mktemp('replay')
    assert cli.main([*arguments, '--out', str(out)]) == 0
    return out


@pytest.fixture(scope='module')
def found(replayed):
    return results.read(replayed / 'results.json')


def pictures_in(video):
    """How many pictures a video has: a browser's codec, read to the end."""
    capture = cv2.VideoCapture(str(video))
    assert video.read_bytes()[:4] == bytes.fromhex('1a45dfa3') and b'webm' in video.read_bytes()[:64]
    assert int(capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter.fourcc(*'VP80')
    return sum(1 for _ in iter(lambda: capture.read()[0], False))


def test_everything_is_written_and_follows_its_schema(replayed, found):
    assert {path.name for path in replayed.iterdir()} == {'results.json', 'report.html', 'overlay.webm', 'bags'}
    assert pictures_in(replayed / 'overlay.webm') == 12  # each once
    assert found['complete'] and found['problems'] == [] and list(found['counts']) == list(ARMS)
    assert results.without_times(found)['counts'] == found['counts'] and 'times' not in results.without_times(found)


def test_every_arm_answers_every_question_about_the_same_pictures(found):
    numbers = {row['question'] for row in found['questions']}
    assert len(numbers) == 8  # two at times, four at intervals, two on change
    for arm in ARMS:
        rows = {row['question']: row for row in found['answers'] if row['arm'] == arm}
        assert set(rows) == numbers and {row['status'] for row in rows.values()} == {'OK'}
        newest = {row['question']: row['picture_s'] for row in found['questions']}
        if arm in ('cold', 'cold-again', 'low-rate', 'last-4', 'newest', 'mlx-vlm'):
            assert all(row['pictures_s'][-1] == newest[number] for number, row in rows.items())


def score_bound(vlm, frame):
    """How far rounding may move the probabilities of choices, which move less than their logarithms."""
    session = SceneSession(vlm, Config())
    session.observe(frame)
    asked = [each for each in QUESTIONS['questions'] if 'choices' in each]
    return choice_bound(session, *(Question(each['question'], tuple(each['choices'])) for each in asked))


def test_exact_arms_equal_cold_dense_on_the_same_pictures(found, vlm):
    bound = max(score_bound(vlm, frame) for frame in frames(12)[::4])  # one of each scene
    for arm in ('cold-again', 'newest', 'auto', 'on-demand', 'eager'):
        counts = found['counts'][arm]
        assert counts['same_pictures'] and counts['same_pictures_drifted'] == 0, arm
        assert (found['ratios'][arm]['largest_score_difference'] or 0.0) < bound
    against = found['counts']['auto']['against_cached']
    assert against['pairs'] == 8 and against['drifted'] == 0


def test_only_arms_that_keep_a_state_remember_answers_and_these_are_no_work(found):
    remembered = {arm: counts['remembered'] for arm, counts in found['counts'].items()}
    assert remembered['reuse'] and not any(remembered[name] for name, arm in ARMS.items() if not arm.keeps_state)
    for row in found['answers']:
        if row['remembered']:
            assert not any(row['work'].values()) and row['level'] == 'reuse'
            assert (row['visual_tokens_computed'], row['tokens_prefilled'], row['tokens_generated']) == (0, 0, 0)


def test_a_state_that_is_kept_up_answers_as_the_newest_picture_does(found):
    # The scenes of this bag differ clearly, and are still in between: the detector misses nothing.
    for arm in ('auto', 'on-demand', 'eager'):
        assert found['counts'][arm]['pairs'] == 8 and found['counts'][arm]['drifted'] == 0, arm


def test_arms_pay_for_what_they_say(found):
    counts, cells = found['counts'], 20
    assert counts['cold']['visual_tokens_computed'] == counts['cold-cached']['visual_tokens_computed'] == 8 * cells
    assert counts['last-4']['visual_tokens_computed'] > 3 * 8 * cells
    # Each scene is computed once: when it is asked about, or, by the eager way, when it is seen.
    for arm in ('auto', 'on-demand', 'eager'):
        assert counts[arm]['looks']['levels'] == {'frame': 2, 'full': 1, 'reuse': 9}, arm
        assert counts[arm]['looks']['visual_tokens_refreshed'] == 3 * cells
    assert counts['eager']['visual_tokens_computed'] == counts['reuse']['visual_tokens_computed'] == 0
    assert (
        counts['on-demand']['visual_tokens_computed'] == 3 * cells and counts['on-demand']['work']['upkeep_tokens'] == 0
    )
    assert counts['patch']['looks']['visual_tokens'] == counts['auto']['looks']['visual_tokens'] == 12 * cells
    assert counts['reuse']['looks']['levels'] == {'full': 1, 'reuse': 11}
    assert counts['cold']['looks'] is None


def work_of(row):
    return sum(row['work'].values())


def test_a_question_pays_for_what_it_waits_for_and_upkeep_for_the_rest(found):
    for arm in (name for name, each in ARMS.items() if each.observes):
        looks = [row for row in found['pictures'] if row['arm'] == arm]
        answers = [row for row in found['answers'] if row['arm'] == arm]
        upkeep = {row['picture_s']: row for row in found['upkeep'] if row['arm'] == arm}
        for row in answers:
            waited = [look for look in looks if look['question'] == row['question']]
            assert row['visual_tokens_computed'] == sum(look['visual_tokens_refreshed'] for look in waited)
            assert row['work']['vision_tokens'] <= row['visual_tokens_computed']
            assert row['level'] == (waited[-1]['level'] if waited else 'reuse')
        done = {look['picture_s'] for look in looks if look['question'] is None and look['level'] != 'reuse'}
        assert done == set(upkeep) and all(work_of(row) > 0 for row in upkeep.values())
        assert {look['picture_s'] for look in looks} == {number / 2 for number in range(12)}


def test_by_default_all_work_is_at_most_that_of_cold_dense_and_by_the_eager_way_it_is_more(found):
    ratios = {arm: each['work_tokens_ratio'] for arm, each in found['ratios'].items()}
    assert ratios['cold'] == ratios['cold-again'] == 1.0 and ratios['mlx-vlm'] is None
    assert ratios['on-demand'] <= ratios['auto'] <= 1.0 and ratios['last-4'] > 1.0
    # Nothing is computed before the first question by default; the eager way computes the first picture before.
    first = min(row['question'] for row in found['questions'])
    computed = [row for row in found['pictures'] if row['arm'] == 'auto' and row['level'] != 'reuse']
    assert computed[0]['question'] == first
    assert found['counts']['eager']['work']['upkeep_tokens'] > found['counts']['auto']['work']['upkeep_tokens']


def test_the_same_bag_twice_gives_the_same_results_but_for_times(arguments, found, tmp_path, capsys):
    assert cli.main([*arguments, '--out', str(tmp_path), '--json']) == 0
    again = results.read(tmp_path / 'results.json')
    assert results.without_times(again) == results.without_times(found)
    printed = json.loads(capsys.readouterr().out)
    assert printed['counts'] == found['counts'] and 'answers' not in printed


def test_a_run_that_was_stopped_keeps_what_is_done_and_goes_on(arguments, found, tmp_path, monkeypatch, capsys):
    out, options = tmp_path, [*arguments, '--out', str(tmp_path)]
    stale = out / 'bags' / 'bag' / 'pictures' / '0001.patch.newest.jpg'
    stale.parent.mkdir(parents=True)
    stale.touch()
    answered = []
    ask = jobs.Replay._ask

    def ask_and_interrupt(replay, *given):
        answered.append(given)
        if len(answered) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return ask(replay, *given)

    monkeypatch.setattr(jobs.Replay, '_ask', ask_and_interrupt)
    assert cli.main(options) == cli.EXIT_INTERRUPTED
    assert not stale.exists()
    part = results.read(out / 'results.json')
    assert not part['complete'] and len(part['questions']) == 3
    # Without a word about it the rows of the stopped run are not replaced.
    kept = (out / 'bags' / 'bag' / NAME).read_bytes()
    assert cli.main(options) == cli.EXIT_USAGE and (out / 'bags' / 'bag' / NAME).read_bytes() == kept
    page = (out / 'report.html').read_text()
    assert 'Not complete' in page and '1 bag, 1 camera, ' in page
    # Dense arms are not asked again: their rows, times included, are those of the stopped run.
    assert cli.main([*options, '--resume']) == 0
    whole = results.read(out / 'results.json')
    assert results.without_times(whole) == results.without_times(found)
    for arm in ('cold', 'auto'):  # what is done again keeps its times, so that each question has those of one session
        rows = [[row for row in each['answers'] if row['arm'] == arm] for each in (part, whole)]
        assert rows[1][:3] == rows[0]
        assert [row['times']['session'] for row in rows[1]] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert whole['times']['sessions'] == {'bag': {'sessions': 2, 'timed': 2, 'questions': 5, 'of': 8}}
    assert whole['times']['arms']['auto']['pairs'] == 5 and whole['counts']['auto']['pairs'] == 8
    assert whole['times']['keep_up']['auto']['questions'] == 5
    assert 'in 2 sessions' in (out / 'report.html').read_text() and 'in 2 sessions' in capsys.readouterr().out
    # What is complete stays as it is.
    kept = (out / 'bags' / 'bag' / NAME).read_bytes()
    assert cli.main([*options, '--resume']) == 0 and (out / 'bags' / 'bag' / NAME).read_bytes() == kept


def test_an_earlier_run_is_replaced_only_where_that_was_said(arguments, replayed, found, tmp_path, capsys):
    shutil.copytree(replayed, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / 'results.json').read_bytes()
    options = [*arguments, '--arms', 'cold', '--out', str(tmp_path)]
    assert cli.main(options) == cli.EXIT_USAGE and (tmp_path / 'results.json').read_bytes() == before
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and all(choice in said for choice in ('another --out', '--resume', '--overwrite'))
    assert cli.main([*options, '--overwrite']) == 0
    assert list(results.read(tmp_path / 'results.json')['counts']) == ['cold', 'auto']


def test_a_run_is_resumed_with_all_of_its_bags(arguments, replayed, tmp_path, capsys):
    shutil.copytree(replayed, tmp_path / 'out')
    before = (tmp_path / 'out' / 'results.json').read_bytes()
    other = write_bag(tmp_path / 'other', {TOPIC: frames(2)})
    options = [str(other), *arguments[1:], '--out', str(tmp_path / 'out'), '--resume']
    assert cli.main(options) == cli.EXIT_USAGE and (tmp_path / 'out' / 'results.json').read_bytes() == before
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'has rows of bag too' in said and 'another --out' in said


def test_answers_do_not_depend_on_the_order_of_the_arms_which_differs_from_question_to_question(
    arguments, found, tmp_path, monkeypatch
):
    orders = []
    order = ArmOrder.of_a_question

    def kept(self, names):
        orders.append(order(self, names))
        return orders[-1]

    monkeypatch.setattr(ArmOrder, 'of_a_question', kept)
    assert cli.main([*arguments, '--out', str(tmp_path), '--order-seed', '5']) == 0
    other = results.without_times(results.read(tmp_path / 'results.json'))
    assert other['settings'].pop('order_seed') == 5
    before = results.without_times(found)
    assert before['settings'] == other['settings'] | {'order_seed': 0}
    assert {key: value for key, value in other.items() if key != 'settings'} == {
        key: value for key, value in before.items() if key != 'settings'
    }
    assert len(orders) == 8 and len({each[0] for each in orders}) > 3
    assert all(set(each) == set(ARMS) and each.index('auto') < each.index('cold-cached') for each in orders)


@pytest.mark.parametrize('has_history', [False, True])
def test_every_arm_is_first_about_as_often_and_the_same_seed_gives_the_same_orders(has_history):
    names = ['cold', 'cold-again', 'auto', 'newest']
    orders = [ArmOrder(7, has_history=has_history) for _ in range(2)]
    drawn = [[each.of_a_question(names) for _ in range(400)] for each in orders]
    assert drawn[0] == drawn[1]
    first = Counter(each[0] for each in drawn[0])
    if has_history:  # cold-dense sees the keyframes of auto
        assert set(first) == {'auto', 'newest'}
        assert all(each.index('auto') < min(each.index('cold'), each.index('cold-again')) for each in drawn[0])
    else:
        assert min(first[name] for name in names) > 60
    cold_before_again = sum(each.index('cold') < each.index('cold-again') for each in drawn[0])
    assert 150 < cold_before_again < 250


def test_a_run_goes_on_only_with_the_same_settings(arguments, bag, replayed, tmp_path, capsys):
    (tmp_path / 'bags' / 'bag').mkdir(parents=True)
    (tmp_path / 'bags' / 'bag' / NAME).write_bytes((replayed / 'bags' / 'bag' / NAME).read_bytes())
    assert cli.main([*arguments, '--out', str(tmp_path), '--resume', '--window', '3']) == cli.EXIT_FAILED
    assert 'is of a run with another window_s' in capsys.readouterr().err
    file = next(bag.glob('*.mcap')).stat()
    os.utime(next(bag.glob('*.mcap')), ns=(file.st_atime_ns, file.st_mtime_ns + 1))
    try:
        assert cli.main([*arguments, '--out', str(tmp_path), '--resume']) == cli.EXIT_FAILED
    finally:
        os.utime(next(bag.glob('*.mcap')), ns=(file.st_atime_ns, file.st_mtime_ns))
    assert 'is of a run with another files' in capsys.readouterr().err


def test_a_line_that_was_cut_is_left_out(tmp_path):
    (tmp_path / NAME).write_text('{"row": "settings"}\n{"row": "ans')
    assert read_rows(tmp_path / NAME) == [{'row': 'settings'}]


def test_compared_with_itself_nothing_is_significant(arguments, replayed, tmp_path, capsys):
    options = [*arguments, '--out', str(tmp_path), '--arms', 'cold', '--compare', str(replayed / 'results.json')]
    assert cli.main(options) == 0
    comparison = results.read(tmp_path / 'results.json')['comparison']
    assert comparison['questions_in_common'] == 8
    assert set(comparison['arms']) == {'cold', 'auto'} and [each['name'] for each in comparison['settings']] == ['arms']
    assert all(arm['changed'] == 0 and not arm['is_significant'] for arm in comparison['arms'].values())
    assert 'Compared with the earlier run' in capsys.readouterr().out
    assert 'Against the earlier run' in (tmp_path / 'report.html').read_text()


def test_several_bags_in_processes_of_their_own_and_several_cameras(questions, model_dir, tmp_path):
    bags = [
        write_bag(
            tmp_path / name / 'bag',
            {'/front/image_raw': frames(6, 'front'), '/back/image_raw': frames(6, 'back', changes_at=(2,))},
        )
        for name in ('one', 'two')
    ]
    code = cli.main(
        [
            *map(str, bags),
            '--topic',
            '/front/image_raw',
            '--topic',
            '/back/image_raw',
            '--jobs',
            '2',
            '--questions',
            str(questions),
            '--model',
            str(model_dir),
            '--arms',
            'cold',
            '--out',
            str(tmp_path / 'out'),
        ]
    )
    found = results.read(tmp_path / 'out' / 'results.json')
    assert code == 0 and [bag['bag'] for bag in found['bags']] == ['bag', 'bag-2']
    assert {(row['bag'], row['camera']) for row in found['questions']} == {
        (bag, camera) for bag in ('bag', 'bag-2') for camera in ('front', 'back')
    }
    assert results.without_times(_of(found, 'bag')) == results.without_times(_of(found, 'bag-2'))
    assert (tmp_path / 'out' / 'overlay.bag-2.back.webm').stat().st_size > 0


def _of(found, bag):
    return [{key: value for key, value in row.items() if key != 'bag'} for row in found['answers'] if row['bag'] == bag]


def test_a_history_is_in_every_prompt_that_is_compared(arguments, tmp_path):
    options = [
        *arguments,
        '--arms',
        'cold-cached,newest',
        '--param',
        'history_frames=2',
        '--param',
        'keyframe_interval_s=0.5',
        '--out',
        str(tmp_path),
    ]
    assert cli.main(options) == 0
    found = results.read(tmp_path / 'results.json')
    held = {arm: [len(row['pictures_s']) for row in found['answers'] if row['arm'] == arm] for arm in found['counts']}
    assert max(held['auto']) > 1 and held['cold'] == held['auto'] == held['cold-cached']
    assert set(held['newest']) == {1}
    assert found['counts']['auto']['against_cached']['drifted'] == 0


def test_a_truncated_bag_is_replayed_as_far_as_it_goes(questions, model_dir, tmp_path, capsys):
    path = truncate(write_bag(tmp_path / 'bag', {TOPIC: frames(300, step_s=0.02)}), 0.5)
    options = [
        str(path),
        '--questions',
        str(questions),
        '--model',
        str(model_dir),
        '--arms',
        'cold',
        '--rate-limit',
        '2',
        '--out',
        str(tmp_path / 'out'),
    ]
    assert cli.main(options) == 0
    assert 'The bag is damaged' in capsys.readouterr().out
    (problem,) = results.read(tmp_path / 'out' / 'results.json')['problems']
    assert 'of the 300 that metadata.yaml names were read' in problem
    assert 'The bag is damaged' in (tmp_path / 'out' / 'report.html').read_text()


def test_a_bag_without_pictures_and_without_ros_gives_one_sentence(tmp_path):
    path = write_bag(tmp_path / 'bag', {'/chatter': []})
    program = (
        'import sys; from vlm_reuse_node.replay.cli import main; code = main(sys.argv[1:]); '
        "assert 'rclpy' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, '-c', program, str(path), '--out', str(tmp_path / 'out')],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == cli.EXIT_FAILED and done.stdout == ''
    assert len(done.stderr.strip().splitlines()) == 1 and 'has no pictures: its topics are /chatter' in done.stderr
    assert not (tmp_path / 'out').exists()


def test_a_fault_in_one_bag_leaves_the_others_their_report(arguments, bag, tmp_path, capsys, monkeypatch):
    run = jobs.Replay.run

    def run_or_fail(replay, *given):
        if replay.bag.path.parent.name == 'other':
            raise ZeroDivisionError('nothing to share')
        return run(replay, *given)

    monkeypatch.setattr(jobs.Replay, 'run', run_or_fail)
    other = write_bag(tmp_path / 'other' / 'bag', {TOPIC: frames(2)})
    assert cli.main([*arguments, str(other), '--arms', 'cold', '--out', str(tmp_path / 'out')]) == cli.EXIT_FAILED
    found = results.read(tmp_path / 'out' / 'results.json')
    assert [each['bag'] for each in found['bags']] == ['bag'] and not found['complete']
    assert "The replay of 'bag-2' failed: ZeroDivisionError: nothing to share\n" in capsys.readouterr().err


def test_one_bad_bag_does_not_stop_the_others(arguments, tmp_path, capsys):
    empty = write_bag(tmp_path / 'empty', {'/chatter': []})
    assert cli.main([*arguments, str(empty), '--arms', 'cold', '--out', str(tmp_path / 'out')]) == cli.EXIT_FAILED
    found = results.read(tmp_path / 'out' / 'results.json')
    assert not found['complete'] and [bag['bag'] for bag in found['bags']] == ['bag']
    assert 'has no pictures' in capsys.readouterr().err and len(found['problems']) == 1


@pytest.mark.parametrize(
    'options, sentence',
    [
        (['--arms', 'colder'], 'There is no arm colder'),
        (['--param', 'seed'], 'expected NAME=VALUE'),
        (['--param', 'seed={'], "--param is 'seed={', whose value cannot be read"),
        (['--param', 'max_tokens=0'], 'expected 1 to 4096'),
        (['--start', '-1'], '--start is -1'),
        (['--duration', '0'], '--duration is 0; expected more than 0'),
        (['--jobs', '0'], '--jobs is 0'),
        (['--questions', 'a', '--questions', 'b'], '2 questions files for 1 bags'),
    ],
)
def test_a_wrong_option_is_refused_with_what_was_expected(bag, tmp_path, capsys, options, sentence):
    assert cli.main([str(bag), '--out', str(tmp_path), *options]) == cli.EXIT_USAGE
    assert sentence in capsys.readouterr().err


def test_results_of_something_else_are_no_results(bag, tmp_path, capsys):
    (tmp_path / 'old.json').write_text('{"format": 7}')
    assert cli.main([str(bag), '--compare', str(tmp_path / 'old.json')]) == cli.EXIT_FAILED
    assert 'does not follow results.schema.json' in capsys.readouterr().err


@pytest.mark.skipif(find_spec('ray') is None, reason='ray is not installed (the extra: pip install ray[default])')
def test_a_ray_cluster_gives_the_same(arguments, found, tmp_path, monkeypatch):
    monkeypatch.setenv('RAY_worker_niceness', '0')  # else its workers wait for whatever else the machine does
    assert cli.main([*arguments, '--out', str(tmp_path), '--ray', 'local']) == 0
    assert results.without_times(results.read(tmp_path / 'results.json')) == results.without_times(found)


@pytest.mark.skipif(find_spec('ray') is not None, reason='ray is installed')
def test_without_ray_its_option_says_what_to_install(arguments, tmp_path, capsys):
    assert cli.main([*arguments, '--out', str(tmp_path), '--ray', 'local']) == cli.EXIT_FAILED
    assert 'pip install' in capsys.readouterr().err


@pytest.fixture(scope='module')
def restless(model_dir, tmp_path_factory):
    """Results of a bag with another picture twice a second and a question every second; and what the meter counted."""
    folder = tmp_path_factory.mktemp('restless')
    questions = folder / 'questions.yaml'
    questions.write_text(yaml.safe_dump({'questions': [{'question': 'what is it', 'every_s': 1.0, 'max_tokens': 3}]}))
    bag = write_bag(folder / 'bag', {TOPIC: frames(12, changes_at=tuple(range(12)))})
    counted, run, warm_up = [], jobs.Replay.run, jobs.Replay._warm_up

    def metered(method, sign):
        def call(replay, *given):
            before = replay._vlm.meter.done
            result = method(replay, *given)
            counted.append(sign * (replay._vlm.meter.done - before).tokens)
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.Replay, 'run', metered(run, 1))
        patch.setattr(jobs.Replay, '_warm_up', metered(warm_up, -1))
        options = [str(bag), '--questions', str(questions), '--model', str(model_dir), '--out', str(folder / 'out')]
        assert cli.main(options) == 0
    return results.read(folder / 'out' / 'results.json'), sum(counted)


def test_the_work_of_all_arms_is_what_the_meter_counted(restless):
    found, counted = restless
    rows = [row for row in (*found['answers'], *found['upkeep']) if row['work']]
    assert sum(map(work_of, rows)) == counted
    for arm, counts in found['counts'].items():
        own = sum(work_of(row) for row in rows if row['arm'] == arm)
        work = counts['work'] or dict.fromkeys(('vision_tokens', 'prefill_tokens', 'decode_tokens', 'upkeep_tokens'), 0)
        assert own == work['vision_tokens'] + work['prefill_tokens'] + work['decode_tokens']
        assert work['upkeep_tokens'] == sum(work_of(row) for row in found['upkeep'] if row['arm'] == arm)


def test_on_a_bag_that_changes_all_the_time_only_the_eager_way_is_more_work_than_cold_dense(restless):
    ratios = {arm: each['work_tokens_ratio'] for arm, each in restless[0]['ratios'].items()}
    assert ratios['on-demand'] <= ratios['auto'] <= 1.0 < ratios['eager']


def test_the_default_policy_does_the_same_whichever_arms_run_beside_it(arguments, found, tmp_path):
    assert cli.main([*arguments, '--out', str(tmp_path), '--arms', 'cold']) == 0
    alone = results.read(tmp_path / 'results.json')
    for kind in ('answers', 'pictures', 'upkeep'):
        of_default = [[row for row in each[kind] if row['arm'] == 'auto'] for each in (alone, found)]
        assert results.without_times(of_default[0]) == results.without_times(of_default[1])


@pytest.mark.parametrize('step_ms', [0.0, 1e9])
@pytest.mark.parametrize('asked_s, level', [(2.0, 'frame'), (2.3, 'reuse')])
def test_upkeep_is_done_in_the_idle_time_after_a_picture_however_slow_the_machine_is(
    model_dir, tmp_path, monkeypatch, asked_s, level, step_ms
):
    monkeypatch.setattr(Cost, 'ms', lambda cost, tokens: step_ms)
    # Three follow-ups earn the credit and show a rhythm. The scene changes at 2.0 s, where there is idle time or none.
    bag = write_bag(tmp_path / 'bag', {TOPIC: frames(7, changes_at=(4,))})
    questions = tmp_path / 'questions.yaml'
    asked = {'question': 'what is it', 'at_s': [0.1, 0.6, 1.1, 1.6, asked_s], 'max_tokens': 2}
    questions.write_text(yaml.safe_dump({'questions': [asked]}))
    options = [str(bag), '--questions', str(questions), '--model', str(model_dir), '--out', str(tmp_path / 'out')]
    assert cli.main([*options, '--arms', 'on-demand']) == 0
    found = results.read(tmp_path / 'out' / 'results.json')
    levels = {arm: [row['level'] for row in found['answers'] if row['arm'] == arm] for arm in ('auto', 'on-demand')}
    assert levels['auto'] == ['full', 'reuse', 'reuse', 'reuse', level]
    assert levels['on-demand'] == ['full', 'reuse', 'reuse', 'reuse', 'frame']
    upkeep = [(row['arm'], row['picture_s']) for row in found['upkeep']]
    assert upkeep == ([('auto', 2.0)] if level == 'reuse' else [])
    # The same work, whether a question waited for it or not.
    works = [found['counts'][arm]['work'] | {'upkeep_tokens': None} for arm in ('auto', 'on-demand')]
    assert works[0] == works[1]
