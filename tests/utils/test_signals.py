"""Being asked to stop: noted, not died of; ignored by workers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmp.utils import signals

PROGRAM = Path(__file__).parents[2] / "tools" / "run_net.py"


@pytest.fixture(autouse=True)
def _handlers_restored():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    installed = list(signals._installed)
    yield
    signals.forget()
    signals._installed[:] = installed
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_noted(name):
    signals.install(signals.DEFAULT)
    assert signals.stop_requested() == ""
    os.kill(os.getpid(), signal.Signals[name])
    assert signals.stop_requested() == name
    os.kill(os.getpid(), signal.SIGTERM)  # batch systems signal twice
    assert signals.stop_requested() == name


def test_the_environment_chooses_the_signals(monkeypatch):
    monkeypatch.setenv("VMP_STOP_SIGNALS", "sigusr2")
    before = signal.getsignal(signal.SIGUSR1)
    signals.install()
    assert signal.getsignal(signal.SIGUSR1) is before
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signals.stop_requested() == "SIGUSR2"


@pytest.mark.parametrize("names", ["SIGNONE", "SIGKILL", "TERM"])
def test_what_can_t_be_caught_is_refused(names):
    with pytest.raises(ValueError, match=f"VMP_STOP_SIGNALS names '{names}'"):
        signals.install(names)


def test_no_signal_may_be_chosen():
    before = signal.getsignal(signal.SIGTERM)
    signals.install("")
    assert signal.getsignal(signal.SIGTERM) is before


def test_processes_started_meanwhile_ignore_the_signals_and_this_one_does_not():
    signals.install("SIGUSR1")
    code = "import os, signal; os.kill(os.getpid(), signal.SIGUSR1); print('alive')"
    with signals.ignored():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout == "alive\n"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode < 0
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.stop_requested() == "SIGUSR1"


def test_the_program_notes_signals_before_it_imports_torch():
    code = "import sys; from vmp.utils import signals; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "False\n"
    text = PROGRAM.read_text()
    assert text.index("signals.install()") < text.index("from vmp.config")
