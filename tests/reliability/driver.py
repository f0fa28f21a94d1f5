"""Plays `raytrain` with the same arguments and leaves a record behind: RECORD names a file that gets a JSON line of each

    batch    a worker begins one: pid, rank, part, stage, epoch, number
    worker   a process has unpickled this, as workers do before the training function begins: pid
    line     the driver says something: pid, line

with `t`, the time. PACE holds back every training step by so many seconds, which makes a run long without making the machine
busy. Under `--restarts` the supervisor starts this program too.
"""

import json
import os
import sys
import time
from pathlib import Path

RECORD, PACE = "RELIABILITY_RECORD", "RELIABILITY_PACE"


class Recorder:
    """Hears of each batch of all ranks. Being unpickled it notes that a worker has come to the training function."""

    def __init__(self, file, pace, in_worker=False):
        self.file, self.pace = file, pace
        if in_worker:
            note(file, what="worker")

    def __reduce__(self):
        return Recorder, (self.file, self.pace, True)

    def __call__(self, rank, batch):
        note(
            self.file,
            what="batch",
            rank=rank,
            part=batch.part,
            stage=batch.stage,
            epoch=batch.epoch,
            number=batch.number,
        )
        if batch.part == "train":
            time.sleep(self.pace)


def note(file, **entry):
    """Appends a line in one write, so that processes do not mix theirs."""
    line = json.dumps({"t": time.time(), "pid": os.getpid(), **entry}) + "\n"
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


def recording(file, pace):
    """Makes `raytrain train` record."""
    sys.path.append(str(Path(__file__).parents[1] / "training"))
    from batches import observed

    from raytrain.distributed import train

    train.train_worker = observed(train.train_worker, Recorder(file, pace))


def main():
    from raytrain.log import heard

    if "--restarts" in sys.argv:
        from raytrain.distributed import supervisor

        supervisor.PROGRAM = [sys.executable, __file__]
        # The wait before a restart is a setting, and no part of how long a restart takes.
        supervisor.LONGEST_PAUSE_S = 0.5
        from raytrain.cli.main import main as program

        program()
    file = os.environ[RECORD]
    recording(file, float(os.environ.get(PACE, "0")))
    from raytrain.cli.main import main as program

    with heard(lambda line: note(file, what="line", line=line)):
        program()


if __name__ == "__main__":
    main()
