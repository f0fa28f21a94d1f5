"""The supervisor: what it starts again, what it does not, and that signals reach the process that trains."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from raytrain import runs
from raytrain.cli.main import run_command
from raytrain.distributed import stop_signals, supervisor
from raytrain.errors import ResourceError
from raytrain.log import collected

# Plays the program: notes its arguments, then does what the next word of the script says.
FAKE = """
import json, os, signal, sys, time
folder = os.environ["FAKE"]
with open(folder + "/log", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
done = sum(1 for _ in open(folder + "/log"))
word = open(folder + "/script").read().split()[done - 1]
if word.startswith("begin:"):
    open(folder + "/run/config.yaml", "w").write("{}")
    word = word.removeprefix("begin:")
if word == "wait":
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(75))
    open(folder + "/ready", "w")
    time.sleep(60)
elif word.startswith("error:"):
    name, _, code = word.removeprefix("error:").partition("=")
    json.dump({"error": name, "exit_code": int(code or 1)}, open(folder + "/run/failure.json", "w"))
    sys.exit(int(code or 1))
elif word.startswith("-"):
    os.kill(os.getpid(), -int(word))
sys.exit(int(word))
"""


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """Runs a script of ends: (exit code, the commands that ran, the messages)."""
    (tmp_path / "run").mkdir()
    (tmp_path / "log").touch()  # a process that is killed at once writes no line
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setattr(supervisor, "PROGRAM", [sys.executable, "-c", FAKE])
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.0)

    def run(script, restarts):
        (tmp_path / "script").write_text(script)
        with collected() as messages:
            code = supervisor.supervise(["first"], ["again"], str(tmp_path / "run"), restarts)
        log = (tmp_path / "log").read_text()
        return code, [json.loads(line)[0] for line in log.splitlines()], messages

    return run


def test_a_process_that_dies_is_started_again_and_goes_on_where_a_run_was_begun(supervise):
    code, commands, said = supervise("-9 begin:-9 1 0", 5)
    assert (code, commands) == (0, ["first", "first", "again", "again"])
    assert [line.split(" in ")[0] for line in said] == [
        "the run's process ended with -9; restart 1 of 5",
        "the run's process ended with -9; restart 2 of 5",
        "the run's process ended with 1; restart 3 of 5",
    ]


def test_restarts_are_counted_and_the_last_end_is_told_as_a_shell_does(supervise):
    assert supervise("-9 -9 -9", 1)[:2] == (128 + 9, ["first", "first"])


@pytest.mark.parametrize(
    "word", ["2", "3", "4", "5", "6", "7", "75", "130", "143", "error:ModuleNotFoundError"]
)
def test_what_would_come_again_is_not_started_again(supervise, word):
    code, commands, said = supervise(word, 5)
    assert (
        code == (1 if word.startswith("error") else int(word))
        and commands == ["first"]
        and not said
    )


def test_another_error_is_started_again(supervise):
    assert supervise("error:RuntimeError 0", 5)[:2] == (0, ["first", "first"])


def test_too_little_room_is_waited_for_once_something_has_trained_but_never_memory(supervise):
    assert supervise("begin:-9 5 error:NoRoomError=5 5 0", 5)[0] == 0
    assert supervise("0 0 0 0 0 error:NoRoomError=5 0", 5)[0] == 0


def test_memory_that_is_too_small_ends_the_supervision(supervise):
    assert supervise("begin:-9 error:ResourceError=5 0", 5)[:2] == (5, ["first", "again"])


def test_a_signal_in_the_pause_between_two_attempts_ends_the_supervision(supervise, monkeypatch):
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 60.0)
    monkeypatch.setattr(supervisor.Child, "pause", told_while(supervisor.Child.pause))
    code, commands, said = supervise("-9 0", 5)
    assert (code, commands, len(said)) == (143, ["first"], 1)


def test_a_signal_that_comes_while_the_process_is_started_reaches_it(supervise, monkeypatch):
    popen = supervisor.subprocess.Popen

    def slow(*arguments, **options):
        process = popen(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        return process

    monkeypatch.setattr(supervisor.subprocess, "Popen", slow)
    assert supervise("wait 0", 5)[0] in (75, 143)


def told_while(pause):
    """A pause in which SIGTERM comes."""

    def paused(child, seconds):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        pause(child, seconds)

    return paused


def test_the_environment_of_the_process_sets_no_field_again(supervise, monkeypatch, tmp_path):
    code = f"import json, os; json.dump(dict(os.environ), open({str(tmp_path / 'env')!r}, 'w'))"
    monkeypatch.setattr(supervisor, "PROGRAM", [sys.executable, "-c", code])
    monkeypatch.setenv("RAYTRAIN_TRAIN__BATCH_SIZE", "32")
    monkeypatch.setenv("RAYTRAIN_CACHE", "/cache")
    assert supervise("", 0)[0] == 0
    there = json.loads((tmp_path / "env").read_text())
    assert (
        there["RAYTRAIN_CACHE"] == "/cache"
        and "RAYTRAIN_TRAIN__BATCH_SIZE" not in there
        and "PATH" in there
    )


def test_a_setting_that_cannot_change_is_refused_before_anything_runs(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(supervisor, "supervise", lambda *arguments: pytest.fail("it ran"))
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "config.yaml").write_text("{}")
    where = ["--storage", str(tmp_path), "--restarts", "2"]
    assert run_command(["train", "--resume", "n", "--train.batch-size", "8", *where]) == 2
    assert "train.batch_size cannot change now" in capsys.readouterr().err
    assert run_command(["train", "--restarts", "-1"]) == 2


def test_a_value_that_is_taken_away_reaches_the_process(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(supervisor, "supervise", lambda first, *rest: commands.append(first) or 0)
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "config.yaml").write_text("{}")
    given = ["--storage", str(tmp_path), "--set", "use_gpu=null", "--num-workers", "2"]
    assert run_command(["train", "--resume", "n", *given, "--restarts", "1"]) == 0
    (command,) = commands
    assert command[command.index("--set") + 1] == "use_gpu=null"
    assert command[command.index("--num-workers") + 1] == "2"


def test_a_signal_reaches_the_process_and_ends_the_supervision(supervise, tmp_path):
    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=send)
    thread.start()
    assert supervise("wait 0", 5)[:2] == (75, ["first"])
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


CHILD = """
import os, signal, sys, time
from raytrain.distributed.stop_signals import end_with_supervisor
folder = os.environ["FAKE"]

def stopped(number, frame):
    open(folder + "/stopped", "w").write(signal.Signals(number).name)
    sys.exit(75)

signal.signal(signal.SIGTERM, stopped)
time.sleep(float(os.environ.get("LATE", "0")))
end_with_supervisor()
assert "RAYTRAIN_SUPERVISOR" not in os.environ
open(folder + "/ready", "w").write(str(os.getpid()))
time.sleep(60)
"""
SUPERVISOR = """
import sys
from raytrain.distributed import supervisor
supervisor.PROGRAM = [sys.executable, "-c", sys.argv[1]]
supervisor.supervise(["first"], ["again"], sys.argv[2], 5)
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_supervisor_that_is_killed_takes_its_process_with_it_as_by_sigterm(
    tmp_path, monkeypatch, late
):
    """Also where it dies while the process is started."""
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("LATE", "1" if late else "0")
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, CHILD, str(tmp_path / "run")])
    wait_for(
        lambda: psutil.Process(process.pid).children() if late else (tmp_path / "ready").exists()
    )
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    wait_for((tmp_path / "stopped").exists)
    psutil.wait_procs([child], timeout=20)
    assert (tmp_path / "stopped").read_text() == "SIGTERM" and not child.is_running()


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_process_without_a_supervisor_stays(monkeypatch):
    monkeypatch.delenv("RAYTRAIN_SUPERVISOR", raising=False)
    stop_signals.end_with_supervisor()


def test_a_closed_terminal_is_forwarded_unless_it_is_ignored(
    hangups, supervise, tmp_path, monkeypatch
):
    word = "import os, signal, sys, time\n"
    word += "signal.signal(signal.SIGHUP, lambda *args: sys.exit(75))\n"
    word += "open(os.environ['FAKE'] + '/log', 'a').write('[0]\\n')\n"
    word += "os.kill(os.getppid(), signal.SIGHUP)\ntime.sleep(float(os.environ['SECONDS']))\n"
    monkeypatch.setattr(supervisor, "PROGRAM", [sys.executable, "-c", word])
    monkeypatch.setenv("SECONDS", "60")
    assert supervise("", 5)[0] == 75
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setenv("SECONDS", "0.3")
    try:
        assert supervise("", 5)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_commands_are_those_of_the_run(monkeypatch, tmp_path):
    seen = []

    def noted(first, again, path, restarts):
        text = Path(first[2]).read_text() if first[1] == "--config" else ""
        seen.append((first, again, path, restarts, text))
        return 0

    monkeypatch.setattr(supervisor, "supervise", noted)
    where = ["--storage", str(tmp_path)]
    assert (
        run_command(
            [
                "train",
                "--config",
                "smoke",
                "--name",
                "n",
                "--restarts",
                "3",
                "--train.wd",
                "0.5",
                *where,
            ]
        )
        == 0
    )
    first, again, path, restarts, text = seen[0]
    assert first[0] == "train" and first[3:] == ["--name", "n"] and "wd: 0.5" in text
    assert again == ["train", "--resume", "n", *where] and (path, restarts) == (
        str(tmp_path / "n"),
        3,
    )
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "config.yaml").write_text(text)
    assert runs.find("n", str(tmp_path)).recipe.train.wd == 0.5
    assert (
        run_command(["train", "--resume", "n", "--restarts", "2", "--num-workers", "2", *where])
        == 0
    )
    assert seen[1][0] == seen[1][1] == ["train", "--resume", "n", *where, "--num-workers", "2"]


# A head that is missing


@pytest.fixture
def head(monkeypatch):
    """Stands for the cluster of RAY_ADDRESS: it is missing for so many questions as the list has items left."""
    questions = []

    def check():
        if questions and questions.pop():
            raise ResourceError("no Ray cluster answers at h:6379: Connection refused")

    monkeypatch.setenv("RAY_ADDRESS", "h:6379")
    monkeypatch.setattr(supervisor.environment, "check_head", check)
    monkeypatch.setattr(supervisor, "ASK_HEAD_S", 0.01)
    return questions


def test_a_head_that_is_missing_is_waited_for_and_counts_as_no_restart(supervise, head):
    head += [True] * 5
    code, commands, said = supervise("begin:-9 5 0", 1)
    assert (code, commands) == (0, ["first", "again", "again"])
    assert "no Ray cluster answers" in said[1] and len(said) == 2


def test_so_is_one_that_is_missing_from_the_first(supervise, head):
    head += [True] * 5
    code, commands, said = supervise("5 begin:-9 0", 1)
    assert (code, commands) == (0, ["first", "first", "again"])
    assert [line.partition(";")[0] for line in said] == [
        "no Ray cluster answers at h:6379: Connection refused",
        "the run's process ended with -9",
    ]


def test_a_head_that_stays_away_is_waited_for_as_long_as_restarts_would_have_taken(
    supervise, head, monkeypatch
):
    monkeypatch.setattr(supervisor, "HEAD_S", 0.2)
    head += [True] * 10**4
    began = time.monotonic()
    code, commands, said = supervise("begin:-9 5", 4)
    assert (code, commands, len(said)) == (5, ["first", "again"], 2)
    assert 0.8 <= time.monotonic() - began < 5  # for this attempt and each of three that were left
    assert "waiting for it, 1 s at most, which does not count as a restart" in said[-1]


def test_a_signal_ends_the_wait_for_a_head(supervise, head):
    head += [True] * 10**4
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert supervise("5", 3)[0] == 143


def test_too_little_of_a_cluster_that_answers_is_no_missing_head(supervise, head):
    assert supervise("5 0", 3)[:2] == (5, ["first"])


def test_the_keys_of_places_are_handed_on_in_no_file(monkeypatch, tmp_path):
    seen = []

    def noted(first, again, path, restarts):
        seen.append((first, Path(first[2]).read_text()))
        return 0

    monkeypatch.setattr(supervisor, "supervise", noted)
    monkeypatch.setattr(runs, "refuse_taken", lambda name, path: None)
    dataset, store = "s3://KEY:S3CRET@bucket/data?region=us-east-1", "s3://KEY:S3CRET@bucket/runs"
    given = [
        "--dataset",
        dataset,
        "--storage",
        store,
        "--model.weights",
        "s3://KEY:S3CRET@bucket/w.pt",
    ]
    assert (
        run_command(["train", "--config", "smoke", "--name", "n", "--restarts", "1", *given]) == 0
    )
    first, text = seen[0]
    assert "S3CRET" not in text and "s3://***@bucket/runs" in text
    assert first[-2:] == ["--name", "n"]
    assert sorted(zip(first[3:-2:2], first[4:-2:2], strict=True)) == sorted(
        zip(given[::2], given[1::2], strict=True)
    )
