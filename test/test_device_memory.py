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

"""Memory limits on Metal and CUDA, with MLX's functions replaced; and that a CPU is left alone."""

import mlx.core as mx
import pytest

from vlm_reuse_node.model import device_memory, loading
from vlm_reuse_node.model import vlm as vlms

WORKING_SET = 16_000_000_000
BEFORE = {'wired': 7, 'cache': 24_000_000_000}


class Mlx:
    """Stands for `mlx.core` on one kind of device, 'metal', 'cuda' or 'cpu'; notes every call that changes MLX.

    limits: as MLX has them now. calls: what was called, in order.
    """

    cpu, gpu = 'cpu', 'gpu'

    def __init__(self, kind, working_set=WORKING_SET):
        """Start as MLX does before anybody sets a limit. working_set: of the device, bytes."""
        self.kind, self.working_set = kind, working_set
        self.limits, self.calls = dict(BEFORE), []
        self.metal = self

    def is_available(self):
        """Whether it is Metal."""
        return self.kind == 'metal'

    def Device(self, kind):  # noqa: N802, as MLX names it
        """A device of this kind."""
        return kind

    def default_device(self):
        """The device that MLX computes on."""
        return 'cpu' if self.kind == 'cpu' else 'gpu'

    def device_info(self):
        """What the backend says about its device; each has its own names."""
        names = {'metal': 'max_recommended_working_set_size', 'cuda': 'total_memory'}
        return {'device_name': 'a device', names[self.kind]: self.working_set}

    def set_wired_limit(self, limit):
        """As MLX does, refuse more than the working set and return the limit before."""
        assert self.kind == 'metal' and limit <= self.working_set
        return self._set('wired', limit)

    def set_cache_limit(self, limit):
        """Return the limit before."""
        return self._set('cache', limit)

    def get_active_memory(self):
        """Bytes of arrays."""
        return 0

    def synchronize(self):
        """Wait for the device."""
        self.calls.append('synchronize')

    def clear_cache(self):
        """Free the kept buffers."""
        self.calls.append('clear_cache')

    def _set(self, name, limit):
        before, self.limits[name] = self.limits[name], limit
        self.calls.append(name)
        return before


@pytest.fixture
def on(monkeypatch):
    """Make MLX's memory that of another device."""

    def use(*arguments):
        mlx = Mlx(*arguments)
        monkeypatch.setattr(device_memory, 'mx', mlx)
        return mlx

    monkeypatch.setattr(device_memory, '_before', None)
    monkeypatch.setattr(mx, 'clear_streams', lambda: None)  # this thread goes on
    return use


def test_metal_keeps_the_model_wired_and_few_freed_buffers_until_it_is_released(model_dir, on):
    metal = on('metal')
    vlm = loading.load(str(model_dir))
    assert metal.limits['wired'] == WORKING_SET
    assert 0 < metal.limits['cache'] <= WORKING_SET / 4 and metal.limits['cache'] < BEFORE['cache']
    del vlm
    metal.calls.clear()
    loading.release_thread()
    assert metal.limits == BEFORE
    assert metal.calls[0] == 'synchronize'  # the device may still be using what was wired


def test_cuda_has_no_wired_limit(model_dir, on):
    cuda = on('cuda')
    loading.load(str(model_dir))
    assert cuda.calls == ['cache'] and 0 < cuda.limits['cache'] <= WORKING_SET / 4
    loading.release_thread()
    assert cuda.limits == BEFORE


def test_a_second_model_does_not_hide_the_limits_before_the_first(model_dir, on):
    metal = on('metal')
    for _ in range(2):
        loading.load(str(model_dir))
    loading.release_thread()
    assert metal.limits == BEFORE
    metal.calls.clear()
    loading.release_thread()  # of another thread: nothing is left to restore
    assert metal.calls == []


def test_a_cpu_is_left_alone(model_dir, on, caplog):
    cpu = on('cpu', 1)
    vlm = loading.load(str(model_dir))
    device_memory.clear_between_chunks()
    assert vlm.name and cpu.calls == [] and not caplog.records


def test_a_model_that_failed_to_load_leaves_no_limit(tmp_path, on):
    metal = on('metal')
    with pytest.raises(loading.ModelError):
        loading.load(str(tmp_path))
    assert metal.calls == []


@pytest.mark.parametrize('kind', ['metal', 'cuda'])
def test_a_model_that_fills_the_device_is_warned_of_in_one_line(model_dir, on, caplog, kind):
    weights = sum(array.nbytes for array in mx.load(str(model_dir / 'model.safetensors')).values())
    on(kind, 4 * weights)
    loading.load(str(model_dir))
    assert not caplog.records
    most = (model_dir / 'model.safetensors').stat().st_size
    on(kind, most)
    loading.load(str(model_dir))
    (record,) = caplog.records
    said = record.getMessage()
    assert '\n' not in said and 'smaller' in said
    assert f'takes {weights // 1_000_000} MB' in said and f'at most {most // 1_000_000} MB' in said
    assert ('iogpu.wired_limit_mb' in said) == (kind == 'metal')


@pytest.mark.parametrize(('kind', 'tokens'), [('metal', 3), ('metal', 5), ('metal', 14), ('cuda', 14), ('cpu', 14)])
def test_buffers_are_freed_between_the_chunks_of_a_prefill_and_only_there(vlm, on, monkeypatch, kind, tokens):
    mlx, forward = on(kind), vlm.family.forward
    monkeypatch.setattr(vlms, 'PREFILL_CHUNK', 5)
    monkeypatch.setattr(vlm.family, 'forward', lambda *given: mlx.calls.append('forward') or forward(*given))
    vlm.read(vlm.new_cache(), list(range(20, 20 + tokens)), 0)
    chunks = -(-tokens // 5)
    between = [] if kind == 'cpu' else ['clear_cache']
    assert mlx.calls == ['forward'] + [*between, 'forward'] * (chunks - 1)
