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

"""Which BLAS computes in this process; and as a program, pytest once that is sure."""

import ctypes
import sys

import pytest


def kernel() -> str:
    """The kernel that a preloaded OpenBLAS computes with, '' where none is preloaded."""
    try:
        name = ctypes.CDLL(None).openblas_get_corename
    except AttributeError:
        return ''
    name.restype = ctypes.c_char_p
    return name().decode()


def main(argv: list[str]) -> int | str:
    """Run pytest with these arguments, but for the first: the kernel that is expected."""
    expected, *arguments = argv
    if (found := kernel()) != expected:
        return f'The kernel is {found!r}; expected {expected!r}.'
    return pytest.main(arguments)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
