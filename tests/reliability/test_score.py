"""The scoreboard: its quick cases pass, and what it is made of goes on, counts and fails as it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import canary
import pytest
import score
import sentences
import syscalls
from figures import Case, Checks, Figure, Ledger, Outcome, spread

from raytrain.errors import ConfigError

HERE = Path(__file__).parent

QUICK_S = 400
# These start no Ray, and take a few seconds each.
WITHOUT_RAY = ("R5", "R7", "R12", "R20", "R21")
needs_tracing = pytest.mark.skipif(
    not syscalls.possible(), reason="R5 and R6 trace system calls: Linux on x86-64"
)


def scored_quickly(out, *flags):
    """The figures in the table of the command's quick cases, all of which must pass."""
    command = [sys.executable, str(HERE / "score.py"), "--quick", "--out", str(out), *flags]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUICK_S, env=environment)
    failed = [line for line in done.stderr.splitlines() if "failed:" in line]
    assert done.returncode == 0, "\n".join([done.stdout, *failed, done.stderr[-2000:]])
    assert (out / "score.md").read_text() == done.stdout[: -len("\n")]
    return [
        line.split(" | ")[0].removeprefix("| ")
        for line in done.stdout.splitlines()
        if line.startswith("| R")
    ]


@needs_tracing
def test_the_quick_cases_of_the_figures_without_ray_pass(no_cluster, tmp_path):
    assert scored_quickly(tmp_path / "out", "--only", ",".join(WITHOUT_RAY)) == list(WITHOUT_RAY)


@pytest.mark.slow
@needs_tracing
def test_the_quick_cases_of_every_figure_pass(no_cluster, tmp_path):
    found = [int(figure.removeprefix("R")) for figure in scored_quickly(tmp_path / "out")]
    assert found == sorted(found) and {*range(1, 8), 12, 17, 18, 20, 21, 24, 25, 26} <= set(found)


def test_no_file_and_no_line_of_a_run_holds_a_key(no_cluster, own_network, tmp_path):
    found = canary.scanned(tmp_path)
    assert found.passed == found.of > 0, found.failures


def figure(**cases):
    return Figure(
        "R1", "title", "2/2", [Case(name, run, quick=name == "fast") for name, run in cases.items()]
    )


def scored(monkeypatch, tmp_path, figure, *arguments):
    """Runs the command over one figure, with its modules and its surroundings left alone."""
    monkeypatch.setitem(sys.modules, "modules", type(sys)("modules"))
    sys.modules["modules"].FIGURES = [figure]
    monkeypatch.setattr(score, "surroundings", lambda home: None)
    return score.main([*arguments, "--out", str(tmp_path / "out")])


def good(folder):
    return Outcome(1, 1)


def test_a_score_that_was_interrupted_goes_on_after_the_last_whole_case(
    monkeypatch, tmp_path, capsys
):
    ran = []

    def first(folder):
        ran.append("first")
        assert list(folder.iterdir()) == []
        return Outcome(1, 1, {"seconds": [2.0]})

    def second(folder):
        ran.append("second")
        (folder / "half").write_text("")
        if len(ran) == 2:
            raise KeyboardInterrupt
        return Outcome(1, 1)

    both = figure(first=first, second=second)
    with pytest.raises(KeyboardInterrupt):
        scored(monkeypatch, tmp_path, both, "--full")
    with (tmp_path / "out" / "outcomes.jsonl").open("a") as file:
        file.write('{"code": "cut')
    assert scored(monkeypatch, tmp_path, both, "--full") == 0
    assert ran == ["first", "second", "second"]
    assert "| R1 | title | 2/2 | 2/2 | yes |" in capsys.readouterr().out


def test_a_case_that_raises_has_failed_and_the_others_are_run(monkeypatch, tmp_path, capsys):
    def broken(folder):
        raise ValueError("a fault of the case")

    assert scored(monkeypatch, tmp_path, figure(broken=broken, fast=good), "--only", "R1") == 1
    captured = capsys.readouterr()
    assert "| 1/2 | 2/2 | **no** |" in captured.out and "a fault of the case" in captured.err


def test_outcomes_of_other_code_are_not_counted(tmp_path, monkeypatch):
    case = Case("one", good)
    assert Ledger(tmp_path).outcome(case).passed == 1
    assert "one" in Ledger(tmp_path).outcomes
    monkeypatch.setattr("figures.code_hash", lambda: "other")
    assert Ledger(tmp_path).outcomes == {}
    entries = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert [entry["case"] for entry in entries] == ["one"]


def test_quick_takes_the_quick_cases_and_says_so(monkeypatch, tmp_path, capsys):
    assert (
        scored(
            monkeypatch, tmp_path, figure(fast=good, slow=lambda folder: Outcome(0, 1)), "--quick"
        )
        == 0
    )
    assert "| 1/1 of the quick cases |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--full"], ["--only", "R99"], [], ["--full", "--only", "R1", "--out", "x"]]
)
def test_a_command_line_that_is_wrong_is_refused(words, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        score.parsed(words, [figure(fast=good)])
    assert "error: " in capsys.readouterr().err


def test_checks_count_and_keep_what_failed():
    checks = Checks()
    assert checks.add(True, "a") and not checks.add(False, "b")
    assert checks.outcome(s=[1, 3]) == Outcome(1, 2, {"s": [1, 3]}, ["b"])
    assert spread([1.0, 2.0, 6.0]) == "2.0 (1.0 to 6.0)" and spread([]) == "-"


def test_what_is_wrong_with_a_sentence():
    assert sentences.flaw(str(ConfigError("what", "why", "next"))) == ""
    for text in (
        "what",
        "",
        "what\n  why:  a\n  next: b\nmore",
        "<PIL.Image object at 0x7f00aa>\n  why:  a",
        "Traceback\n  why:  a",
    ):
        assert sentences.flaw(text)
    assert "ValueError" in sentences.flaw_of(ValueError("x"))


# System calls


@pytest.fixture
def folder(tmp_path):
    if not syscalls.possible():
        pytest.skip("needs Linux on x86-64")
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def two_files(folder):
    def work():
        (folder / "a").write_bytes(b"12345678")
        (folder.parent / "elsewhere").write_bytes(b"not counted")
        os.rename(folder / "a", folder / "b")

    return work


def test_every_write_below_the_folder_is_a_point(folder):
    assert syscalls.points(two_files(folder), folder) == ["openat a", "write a", "rename a"]
    with pytest.raises(RuntimeError, match="fails undisturbed"):
        syscalls.points(lambda: 1 / 0, folder)


def test_a_kill_comes_before_the_call_or_in_the_middle_of_a_write(folder):
    before, within = syscalls.KILLS
    ended = syscalls.disturbed(two_files(folder), folder, 1, before)
    assert (ended.point, ended.code) == ("write a", None) and (folder / "a").read_bytes() == b""
    syscalls.disturbed(two_files(folder), folder, 1, within)
    assert (folder / "a").read_bytes() == b"1234" and not (folder / "b").exists()
    assert syscalls.disturbed(two_files(folder), folder, 3, before) == syscalls.Ended(None, 0)


@pytest.mark.parametrize("fault", syscalls.ERRORS, ids=lambda fault: fault.name)
def test_an_error_is_returned_by_the_call_and_a_lasting_one_by_all_after_it(folder, fault):
    def work():
        for name in ("a", "b"):
            try:
                (folder / name).write_bytes(b"1")
            except OSError as error:
                (folder.parent / f"{name}-{error.errno}").touch()

    syscalls.disturbed(work, folder, 1, fault)
    told = {path.name for path in folder.parent.iterdir()} - {"here"}
    assert told == {f"{name}-{fault.error}" for name in ("a", "b")[: 1 + fault.stays]}


def test_threads_of_the_work_are_followed(folder):
    import threading

    def work():
        thread = threading.Thread(target=two_files(folder))
        thread.start()
        thread.join()

    assert syscalls.points(work, folder) == ["openat a", "write a", "rename a"]
    assert (
        syscalls.disturbed(work, folder, 2, syscalls.KILLS[0]).code is None
        and (folder / "a").exists()
    )
