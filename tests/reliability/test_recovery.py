"""What is read from a record, on records made by hand; and that a session leaves nothing behind."""

import json
import os
import sys

import deaths
import modules
import pytest
import refusals
import stops
from canary import Search
from figures import Outcome
from recovery import Recovery, batches, driver
from session import MARK, Ended, Session

DRIVER, OLD, NEW = 1, (10, 11), (20, 21)


def batch(t, pid, rank, number):
    return {
        "t": t,
        "pid": pid,
        "what": "batch",
        "rank": rank,
        "part": "train",
        "stage": 2,
        "epoch": 1,
        "number": number,
    }


def begun(t, pids):
    return [{"t": t, "pid": pid, "what": "worker"} for pid in pids]


def line(t, text):
    return {"t": t, "pid": DRIVER, "what": "line", "line": text}


@pytest.fixture
def record():
    """Two ranks take a step a second from 10 s on; rank 1 dies at 15.5 s; from 22 s on they go on after their step 3."""
    before = [batch(10 + n, OLD[rank], rank, n) for n in range(6) for rank in (0, 1)]
    after = [batch(22 + n, NEW[rank], rank, 3 + n) for n in range(3) for rank in (0, 1)]
    lines = [
        line(16, "rank 1 failed (...); the workers start again"),
        line(20.5, "resuming in stage 2"),
    ]
    return [line(0, "run x"), *begun(9, OLD), *before, lines[0], *begun(19, NEW), lines[1], *after]


def test_a_recovery_is_what_was_done_again_and_how_long_it_took(record):
    found = Recovery(record, 15.5)
    assert found.lost_s == 15.5 - 13 and found.seconds == 23 - 15.5
    assert (
        list(found.parts.values()) == [0.5, 3, 1.5, 1.5, 1]
        and sum(found.parts.values()) == found.seconds
    )


def test_a_run_that_went_on_behind_its_last_step_lost_nothing(record):
    assert Recovery([e for e in record if e["t"] > 13.5 or e["what"] != "batch"], 15.5).lost_s == 0


def test_a_run_that_nothing_went_on_with_has_no_time(record):
    found = Recovery(record[:-8], 15.5)
    assert found.seconds is None and found.lost_s is None and found.parts == {}


def test_batches_of_the_dead_do_not_count_as_those_of_the_run_that_goes_on(record):
    # The other rank begins a batch before it hears of the death.
    late = [*record, batch(15.6, OLD[0], 0, 6)]
    assert {e["pid"] for e in batches(late, 0, 15.5)} == {NEW[0]}
    assert deaths.reached(late, 0, batch(0, 0, 0, 4), 15.5)["t"] == 23
    assert (
        deaths.reached(late, 0, batch(0, 0, 0, 3), 15.5)["t"] == 23
    )  # the first one has no step behind it
    assert deaths.reached(late, 0, batch(0, 0, 0, 9), 15.5) is None and driver(late) == DRIVER


def test_a_session_ends_all_that_its_command_has_started_and_names_what_was_left(tmp_path):
    code = (
        "import subprocess, sys, tempfile; tempfile.mkstemp(prefix='kept');"
        "subprocess.Popen(['sleep', '60'], start_new_session=True); sys.exit(3)"
    )
    with Session(tmp_path, program=[sys.executable, "-c", code]) as session:
        assert session.end() == 3
        with pytest.raises(Ended, match="ended with 3"):
            session.wait_for(lambda entries: None)
        left = session.left_behind(patience=0.2)
    assert left[0] == "sleep" and left[1].startswith("kept") and len(left) == 2
    assert session.processes() == [] and not session.tmp.exists()


def test_a_process_whose_title_has_overwritten_its_environment_is_seen_by_its_log(tmp_path):
    code = (
        "import os, tempfile, time; log = tempfile.NamedTemporaryFile(prefix='ray');"
        "from ray._raylet import setproctitle; setproctitle('ray::Worker' + 'x' * 5000);"
        "os.fork() and os._exit(0); time.sleep(60)"
    )
    with Session(tmp_path, program=[sys.executable, "-c", code]) as session:
        assert session.end() == 0, session.text()
        (one,) = session.processes()
        assert one.cmdline()[0].startswith("ray::Worker") and not one.environ().get(MARK)
        assert session.left_behind(patience=0.2)[0].startswith("ray::Worker")
    assert session.processes() == []


GOOD = Outcome(
    20,
    20,
    {
        "lost": [0.1, 0.9, 0.2],
        "worker": [6.0, 13.0, 7.0],
        "driver": [21.0],
        "seconds": [4.0],
        "kept": [0.4],
    },
)
BAD = {
    "R1": Outcome(1, 2),
    "R3": Outcome(2, 2, {"lost": [0.1, 0.2, 1.1]}),
    "R4": Outcome(2, 2, {"worker": [12.5] * 5}),
    "R13": Outcome(1, 2),
    "R15": Outcome(1, 2),
    "R18": Outcome(1, 2),
    "R19": Outcome(1, 2),
}


@pytest.mark.parametrize(
    "figure", [*deaths.FIGURES, *stops.FIGURES, *refusals.FIGURES], ids=lambda figure: figure.id
)
def test_a_figure_tells_good_outcomes_from_bad_and_from_none(figure):
    assert figure.met([GOOD]) and figure.value([GOOD])
    assert not figure.met([GOOD, BAD[figure.id]])
    broken = Outcome(0, 1, failures=["a case that raised has no numbers"])
    assert not figure.met([broken]) and figure.value([broken])


def test_the_kills_of_a_run_with_other_bits_are_not_survived(record):
    kills = [("worker", 15.5)]
    assert deaths.judged(kills, record, True, [], Search(9, []), "").passed == 1
    assert (
        deaths.judged(kills, record[:-8], True, [], Search(9, []), "").passed == 0
    )  # nobody trained after it
    found = deaths.judged(kills, record, False, ["sleep"], Search(9, ["log"]), "exit code 1")
    assert (found.passed, found.of, found.numbers["left"], found.numbers["keys"]) == (
        0,
        1,
        [1],
        [1],
    )
    assert "exit code 1" in found.failures[-1]


def test_fewer_kills_than_the_figure_promises_are_not_enough():
    few = [Outcome(2, 2)] * len(deaths.CASES)
    assert not deaths.all_of(deaths.CASES, 20)(few) and deaths.all_of(deaths.CASES, 20)(few[:1])


def test_what_a_case_left_or_did_not_look_for_fails_r26():
    met = next(figure.met for figure in modules.FIGURES if figure.id == "R26")
    clean = Outcome(1, 1, {"left": [0.0]})
    assert met([clean, clean]) and not met([clean, Outcome(1, 1)]) and not met([])
    assert not met([clean, Outcome(1, 1, {"left": [1.0]})])


def test_only_the_checkpoint_that_was_told_and_is_newer_than_the_signal_counts(tmp_path):
    assert stops.failure(tmp_path) == {} and stops.kept(tmp_path, 101) == float("inf")
    for name, t in (("last", 102), ("step-1", 103)):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / name / "MANIFEST.json").touch()
        os.utime(tmp_path / "run" / "checkpoints" / name / "MANIFEST.json", (t, t))
    message = (
        f"stopped by SIGTERM, with everything kept in {tmp_path}/run/checkpoints/step-1\n  why: ..."
    )
    (tmp_path / "run" / "failure.json").write_text(
        json.dumps({"exit_code": 75, "message": message})
    )
    assert stops.kept(tmp_path, 101) == 2 and stops.kept(tmp_path, 104) == float("inf")
    assert stops.failure(tmp_path)["exit_code"] == 75
