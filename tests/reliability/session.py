"""A command under observation: started with a mark, followed by its record, hurt by pid, and ended with all it started."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import psutil
from driver import RECORD
from figures import PROJECT
from leaks import FILES

PROGRAM = [sys.executable, str(Path(__file__).with_name("driver.py"))]
MARK = "RELIABILITY_MARK"
# A Ray start took up to 44 s on a loaded machine; a group that cannot start gives up after two minutes.
PATIENCE_S = 150.0
# Ray's agents watch a dead raylet for so long before they go too.
GONE_S = 75.0


class Ended(Exception):
    """The command ended while something was waited for; `code` as Popen gives it."""

    def __init__(self, code, text):
        super().__init__(f"the command ended with {code}: {text}")
        self.code = code


class Session:
    """A command and all that it starts, on any level; ended by leaving the context."""

    def __init__(self, folder, *arguments, program=PROGRAM, env=None):
        self.mark, self.record = uuid.uuid4().hex, folder / "record.jsonl"
        # The sockets of Ray lie in here, and their paths may have 107 characters.
        self.tmp = Path(tempfile.mkdtemp(prefix="s"))
        self.record.touch()
        self.seen, self.offset = [], self.record.stat().st_size
        self.log = (folder / "log.txt").open("a")
        self.process = subprocess.Popen(
            [*program, *map(str, arguments)],
            env=self._environment(env or {}),
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        while alive := self.processes():
            kill(*(process.pid for process in alive))
            time.sleep(0.05)
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.tmp, ignore_errors=True)

    def _environment(self, more):
        path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        own = {
            "PYTHONPATH": path,
            "TMPDIR": str(self.tmp),
            RECORD: str(self.record),
            MARK: self.mark,
        }
        return os.environ | own | more

    def entries(self):
        """The record of this session so far."""
        with self.record.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.seen.append(json.loads(line))
                self.offset += len(line)
        return self.seen

    def wait_for(self, find, patience=PATIENCE_S):
        """What `find` makes of the record, as soon as it is something; raises Ended or TimeoutError where it never will be."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            found = find(self.entries())
            if found:
                return found
            if ended:
                raise Ended(self.process.returncode, self.text()[-1500:])
            time.sleep(0.01)
        raise TimeoutError(f"nothing in {patience:.0f} s: {self.text()[-1500:]}")

    def end(self, patience=PATIENCE_S):
        """Waits for the end. Returns the exit code, None where it does not come."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return None

    def text(self):
        """What the command said, and those before it in the same folder."""
        return Path(self.log.name).read_text()

    def send(self, number):
        """Signals the command. Returns the time."""
        sent = time.time()
        self.process.send_signal(number)
        return sent

    def processes(self):
        """All living processes of this session, the command's own among them until its end is known."""
        return [process for process in psutil.process_iter() if self._is_mine(process)]

    def _is_mine(self, process):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # The titles that Ray gives its processes overwrite the mark; each of them has a log open below TMPDIR.
            return process.environ().get(MARK) == self.mark or self._writes_here(process)
        except psutil.Error:
            return False

    def _writes_here(self, process):
        return any(file.path.startswith(f"{self.tmp}/") for file in process.open_files())

    def left_behind(self, patience=GONE_S):
        """What is still there some time after the end: processes by name, and temporary files that are not Ray's."""
        end = time.monotonic() + patience
        while (alive := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        names = [" ".join(_words(process))[:60] for process in alive]
        files = sorted(file.name for file in self.tmp.iterdir())
        return names + [
            name for name in files if not any(fnmatch(name, shared) for shared in FILES)
        ]


def titled(processes, title):
    """Those of some processes whose name or first word begins with a title, such as raylet or ray::TrainController."""
    return [
        process
        for process in processes
        if " ".join(_words(process)).rpartition("/")[2].startswith(title)
    ]


def kill(*pids):
    """Sends SIGKILL to processes. Returns the time."""
    assert pids, "nobody to kill"
    sent = time.time()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return sent


def _words(process):
    try:
        return process.cmdline()[:1]
    except psutil.Error:
        return []
