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
