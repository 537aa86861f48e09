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

"""`make demo` from its command line to its files, with a model that is quick and knows nothing; and how it ends."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from patience import PATIENCE_S, wait_for
from tiny_model import _write_weights as write_weights

from vlm_reuse_node.demo import dds
from vlm_reuse_node.demo.children import Child, ChildError
from vlm_reuse_node.demo.live import remove_own_bag
from vlm_reuse_node.demo.model_files import write_model_files
from vlm_reuse_node.demo.run import main
from vlm_reuse_node.errors import VlmReuseError

COMMAND = (sys.executable, '-m', 'vlm_reuse_node.demo.run', '--seconds', '4')


def demo(out, model, *arguments):
    command = [*COMMAND, '--out', str(out), '--model', str(model), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope='module')
def guesser(tmp_path_factory):
    """A tiny model with random weights that has the words of the tabletop."""
    folder = tmp_path_factory.mktemp('models') / 'guesser'
    write_model_files(folder)
    config = json.loads((folder / 'config.json').read_text())
    config |= {
        'hidden_size': 48,
        'num_hidden_layers': 2,
        'intermediate_size': 96,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'rope_scaling': {'type': 'mrope', 'mrope_section': [2, 2, 2]},
    }
    config['vision_config'] |= {
        'depth': 2,
        'hidden_size': 32,
        'intermediate_size': 64,
        'out_hidden_size': 48,
        'fullatt_block_indexes': [1],
    }
    (folder / 'config.json').write_text(json.dumps(config))
    write_weights(folder, config, seed=0)
    return folder


@pytest.fixture(scope='module')
def finished(tmp_path_factory, guesser):
    """A whole run: its exit code, what it printed, and its folder."""
    out = tmp_path_factory.mktemp('demo') / 'out'
    process = demo(out, guesser)
    printed = process.communicate(timeout=3 * PATIENCE_S)[0]
    return process.returncode, printed, out


def test_every_question_is_answered_and_exit_is_0(finished):
    code, printed, out = finished
    summary = json.loads((out / 'summary.json').read_text())
    assert code == 0, printed
    assert summary['questions'] == summary['answered'] == len(summary['rows']) >= 3
    assert f'{summary["questions"]} of {summary["questions"]} questions answered' in printed


def test_summary_has_what_is_promised_and_adds_up(finished):
    summary = json.loads((finished[2] / 'summary.json').read_text())
    assert {
        'questions',
        'answered',
        'correct',
        'cold_ms_median',
        'warm_ms_median',
        'speedup',
        'frames_received',
        'frames_dropped',
        'refresh_ratio',
        'refresh_levels',
        'work_ms_total',
        'cold_ms_total',
    } <= set(summary)
    assert summary['work_ratio'] == summary['work_ms_total'] / summary['cold_ms_total'] > 0
    assert summary['work'] in finished[1]
    assert summary['frames_sent'] == 40 and 0 < summary['frames_received'] <= 40
    assert summary['frames_looked_at'] == sum(summary['refresh_levels'].values())
    assert summary['refresh_ratio'] == summary['visual_tokens_refreshed'] / summary['visual_tokens']
    assert summary['speedup'] == summary['cold_ms_median'] / summary['warm_ms_median']
    assert {status['name'].split(': ')[1] for status in summary['diagnostics']} >= {'model', 'refresh budget'}


def test_warm_answers_reuse_and_cold_ones_do_not(finished):
    for row in json.loads((finished[2] / 'summary.json').read_text())['rows']:
        # A question about an unchanged picture computes nothing but itself; one about another picture waits for it.
        assert (row['warm']['tokens_reused'] > 0) == (row['warm']['level'] == 'reuse')
        assert row['cold']['tokens_reused'] == 0 < row['cold']['refresh_ms']
        assert row['equal'] is (row['warm']['cached_ns'] == row['cold']['cached_ns'] or None)


def test_the_denominator_is_named(finished):
    summary = json.loads((finished[2] / 'summary.json').read_text())
    assert summary['speedup_denominator'] == 'cold-dense on the same picture'
    assert f'{summary["speedup_denominator"]} in ' in finished[1]
    assert 0 < summary['pairs'] == summary['questions'] - summary['apart']


def test_video_stills_and_page_are_there(finished):
    out = finished[2]
    video = cv2.VideoCapture(str(out / 'overlay.webm'))
    sent = json.loads((out / 'summary.json').read_text())['frames_sent']
    assert 0 < video.get(cv2.CAP_PROP_FRAME_COUNT) <= sent  # each picture once
    assert cv2.imread(str(out / 'overlay.png')).shape[0] > 480
    assert '<!DOCTYPE html>' in (out / 'report.html').read_text()


def test_a_model_that_is_none_gives_the_nodes_own_words(tmp_path):
    process = demo(tmp_path / 'out', tmp_path / 'nothing')
    printed = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 1
    assert 'The node ended with exit code 1' in printed and 'There is no model directory' in printed
    assert 'Traceback' not in printed


@pytest.mark.parametrize('there', ['bag/precious', 'bag/metadata.yaml', 'bag'])
def test_a_folder_that_the_demo_did_not_write_is_left_alone(tmp_path, there, capsys):
    path = tmp_path / there
    path.parent.mkdir(exist_ok=True)
    path.write_text('mine')
    assert main(['--out', str(tmp_path), '--seconds', '4']) == 1
    assert capsys.readouterr().err.endswith('move it, or name another folder with --out.\n')
    assert path.read_text() == 'mine'


def test_the_results_of_an_earlier_run_are_kept(tmp_path, capsys):
    (tmp_path / 'summary.json').write_text('{}')
    assert main(['--out', str(tmp_path), '--seconds', '4']) == 1
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'another --out' in said and '--overwrite' in said
    assert [path.name for path in tmp_path.iterdir()] == ['summary.json']


def test_a_bag_of_an_earlier_run_is_removed(tmp_path):
    (tmp_path / 'bag').mkdir()
    for name in ('bag/metadata.yaml', 'bag.questions.yaml'):
        (tmp_path / name).touch()
    remove_own_bag(tmp_path / 'bag')
    remove_own_bag(tmp_path / 'bag')
    assert not (tmp_path / 'bag').exists()


def test_a_length_that_makes_no_sense_is_refused(tmp_path):
    process = demo(tmp_path / 'out', 'tabletop', '--seconds', '-1')
    assert process.wait(PATIENCE_S) == 2
    assert '--seconds is -1' in process.stdout.read()


def test_a_domain_is_claimed_once_and_is_free_again_with_its_claim(monkeypatch):
    (one, claim), (other, other_claim) = dds.claim_domain(7), dds.claim_domain(7)
    with other_claim:
        monkeypatch.setattr(dds, 'DOMAINS', [one])
        with claim, pytest.raises(VlmReuseError, match='all in use'):
            dds.claim_domain(7)
        again, claim = dds.claim_domain(7)
        claim.close()
    assert again == one != other and {one, other} <= set(range(1, 101))


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds the children in /proc, which is not here')
@pytest.mark.parametrize(
    'request_, code',
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_nothing_outlives_the_demo(tmp_path, guesser, request_, code):
    process = demo(tmp_path / 'out', guesser, '--seconds', '8')
    try:
        children = wait_for(lambda: process.poll() is not None or both_children_of(process.pid))
        assert process.poll() is None, process.stdout.read()
        process.send_signal(request_)
        printed = process.communicate(timeout=PATIENCE_S)[0]
        assert process.returncode == code, printed
        assert 'Traceback' not in printed
        wait_for(lambda: not any(map(is_alive, children)))
    finally:
        process.kill()


def test_a_child_that_does_not_listen_is_ended_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'vlm_reuse_node.demo.children.PATIENCE_S', {signal.SIGINT: 0.2, signal.SIGTERM: 0.2, signal.SIGKILL: 5.0}
    )
    deaf = (
        'import signal, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\nprint("deaf", flush=True)\n'
        'time.sleep(600)'
    )
    with Child('deaf one', [sys.executable, '-c', deaf], tmp_path / 'log') as child:
        wait_for(lambda: 'deaf' in child.tail())
    assert child.has_ended


def test_a_child_that_fails_is_quoted(tmp_path):
    with Child('talker', [sys.executable, '-c', 'print("last words"); raise SystemExit(3)'], tmp_path / 'log') as child:
        wait_for(lambda: child.has_ended)
        with pytest.raises(ChildError, match='(?s)talker ended with exit code 3.*last words'):
            child.check()


def test_a_child_that_ends_well_is_missed_only_where_it_is_needed(tmp_path):
    with Child('brief one', [sys.executable, '-c', ''], tmp_path / 'log') as child:
        wait_for(lambda: child.has_ended)
        child.check()
        with pytest.raises(ChildError, match='too early'):
            child.check_running()


def both_children_of(pid):
    """The node and the player, once both run."""
    children = [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    return children if len(children) == 2 else None


def is_alive(pid):
    """Whether the process runs; one that only waits for its exit code to be fetched does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False
