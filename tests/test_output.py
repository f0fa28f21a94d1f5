"""What is printed where nobody reads: a command that only prints ends, one that works goes on, none leaves a traceback."""

import errno
import io
import os
import pty
import subprocess
import sys

import pytest

from raytrain.errors import StorageError
from raytrain.output import Output, ReaderLeft, outlive_reader

PROGRAM = [sys.executable, "-c", "from raytrain.cli.main import main; main()"]


class Failing(io.StringIO):
    """A stream whose writes fail."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    flush = write


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
@pytest.mark.parametrize("operation", [lambda out: out.write("a"), lambda out: Output.flush(out)])
def test_a_reader_that_left_is_no_error_of_files(number, operation):
    class Stream(Failing):
        def flush(self):
            raise OSError(number, "gone")

    with pytest.raises(ReaderLeft):
        operation(Output(Stream(number)))
    operation(Output(Stream(number), outlives=True))
    assert not issubclass(ReaderLeft, OSError)


def test_a_file_that_takes_no_more_is_a_fault_of_storage_unless_the_command_works():
    with pytest.raises(StorageError, match="No space left"):
        Output(Failing(errno.ENOSPC)).write("a")
    assert Output(Failing(errno.ENOSPC), outlives=True).write("a") == 1


def test_a_command_that_works_says_so_itself(monkeypatch):
    out = Output(Failing(errno.EPIPE))
    monkeypatch.setattr(sys, "stdout", out)
    outlive_reader()
    print("nobody reads it")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    outlive_reader()  # a notebook's


def piped(arguments, *, both=False, code=None):
    """(exit code, what stands on stderr) of a command whose reader has left before it prints."""
    command = PROGRAM if code is None else [sys.executable, "-c", code]
    end, begin = os.pipe()
    os.close(end)
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=begin,
        stderr=begin if both else subprocess.PIPE,
        text=True,
    )
    os.close(begin)
    return process.wait(), "" if both else process.stderr.read()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["data", "show", "--help"],
        ["--version"],
        ["train", "--config", "smoke", "--print-config"],
    ],
    ids=" ".join,
)
def test_a_command_that_only_prints_ends_without_a_word(arguments):
    assert piped(arguments) == (141, "")


def test_an_error_that_nobody_reads_keeps_its_exit_code():
    assert piped(["train", "--config", "smok"], both=True)[0] == 2


def test_what_a_command_has_done_is_there_though_nobody_reads_of_it(dataset, tmp_path):
    page, sheet = tmp_path / "page.html", tmp_path / "sheet.png"
    assert (
        piped(["data", "check", dataset.path, "--fast", "--out", page]) == (141, "")
        and page.exists()
    )
    assert piped(["data", "show", dataset.path, "--out", sheet]) == (141, "") and sheet.exists()


WORKS = """
from raytrain.cli.main import app, main
from raytrain.output import outlive_reader

@app.command
def work(file: str):
    outlive_reader()
    for i in range(3):
        print("line", i)
    open(file, "w").write("done")

main()
"""


def test_a_command_that_works_goes_on_without_its_reader(tmp_path):
    assert piped(["work", tmp_path / "done"], code=WORKS) == (0, "")
    assert (tmp_path / "done").read_text() == "done"


def test_a_command_that_works_goes_on_in_a_terminal_that_was_closed(tmp_path):
    ours, theirs = pty.openpty()
    os.close(ours)
    process = subprocess.Popen(
        [sys.executable, "-c", WORKS, "work", tmp_path / "done"], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    assert process.wait() == 0 and (tmp_path / "done").read_text() == "done"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "2>&-"])
def test_an_output_that_the_caller_has_closed_is_none(closed):
    command = (
        f"exec \"$0\" -c 'from raytrain.cli.main import main; main()' train --print-config {closed}"
    )
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_under_the_output_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "train", "--print-config"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 7 and done.stderr.startswith(
        "error: the output cannot be written: No space left"
    )
