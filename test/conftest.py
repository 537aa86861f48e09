"""Fixtures of the engine's tests: a tiny random-weight model, loaded by the code that loads real ones."""

import os

import pytest
from tiny_model import write_tiny_model

os.environ.setdefault('HF_HUB_OFFLINE', '1')


@pytest.fixture(scope='session')
def model_dir(tmp_path_factory):
    """A tiny Qwen2.5-VL model directory."""
    return write_tiny_model(tmp_path_factory.mktemp('models') / 'tiny')


@pytest.fixture(scope='session')
def vlm(model_dir):
    """The tiny model, for tests that stay on pytest's thread."""
    from vlm_reuse_node.vlm import load
    return load(str(model_dir))
