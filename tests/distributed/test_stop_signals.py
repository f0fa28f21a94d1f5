"""Signals in a command that waits: what the first does, what the second does, and that none is lost. Without Ray's help."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from raytrain.cli.main import run_command
from raytrain.distributed import messages, stop_signals
from raytrain.distributed.messages import Unstarted, interruptible, terminates_as_interrupt
from raytrain.errors import Interrupted, exit_code_of

pytestmark = pytest.mark.usefixtures("hangups")
NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers():
    """Those from before, whatever a test sets."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers, after=0.2, between=0.0):
    def later():
        time.sleep(after)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(between)

    threading.Thread(target=later).start()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_first_signal_is_delivered_and_the_function_ends_by_itself(number):
    heard, ended = [], threading.Event()

    def deliver(name):
        heard.append(name)
        ended.set()
        return True

    send(number)
    assert interruptible(lambda: ended.wait(20) and "result", deliver) == "result"
    assert heard[0] == number.name


@pytest.mark.parametrize("number", NUMBERS)
def test_where_nothing_has_to_be_kept_a_first_signal_ends_it(number):
    ended = threading.Event()
    send(number)
    with pytest.raises(Unstarted) as caught:
        interruptible(lambda: ended.wait(20), lambda name: False)
    ended.set()
    assert exit_code_of(caught.value) == 128 + number


def test_what_was_under_way_and_has_died_is_not_waited_for(monkeypatch):
    """Each look asks again: the workers may have died since, and start anew."""
    monkeypatch.setattr(messages, "DELIVER_EVERY_S", 0.05)
    answers, ended = [True, True, False], threading.Event()
    send(signal.SIGTERM)
    with pytest.raises(Unstarted):
        interruptible(lambda: ended.wait(20), lambda name: answers.pop(0))
    ended.set()
    assert answers == []


def test_a_second_signal_ends_it_at_once(monkeypatch):
    monkeypatch.setattr(messages, "SAME_SIGNAL_S", 0.3)
    ended = threading.Event()
    send(signal.SIGTERM, signal.SIGHUP, between=0.5)
    with pytest.raises(Interrupted) as caught:
        interruptible(lambda: ended.wait(20), lambda name: True)
    ended.set()
    assert not isinstance(caught.value, Unstarted) and exit_code_of(caught.value) == 129
    assert str(caught.value) == "stopped by SIGHUP"


def test_a_signal_of_the_last_moment_is_known_after_it():
    caught = []

    def function():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        interruptible(function, lambda name: True, caught)
    assert [number for number, _ in caught] == [signal.SIGTERM]


def test_where_hangups_are_ignored_they_stay_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stop_signals.stopping_signals() == [signal.SIGTERM, signal.SIGINT]
    terminates_as_interrupt()
    send(signal.SIGHUP, after=0.1)
    assert interruptible(lambda: time.sleep(0.5) or "result", lambda name: False) == "result"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_in_other_commands_a_closed_terminal_ends_as_sigterm_does(number):
    terminates_as_interrupt()
    with pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert caught.value.exit_code == 128 + number


def test_what_is_started_meanwhile_hears_nothing_of_the_terminal_and_no_hangup_is_lost():
    heard = []
    signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
    code = "import os, signal, time; os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    with stop_signals.hangups_blocked():
        os.kill(os.getpid(), signal.SIGHUP)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n") and heard == [signal.SIGHUP]
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
        == -signal.SIGHUP
    )


def test_the_message_names_the_signal_and_what_comes_next(monkeypatch, capsys):
    def stopped(*arguments, **named):
        raise Interrupted(
            signal.SIGHUP,
            " before its first step: there is nothing to keep\n  next: raytrain train",
        )

    monkeypatch.setattr("raytrain.distributed.train.train", stopped)
    assert run_command(["train", "--config", "smoke"]) == 129
    assert capsys.readouterr().err == (
        "stopped by SIGHUP before its first step: there is nothing to keep\n  next: raytrain train\n"
        "raytrain ends with exit code 129\n"
    )
