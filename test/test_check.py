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

"""The check's pictures, table, JSON, advice and command line. What it finds in a broken model: test_check_faults.py."""

import json
import re
import signal
import threading
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S
from replay_bags import frames as bag_frames
from replay_bags import scene, storage_file, write_bag
from tiny_generic import write_tiny_generic
from tiny_model import picture

from vlm_reuse_node.check import advice, cli, machine, pictures, self_test, sizes
from vlm_reuse_node.check.claim import Claim, Mark
from vlm_reuse_node.check.cold import Difference
from vlm_reuse_node.check.lines import LONGEST, WIDTH
from vlm_reuse_node.check.patches import partly
from vlm_reuse_node.check.report import PictureFacts, Report, to_json
from vlm_reuse_node.check.sizes import Size
from vlm_reuse_node.check.stages import COLD, IMAGE, LOOK, QUESTION, SLOT, TOKEN, VISION, Stage, Stages
from vlm_reuse_node.check.table import table_lines
from vlm_reuse_node.config import Config
from vlm_reuse_node.model.families.base import Grid
from vlm_reuse_node.model.loading import load
from vlm_reuse_node.plain_text import one_line
from vlm_reuse_node.replay.storage.channel import BagError
from vlm_reuse_node.session.question import Question

PAGE = (Path(__file__).parents[1] / 'docs' / 'check.md').read_text()
FACTS = machine.ModelFacts('tabletop', 'qwen2_5_vl', 'qwen2_5_vl', 'float32', 12.0, 4096)
HERE = machine.Machine('Linux, x86_64', 'A Processor', 'CPU', 'CPU build', {'mlx': '1'}, 0.0, 16_000.0, 9_000.0)
NAMES = (LOOK, IMAGE, VISION, SLOT, QUESTION, TOKEN, COLD)


def timed(ms=10.0):
    """Stages that take so many milliseconds each."""
    stages = Stages.__new__(Stages)
    stages.found = [Stage(name, ms, '64 cells', 1, 'as an example') for name in NAMES]
    return stages


def report(claims=(), **values):
    """A report with some claims."""
    stages = timed()
    fits = advice.memory(HERE, FACTS, 1.0, 70, 50.0)
    made = {
        'model': FACTS,
        'machine': HERE,
        'pictures': PictureFacts('generated tabletops', 4, 640, 480, (9, 12)),
        'claims': tuple(claims),
        'stages': tuple(stages.found),
        'sizes': (Size(0, 108, 108, 112, 1.0, 2.0, 3.0, 4.0), Size(54, 54, 54, 50)),
        'sizes_note': 'Not all sizes were timed.',
        'rates': advice.rates(stages),
        'memory': fits,
        'suggestions': tuple(advice.suggestions(Config(), stages, fits, False, '')),
        'seconds': 12.0,
    }
    return Report(**(made | values))


def held(name='frame', **values):
    return Claim(name, 'as an example', asked=3, equal=3, **values)


def test_a_difference_is_noise_below_its_bound_only():
    assert Difference(0.9, 1.0).is_noise
    assert not Difference(1.0, 1.0).is_noise and not Difference(float('nan'), 1.0).is_noise
    claim, measured = held(), held(is_measurement=True)
    for each in (claim, measured):
        each.compare('features', Difference(float('nan'), 1.0))
    assert (claim.mark, measured.mark) == (Mark.FAULT, Mark.MEASURED)


def test_nothing_is_trusted_without_a_claim_that_held():
    assert report([held()]).is_trusted
    none = Claim('patch', '', reason='its family cannot encode single cells')
    assert report([held(), none]).is_trusted and not report([none]).is_trusted and not report().is_trusted
    assert not report([held(), held(faults=['It is broken.'])]).is_trusted


TEXTS = st.text(max_size=300) | st.sampled_from(
    ['\x1b[31mred\x1b[0m', 'a\nb\r\x00', 'x' * 500, "it's: {}", '\u202eevil']
)


@given(TEXTS, TEXTS, TEXTS)
def test_the_table_is_at_most_80_wide_and_texts_from_outside_are_harmless(name, topic, fault):
    made = report(
        [held(), held('reuse', faults=[fault]), Claim('patch', '', reason=fault, is_measurement=True)],
        model=replace(FACTS, name=name, precision=name),
        machine=replace(HERE, processor=name, device=topic),
        pictures=PictureFacts(f'of live topic {topic}', 2, 640, 480, (9, 12)),
        suggestions=tuple(advice.suggestions(Config(model=name), timed(), report().memory, True, fault)),
    )
    lines = table_lines(made)
    assert max(map(len, lines)) <= WIDTH
    assert all(line.isprintable() for line in lines)


@given(TEXTS)
def test_a_text_from_outside_becomes_one_line(text):
    line = one_line(text, LONGEST)
    assert line.isprintable() and len(line) <= 60 and line == line.strip()


def test_the_table_says_what_a_reader_must_know():
    claims = [
        held(differences={'log-probabilities of texts': Difference(1e-6, 3.0)}),
        Claim('patch all', '', reason='its family cannot encode single cells'),
        held('patch drift', is_measurement=True),
        held('reuse', faults=['The state is not bit for bit what it was.']),
    ]
    text = ' '.join(' '.join(table_lines(report(claims))).split())
    for sentence in (
        'FAULT reuse: The state is not bit for bit what it was.',
        'patch all: its family cannot encode single cells',
        'This is a measurement, no fault',
        'calibrate measures their drift on a recording',
        'float32 moves log-probabilities by up to 3 here',
        'FAULT do not trust this model here: 1 claims failed',
        'refresh_policy: exact',
    ):
        assert sentence in text
    assert 'every claim held' in '\n'.join(table_lines(report([held()])))


def test_the_json_is_valid_and_its_page_names_every_field():
    claims = [held(differences={'visual features': Difference(float('nan'), float('inf'))})]
    content = to_json(report(claims))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content['claims'][0]['differences'] == {'visual features': {'apart': None, 'bound': None}}
    assert (content['trusted'], content['claims'][0]['mark']) == (True, 'PASS')
    records = (machine.ModelFacts, machine.Machine, PictureFacts, Claim, Stage, Size, advice.Memory, advice.Suggestion)
    names = {*content, *(field.name for record in records for field in fields(record))}
    assert {name for name in names if f'`{name}`' not in PAGE} == set()


@given(st.floats(1.0, 1e6), st.floats(0.01, 1e3), st.integers(1, 5000), st.integers(100, 1_000_000))
def test_what_is_said_to_fit_fits(available_mb, picture_mb, tokens, context):
    fits = advice.memory(
        replace(HERE, available_mb=available_mb), replace(FACTS, context=context), picture_mb, tokens, 50.0
    )
    assert fits.room_mb == available_mb and fits.max_cache_mb <= max(1, available_mb / 2)
    assert fits.pictures_that_fit * picture_mb <= fits.max_cache_mb
    assert fits.pictures_that_fit * tokens <= context
    Config(max_cache_mb=fits.max_cache_mb, history_frames=max(0, fits.pictures_that_fit - 1))


def test_on_a_device_the_weights_and_what_mlx_keeps_are_not_room():
    fits = [
        advice.memory(replace(HERE, device_mb=8000.0), replace(FACTS, weights_mb=weights_mb), 1.0, 100, 50.0)
        for weights_mb in (1000.0, 3000.0, 9000.0)
    ]
    assert [each.room_mb for each in fits] == [6000.0, 4000.0, 0.0]


@pytest.mark.parametrize('ms', [0.001, 10.0, 1e5])
@pytest.mark.parametrize('can_patch', [True, False])
def test_suggested_parameters_are_parameters_of_the_node(ms, can_patch):
    found = advice.suggestions(Config(), timed(ms), report().memory, can_patch, 'here it is patch.')
    config = Config().with_values(**{each.name: each.value for each in found})
    assert config.refresh_policy == ('auto' if can_patch else 'exact')
    assert config.timeout_s >= min((ms + config.max_tokens * ms) / 1e3, advice.LONGEST_TIMEOUT_S)


@pytest.mark.parametrize('tag, neural', [('macosx_14_0_arm64', False), ('macosx_26_0_arm64', True)])
def test_the_metal_library_is_that_of_the_wheel(tag, neural, tmp_path, monkeypatch):
    folder = tmp_path / 'mlx_metal-0.32.4.dist-info'
    folder.mkdir()
    (folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: mlx-metal\nVersion: 0.32.4\n')
    (folder / 'WHEEL').write_text(f'Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-{tag}\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version('mlx-metal') == '0.32.4'
    assert tag in machine.mlx_build() and ('neural accelerators' in machine.mlx_build()) == neural


def test_generated_pictures_differ_and_are_the_same_in_every_run():
    first, second = pictures.generated(), pictures.generated()
    assert len(first.frames) == first.different == pictures.COUNT
    assert all(np.array_equal(one.rgb, other.rgb) for one, other in zip(first.frames, second.frames))


def test_recorded_pictures_are_spread_and_their_stamps_rise(tmp_path):
    bag = write_bag(tmp_path / 'bag', {'/front/image_raw': bag_frames(12)})
    found = pictures.recorded(bag, '')
    assert [np.array_equal(frame.rgb, scene(2 * number)) for number, frame in enumerate(found.frames)] == [True] * 4
    assert np.all(np.diff([frame.stamp_ns for frame in found.frames]) > 0)
    assert found.source == "of recording 'bag', topic /front/image_raw"


def test_one_picture_is_enough(tmp_path):
    bag = write_bag(tmp_path / 'bag', {'/front/image_raw': bag_frames(1)})
    found = pictures.recorded(bag, '/front/image_raw')
    assert len(found.frames) == pictures.COUNT and found.different == 1


def test_pictures_of_another_size_are_left_out():
    found = pictures.in_turn([picture(1), picture(2, size=(240, 320)), picture(3)], 'of blocks')
    assert {frame.size for frame in found.frames} == {(480, 640)} and found.different == 2


def test_recordings_that_cannot_be_used_are_one_sentence(tmp_path):
    with pytest.raises(BagError, match='has no pictures'):
        pictures.recorded(write_bag(tmp_path / 'texts', {'/text': []}), '')
    with pytest.raises(BagError, match='/rear'):
        pictures.recorded(write_bag(tmp_path / 'front', {'/front/image_raw': bag_frames(2)}), '/rear')
    with pytest.raises(BagError):
        pictures.recorded(tmp_path / 'nothing', '')


@pytest.mark.parametrize('share', [0.02, 0.1, 0.5])
@pytest.mark.parametrize('other', [1, 2])
def test_a_part_of_a_picture_changes_even_in_a_still_scene(share, other):
    grid, older = Grid(12, 16), picture(1)
    newer = partly(older, picture(other), grid, share)
    changed = (newer.rgb != older.rgb).any(axis=2).mean()
    assert 0 < changed <= 2 * share and newer.stamp_ns > older.stamp_ns


@pytest.mark.parametrize(
    'arguments, code, words',
    [
        (['--questions', '5'], cli.EXIT_USAGE, 'expected 6 to 120'),
        (['--timeout', 'nan'], cli.EXIT_USAGE, 'expected more than 0'),
        (['--model', '/no/such/model'], cli.EXIT_FAILED, "There is no model directory '/no/such/model'"),
        (['--recording', '/no/such/bag'], cli.EXIT_FAILED, '/no/such/bag'),
        (['--model', 'no\nsuch\x1b[0m model'], cli.EXIT_FAILED, 'There is no model directory'),
    ],
)
def test_what_cannot_be_checked_is_one_line_that_says_what_to_do(arguments, code, words, tmp_path, capsys):
    assert cli.main([*arguments, '--out', str(tmp_path / 'out')]) == code
    said = capsys.readouterr()
    assert said.out == '' and words in said.err
    lines = said.err.splitlines()  # what it was doing, and the reason last
    assert words in lines[-1] and all(line.startswith('check: ') and line.isprintable() for line in lines)
    assert not list((tmp_path / 'out').glob('*'))


def test_a_damaged_recording_is_one_line(tmp_path, capsys):
    bag = write_bag(tmp_path / 'bag', {'/front/image_raw': bag_frames(3)})
    storage_file(bag).write_bytes(b'nothing')
    assert cli.main(['--recording', str(bag), '--out', str(tmp_path / 'out')]) == cli.EXIT_FAILED
    assert capsys.readouterr().err.count('\n') == 1


def test_an_unknown_option_is_a_wrong_use():
    with pytest.raises(SystemExit) as ended:
        cli.main(['--unknown'])
    assert ended.value.code == cli.EXIT_USAGE


def test_a_model_is_checked_on_a_recording_and_told_as_json(model_dir, tmp_path, capsys):
    bag = write_bag(tmp_path / 'bag', {'/front/image_raw': bag_frames(8)})
    arguments = ['--model', str(model_dir), '--recording', str(bag), '--questions', str(cli.FEW), '--json']
    assert cli.main([*arguments, '--out', str(tmp_path / 'out')]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / 'out' / 'check.json').read_text())
    assert told['trusted'] and told['pictures']['source'].startswith("of recording 'bag'")
    assert {stage['name'] for stage in told['stages']} >= set(NAMES)
    assert re.match(r'\d+\.\d+', told['machine']['versions']['mlx'])


def test_ctrl_c_ends_before_the_next_part(model_dir):
    parts, told, main_thread = [], threading.Event(), threading.get_ident()

    def progress(part):
        parts.append(part)
        if part == 'frame':
            signal.pthread_kill(main_thread, signal.SIGINT)
            assert told.wait(PATIENCE_S)

    four = pictures.in_turn([picture(seed) for seed in range(4)], 'of blocks')
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of several test runners ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            self_test.run_check(Config(model=str(model_dir)), four, cli.FEW, progress, told.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert parts[-1] == 'frame' and told.is_set() and threading.current_thread() is threading.main_thread()


def test_sizes_begin_with_the_one_that_was_checked_and_become_smaller(vlm, monkeypatch):
    measured, frame = timed(), picture(1, size=(480, 640))
    measured.choice = Question('is it red ?', choices=('yes', 'no'))
    found, note = sizes.sizes(vlm, 0, measured, frame)
    assert found[0].visual_tokens == 0 and found[0].cells == vlm.grid(frame.rgb).cells and note == ''
    assert len(found) > 2 and all(after.cells < before.cells for before, after in zip(found, found[1:]))
    for size in found[1:]:
        assert (
            size.cells <= size.visual_tokens and min(size.vision_ms, size.frame_ms, size.cold_ms, size.picture_mb) > 0
        )
        other = vlm.with_visual_tokens(size.visual_tokens)
        assert size.cells_1080 == other.grid(picture(2, size=(1080, 1920)).rgb).cells
    monkeypatch.setattr(sizes, 'LONGEST_S', 0.0)
    slow, note = sizes.sizes(vlm, 0, measured, frame)
    assert [size.cells for size in slow] == [size.cells for size in found] and 'Not all sizes were timed' in note
    assert slow[0].cold_ms and all(size.cold_ms is None for size in slow[1:])


def test_a_model_with_one_size_of_pictures_has_one_row_and_says_why(tmp_path):
    vlm, measured = load(str(write_tiny_generic(tmp_path / 'tiny', 'llava'))), timed()
    measured.choice = Question('is it red ?', choices=('yes', 'no'))
    found, note = sizes.sizes(vlm, 0, measured, picture(1))
    assert len(found) == 1 and 'has no setting for the size' in note
