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

"""Downloads a model from the hub, and tells how far that is."""

import io
from pathlib import Path
from typing import Any

from tqdm.std import tqdm

from vlm_reuse_node.model.load_progress import Amount, LoadProgress

# The files that mlx-vlm asks for. Source: `get_model_path` in mlx_vlm/utils.py.
PATTERNS = ['*.json', '*.jsonl', '*.safetensors', '*.py', '*.model', '*.tiktoken', '*.txt', '*.jinja']


def download(name: str, progress: LoadProgress) -> Path:
    """Download what is missing of a model in this host's hub cache. Returns its directory; raises what the hub raises.

    The hub library draws its bars nowhere: their bytes go to `progress`.
    """
    from huggingface_hub import snapshot_download

    bars: list[tqdm] = []

    class Bar(tqdm):
        """A bar that is not drawn."""

        monitor_interval = 0  # no thread that draws it again

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop('name', None)  # of the hub library's own bars
            super().__init__(*args, **{**kwargs, 'file': io.StringIO(), 'disable': False})
            if kwargs.get('unit') == 'B':
                bars.append(self)

    def amount() -> Amount:
        # Bytes that came over the network and bytes that were written have a bar each, and one of them may stay empty.
        return Amount(
            max((int(bar.n) for bar in bars), default=0), max((int(bar.total or 0) for bar in bars), default=0)
        )

    progress.begin('downloading', amount)
    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS, tqdm_class=Bar))
    finally:
        progress.end()
