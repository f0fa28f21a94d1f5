"""For test_download.py: runs `raytrain` commands in forked children of a process that has everything imported.

A line of JSON on stdin is a task: argv, port of the Kaggle server, env, and kill_at: the number of the file operation
under argv's --out before which the child kills itself. Answers, a line each: the child's pid, then its end.

To be started with KAGGLE_API_ENVIRONMENT=LOCALHOST and some KAGGLE_USERNAME and KAGGLE_KEY, which the children do not
keep: without them the import of kaggle would print, and close stdin.
"""

import importlib
import json
import os
import signal
import sys
import tempfile

import kaggle_server
from kaggle.api import kaggle_api_extended

from raytrain.cli.main import run_command
from raytrain.data import remote

for name in (
    "requests",
    "raytrain.data.download",
):  # the commands import them late, and each child would again
    importlib.import_module(name)
OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink")


def child(task, log, count):
    """Runs the command and ends the process."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        del os.environ[name]
    os.environ.update(task["env"])
    folder = os.path.join(task["env"]["HOME"], ".kaggle")
    kaggle_api_extended.KaggleApi.config_dir = folder
    kaggle_api_extended.KaggleApi.config = os.path.join(folder, "kaggle.json")
    kaggle_server.redirect(task["port"])
    remote.BACKOFF_S = 0.01
    out = task["argv"][task["argv"].index("--out") + 1]
    for handle in (1, 2):
        os.dup2(log, handle)

    def watch(event, arguments):
        if event in OPERATIONS and str(arguments[0]).startswith(out):
            done = int.from_bytes(os.pread(count, 8, 0), "little") + 1
            os.pwrite(count, done.to_bytes(8, "little"), 0)
            if done == task.get("kill_at"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = run_command(task["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
    assert "torch" not in sys.modules and "ray" not in sys.modules, "a child must stay light"
    for line in sys.stdin:
        with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as count:
            pid = os.fork()
            if pid == 0:
                child(json.loads(line), log.fileno(), count.fileno())
            print(pid, flush=True)
            _, status = os.waitpid(pid, 0)
            log.seek(0)
            count.seek(0)
            end = {
                "code": os.waitstatus_to_exitcode(status),
                "operations": int.from_bytes(count.read(), "little"),
                "output": log.read().decode(),
            }
            print(json.dumps(end), flush=True)


if __name__ == "__main__":
    main()
