"""A rank that stands still (R16): found by the others, whose stacks are written, and trained again."""

import os
import random
import signal
import time

from deaths import reached, settings, started, within
from figures import Case, Checks, Figure, counted, numbers, spread
from session import kill
from workshop import same_trace, undisturbed

STALL_S = 5.0
# Far more than a start of the workers takes, far less than what anything else here waits before it gives up.
AGAIN_S = 60.0


def stalled(folder, rank):
    """A run of which a rank is stopped by SIGSTOP at a random moment."""
    chance, checks, small = random.Random(rank), Checks(), settings(folder, stall_s=STALL_S)
    whole, met = undisturbed(folder, settings(folder), "whole")
    batch = met[chance.randrange(len(met))]
    with started(folder, small) as session:
        found = session.wait_for(lambda entries: reached(entries, rank, batch))
        os.kill(found["pid"], signal.SIGSTOP)
        at = time.time()
        stacks = wait(lambda: sorted((folder / "run" / "stacks").glob("rank-*.txt")), 3 * STALL_S)
        seen = [stacks[0].stat().st_mtime - at] if stacks else []
        checks.add(
            within(seen, 2 * STALL_S), f"no stacks in {2 * STALL_S:.0f} s: {session.text()[-1500:]}"
        )
        checks.add(bool(stacks) and "Thread" in stacks[0].read_text(), "the stacks are empty")
        again = wait(lambda: reached(session.entries(), 0, met[0], at), AGAIN_S)
        if not checks.add(
            bool(again),
            f"nothing trains {AGAIN_S:.0f} s after the stacks: {session.text()[-1500:]}",
        ):
            kill(found["pid"])
        code = session.end()
        same = code == 0 and same_trace(folder / "run", whole)
        checks.add(
            same, f"the run is not the undisturbed one: exit code {code}, {session.text()[-1500:]}"
        )
        left = session.left_behind()
        checks.failures += [f"left behind: {thing}" for thing in left]
    return checks.outcome(left=[len(left)], seen=seen, again=[again["t"] - at] if again else [])


def wait(find, patience):
    """What `find` finds, as soon as it is something; what it found last otherwise."""
    end = time.monotonic() + patience
    while not (found := find()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def told(outcomes):
    seen, again = (spread(numbers(outcomes, name)) for name in ("seen", "again"))
    return f"{counted(outcomes)}; stacks after {seen} s, trains again after {again} s"


CASES = [
    Case(f"rank {rank} stopped", lambda folder, rank=rank: stalled(folder, rank)) for rank in (0, 1)
]
FIGURES = [
    Figure(
        "R16",
        f"a rank stands still, train.stall_s = {STALL_S:.0f}",
        "stacks in 10 s, the same bits",
        CASES,
        told,
    )
]
