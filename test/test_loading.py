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

"""Before and while a model loads: whether there is room for it, and how far it is."""

import json
import shutil
import subprocess
import sys

import mlx.core as mx
import mlx_vlm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from patience import PATIENCE_S
from PIL import Image
from programs import environment
from tiny_model import write_tiny_model
from tqdm.auto import tqdm

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import device_memory, hub, load_progress, loading, weights
from vlm_reuse_node.model.load_progress import Amount, LoadProgress
from vlm_reuse_node.serving.worker import ModelWorker

ON_CPU = mx.default_device() == mx.Device(mx.cpu)


@pytest.mark.parametrize('short', [1, 10**9])
def test_a_model_larger_than_the_memory_is_refused_in_one_sentence_before_mlx_loads_anything(
    model_dir, monkeypatch, short
):
    size = weights.disk_bytes(weights.weight_files(model_dir))
    monkeypatch.setattr(mlx_vlm, 'load', lambda *_, **__: pytest.fail('mlx-vlm was asked to load it'))
    monkeypatch.setattr(mx, 'load', lambda *_, **__: pytest.fail('MLX was asked to load it'))
    monkeypatch.setattr(device_memory, 'available_bytes', lambda: max(0, size - short))
    with pytest.raises(ModelError) as error:
        loading.load(str(model_dir))
    said = str(error.value)
    assert f'{load_progress.sized(size)} of weights' in said and said.count('.') - said.count(' MB') <= 3
    assert f'{load_progress.sized(max(0, size - short))} of memory is available' in said
    assert 'smaller or more quantised model, or close other programs' in said and '\n' not in said


def test_a_model_that_fits_is_told_with_both_numbers_and_loaded(model_dir, monkeypatch):
    lines = []
    size = weights.disk_bytes(weights.weight_files(model_dir))
    monkeypatch.setattr(device_memory, 'available_bytes', lambda: size)
    assert loading.load(str(model_dir), progress=LoadProgress(lines.append)).name == model_dir.name
    (line,) = lines
    assert (
        line.count(load_progress.sized(size)) == 2 and 'memory is available' in line and f"'{model_dir.name}'" in line
    )


def with_half(folder):
    """The tiny model's weights in half precision."""
    write_tiny_model(folder)
    file = folder / 'model.safetensors'
    half = {name: value.astype(mx.bfloat16) for name, value in mx.load(str(file)).items()}
    mx.eval(half)
    mx.save_safetensors(str(file), half)
    return folder


@pytest.mark.skipif(not ON_CPU, reason='only a CPU makes float32 of half precision')
def test_half_precision_needs_twice_its_size_on_a_cpu(tmp_path, monkeypatch):
    folder = with_half(tmp_path / 'half')
    files = weights.weight_files(folder)
    size, numbers = weights.disk_bytes(files), sum(each.nbytes for each in mx.load(str(files[0])).values())
    assert weights.float32_bytes(files) == size + numbers
    monkeypatch.setattr(device_memory, 'available_bytes', lambda: size + numbers - 1)
    with pytest.raises(ModelError, match=r'of weights, .* in float32, and .* of memory is available'):
        loading.load(str(folder))
    monkeypatch.setattr(device_memory, 'available_bytes', lambda: size + numbers)
    assert loading.load(str(folder)).precision == 'float32'


@pytest.mark.parametrize('header', [b'', b'\xff' * 8, b'\x04\0\0\0\0\0\0\0[1]x', b'\x02\0\0\0\0\0\0\0[]'])
def test_a_damaged_file_counts_with_its_size(tmp_path, header):
    file = tmp_path / 'model.safetensors'
    file.write_bytes(header)
    assert weights.float32_bytes([file]) == len(header)


def test_weights_whose_links_lead_nowhere_are_told_as_missing(model_dir, tmp_path):
    """A hub snapshot that was copied without the files behind its links."""
    folder = tmp_path / 'snapshot'
    folder.mkdir()
    for file in model_dir.iterdir():
        (folder / file.name).symlink_to('nowhere' if file.suffix == '.safetensors' else file)
    with pytest.raises(ModelError, match='has no .*safetensors files'):
        loading.load(str(folder))
    (folder / 'model.safetensors').unlink()
    (folder / 'model.safetensors').symlink_to(model_dir / 'model.safetensors')
    assert loading.load(str(folder)).fingerprint == loading.load(str(model_dir)).fingerprint


@pytest.mark.parametrize('name', ['~nobody-of-this-name/model', 'x' * 5000, 'a' * 300 + '/' + 'b' * 300])
def test_a_name_that_can_be_no_path_is_refused_in_one_sentence(name, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(ModelError, match='There is no model directory|HF_HUB_OFFLINE forbids'):
        loading.load(name)


@pytest.mark.parametrize('name', ['config.json', weights.INDEX, 'model.safetensors'])
def test_json_that_is_nested_too_deep_is_refused_in_one_sentence(model_dir, tmp_path, name):
    folder = shutil.copytree(model_dir, tmp_path / 'deep')
    length = 100_000
    (folder / name).write_bytes((length.to_bytes(8, 'little') if name.endswith('rs') else b'') + b'[' * length)
    with pytest.raises(ModelError, match='cannot be (read|loaded)'):
        loading.load(str(folder))


def test_the_files_are_those_that_mlx_vlm_reads(tmp_path):
    for name in ('b.safetensors', 'a.safetensors', 'consolidated.safetensors', 'config.json'):
        (tmp_path / name).write_bytes(b'12345')
    assert [path.name for path in weights.weight_files(tmp_path)] == ['a.safetensors', 'b.safetensors']
    index = tmp_path / weights.INDEX
    index.write_text(json.dumps({'weight_map': {'x': 'b.safetensors', 'y': 'b.safetensors', 'z': 'gone.safetensors'}}))
    assert [path.name for path in weights.weight_files(tmp_path)] == ['b.safetensors']
    assert weights.disk_bytes(weights.weight_files(tmp_path)) == 5
    for text in ('[', '{}', '[]', '{"weight_map": 1}'):
        index.write_text(text)
        assert len(weights.weight_files(tmp_path)) == 2


@pytest.mark.parametrize(
    'amount, text',
    [
        (Amount(3_100_000_000, 8_200_000_000), '3.1 of 8.2 GB'),
        (Amount(31_000_000, 8_200_000_000), '0.0 of 8.2 GB'),
        (Amount(9_000_000_000, 8_200_000_000), '8.2 of 8.2 GB'),
        (Amount(1_500_000, 11_500_000), '1.5 of 11.5 MB'),
        (Amount(1_500_000, 0), '1.5 MB'),
    ],
)
def test_an_amount_has_one_unit_and_is_never_more_than_all(amount, text):
    assert str(amount) == text


def test_lines_come_at_most_every_few_seconds_and_only_while_something_loads(monkeypatch):
    lines, now_s = [], [0.0]
    monkeypatch.setattr(load_progress.time, 'monotonic', lambda: now_s[0])
    progress = LoadProgress(lines.append)
    for number in range(100):
        now_s[0] = number / 10
        progress.tell_when_due()
    assert not lines and progress.text == ''
    progress.begin('loading weights', lambda: Amount(int(now_s[0] * 1e9), 60_000_000_000))
    for number in range(100, 400):
        now_s[0] = number / 10
        progress.tell_when_due()
    assert 30 / load_progress.EVERY_S - 1 <= len(lines) <= 30 / load_progress.EVERY_S
    assert lines[0] == 'Loading weights: 14.9 of 60.0 GB.' and progress.text == 'loading weights: 39.9 of 60.0 GB'
    progress.end()
    now_s[0] = 1000.0
    progress.tell_when_due()
    assert progress.text == '' and 'GB' in lines[-1] and len(lines) <= 6


def test_while_weights_load_their_bytes_are_told_and_all_of_them_are_read(model_dir, monkeypatch):
    seen, progress, evaluate = [], LoadProgress(lambda line: None), mx.eval

    def look(*arrays):
        seen.append(progress.text)
        evaluate(*arrays)

    with monkeypatch.context() as patch:
        patch.setattr(loading, 'READ_AT_ONCE_BYTES', 100_000)
        patch.setattr(loading.mx, 'eval', look)
        vlm = loading.load(str(model_dir), progress=progress)
    told = [line for line in seen if line]
    done = [float(line.split()[2]) for line in told]
    assert len(told) > 3 and done == sorted(done) and done[0] == 0 < done[-1] and progress.text == ''
    total = sum(array.nbytes for _, array in tree_flatten(vlm._model.parameters()))
    assert told[-1].endswith(f' of {load_progress.sized(total)}')


class Hub:
    """Stands for `huggingface_hub.snapshot_download` of a model that is not in the cache: no network is needed.

    It uses the class of bars that it is given as the library does: one bar for bytes that come, one for bytes that are
    written, both without a total at first, and one for files.
    """

    def __init__(self, folder, fails=False):
        self.folder, self.fails, self.look = folder, fails, lambda: None
        self.asked = []

    def __call__(self, name, local_files_only=False, allow_patterns=None, tqdm_class=tqdm):
        self.asked.append(allow_patterns)
        if local_files_only:
            raise FileNotFoundError(name)
        come = tqdm_class(desc='Downloading bytes', total=0, initial=0, unit='B', unit_scale=True)
        written = tqdm_class(desc='Reconstructing (incomplete total...)', total=0, initial=0, unit='B', unit_scale=True)
        for _ in tqdm_class(range(2), desc='Fetching 2 files'):
            written.total = (written.total or 0) + 2_000_000_000
            written.refresh()
            written.update(500_000_000)
            come.update(1_000_000)
            self.look()
        if self.fails:
            raise OSError('the line is down')
        return str(self.folder)


def test_while_a_model_downloads_its_bytes_are_told_and_no_bar_is_drawn(model_dir, monkeypatch, capfd):
    stand_in, told = Hub(model_dir), []
    monkeypatch.setattr('huggingface_hub.snapshot_download', stand_in)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    progress = LoadProgress(lambda line: None)
    stand_in.look = lambda: told.append(progress.text)
    assert loading.load('org/tiny', progress=progress).name == 'org/tiny'
    assert told == ['downloading: 0.5 of 2.0 GB', 'downloading: 1.0 of 4.0 GB'] and progress.text == ''
    assert '\r' not in capfd.readouterr().err
    assert '*.safetensors' in stand_in.asked[-1] and '*.json' in stand_in.asked[-1]


def test_a_download_that_fails_is_one_sentence_and_leaves_no_progress(model_dir, monkeypatch):
    monkeypatch.setattr('huggingface_hub.snapshot_download', Hub(model_dir, fails=True))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    progress = LoadProgress(lambda line: None)
    with pytest.raises(ModelError, match='the hub did not deliver it: .*the line is down'):
        loading.load('org/tiny', progress=progress)
    assert progress.text == ''


@pytest.mark.parametrize('lost', ['config.json', 'model.safetensors'])
def test_a_download_that_was_interrupted_is_taken_up_again(model_dir, tmp_path, monkeypatch, lost):
    """The hub library returns the directory of a model of which only some files are there."""
    rest = shutil.copytree(model_dir, tmp_path / 'rest')
    (rest / lost).unlink()
    if lost != 'config.json':
        mx.save_safetensors(str(rest / 'other.safetensors'), {'one': mx.zeros(1)})
        (rest / weights.INDEX).write_text(json.dumps({'weight_map': {'one': 'other.safetensors', 'two': lost}}))
    delivered = Hub(model_dir)

    def hub(name, local_files_only=False, **given):
        return str(rest) if local_files_only else delivered(name, **given)

    monkeypatch.setattr('huggingface_hub.snapshot_download', hub)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    assert loading.load('org/tiny').name == 'org/tiny' and len(delivered.asked) == 1
    (rest / lost).write_bytes((model_dir / lost).read_bytes())
    (rest / weights.INDEX).write_text(json.dumps({'weight_map': {'one': 'model-00001-of-00002.safetensors'}}))
    (rest / 'other.safetensors').unlink(missing_ok=True)
    assert loading.load('org/tiny').name == 'org/tiny' and len(delivered.asked) == 1


def test_the_hub_library_takes_our_bars():
    """Its own way to make and move them, as it is installed here."""
    from huggingface_hub.utils import tqdm as hub_tqdm

    made = []
    stand_in = Hub('/nowhere')
    stand_in.look = lambda: made.append(True)
    progress = LoadProgress(lambda line: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('huggingface_hub.snapshot_download', stand_in)
        patch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
        assert str(hub.download('org/tiny', progress)) == '/nowhere'
    assert made and issubclass(hub_tqdm, tqdm.__mro__[1])


def test_a_program_whose_output_is_a_file_prints_whole_lines(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(tmp_path / 'grey.png')
    command = ['-m', 'vlm_reuse_node.ask.cli', 'is it red ?', '--choices', 'yes', 'no', '--picture']
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / 'grey.png')],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("Loading 'tabletop': ") and b'\r' not in done.stderr and done.stderr.endswith(b'\n')


def test_a_worker_tells_what_it_loads(model_dir, monkeypatch):
    from vlm_reuse_node.config import Config

    told, load = [], mlx_vlm.load
    worker = ModelWorker(Config(model=str(model_dir)))
    monkeypatch.setattr(mlx_vlm, 'load', lambda *args, **kwargs: told.append(worker.loading) or load(*args, **kwargs))
    worker.start()
    try:
        assert told[0].startswith('loading weights: 0.0 of ') and worker.loading == ''
    finally:
        worker.stop()
