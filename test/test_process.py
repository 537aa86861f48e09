"""The node's process: signals while it loads, spins and closes; the engine's log through ROS."""

import logging
import os
import signal
from types import SimpleNamespace

import pytest

from vlm_reuse_node.process import Interrupts, RosLog


@pytest.fixture
def handlers_restored():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_interrupt_only_while_they_are_welcome(handlers_restored, number):
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    interrupts.welcome = False
    os.kill(os.getpid(), number)


def test_each_place_logs_at_most_once_in_five_seconds():
    said = []
    log = logging.Logger('engine')
    log.addHandler(RosLog(SimpleNamespace(error=lambda text: said.append(('error', text)),
                                          warning=lambda text: said.append(('warning', text)))))
    for number in range(3):
        log.warning('slow %d', number)
    log.error('broken')
    assert said == [('warning', 'slow 0'), ('error', 'broken')]
