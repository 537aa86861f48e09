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

"""Plots as SVG elements of the page: drawn by matplotlib, in colours that follow the page's light or dark scheme.

Matplotlib draws with stand-in colours; in the SVG text they become the page's CSS variables.
"""

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

WIDTH = 5.0  # inches
INK, SOFT, LINE = '#010101', '#020202', '#030303'
PAID, REUSED, CHANGED, THIRD, OTHER = '#040404', '#050505', '#060606', '#070707', '#080808'
_VARIABLES = {
    INK: 'ink',
    SOFT: 'soft',
    LINE: 'line',
    PAID: 'paid',
    REUSED: 'reused',
    CHANGED: 'changed',
    THIRD: 'third',
    OTHER: 'other',
}
_STYLE: dict[Any, Any] = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'replay',
    'font.family': 'sans-serif',
    'font.size': 11.5,
    'text.color': INK,
    'axes.edgecolor': LINE,
    'axes.labelcolor': SOFT,
    'xtick.color': SOFT,
    'ytick.color': SOFT,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': LINE,
    'grid.linewidth': 0.6,
    'axes.axisbelow': True,
    'legend.frameon': False,
    'legend.fontsize': 10.5,
    'axes.titlesize': 11.5,
    'axes.titlelocation': 'left',
    'axes.titlecolor': SOFT,
}


def svg_of(name: str, title: str, draw: Callable[[Figure], None], height: float) -> str:
    """Draw on a figure of the page's width; return the <svg> element.

    name: no other plot of the page may have it. title: what those are told who do not see it. height: inches.
    """
    with rc_context(_STYLE):
        figure = Figure((WIDTH, height), layout='constrained')
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        text = io.StringIO()
        figure.savefig(text, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    return _inline(text.getvalue(), plain_name(name), title)


def plain_name(name: str) -> str:
    """Return a name as HTML accepts it for an id."""
    return re.sub(r'[^A-Za-z0-9_]+', '-', name)


def _inline(svg: str, name: str, title: str) -> str:
    """The element alone: its title, colours from the page, names that no other plot on it has, no fixed size."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f'var(--{variable})')
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace('url(#', f'url(#{name}-')
    svg = re.sub(r'font: ([\d.]+px) [^;"]*', r'font: \1 system-ui, sans-serif', svg)
    head, rest = svg.split('>', 1)
    head = re.sub(r' (width|height|xmlns(:xlink)?)="[^"]*"', '', head)
    titled = f'{head} role="img" aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>'
    return f'{titled}{rest}'.replace('xlink:href', 'href')
