"""What must not start: more than there is (R18), and the same run twice (R19)."""

import os
import sys
import time
from pathlib import Path

import yaml
from deaths import settings, within
from figures import Case, Checks, Figure, counted, numbers, passed, spread
from hangs import wait
from sentences import Said, flaw
from session import GONE_S, Session

# Not the driver that records: nothing here comes to train.
CLI = "from raytrain.cli.main import main; main()"
CLUSTER = "import ray; ray.init(address='local', num_cpus={cpus}, log_to_driver=False); print('the cluster is up'); "
TAKEN = "held = ray.remote(num_cpus={cpus})(type('Held', (), {{}})).remote(); ray.get(held.__ray_ready__.remote()); "
LIMIT_S, HUNG_S = 10.0, 100.0
TIMES = 20


def refused(folder, *arguments, before="", timed=True, env=None):
    """A command that asks for more than there is: exit code 5 with a sentence; `timed` where nothing is to be waited for."""
    checks, began = Checks(), time.monotonic()
    with Session(
        folder, *arguments, program=[sys.executable, "-u", "-c", before + CLI], env=env
    ) as session:
        if before:
            # The cluster's own start is no part of the refusal.
            began = (
                wait(lambda: "the cluster is up" in session.text() and time.monotonic(), HUNG_S)
                or began
            )
        code = session.end(HUNG_S)
        seconds = time.monotonic() - began
        checks.add(code is not None, f"{' '.join(map(str, arguments))}: hangs for {HUNG_S:.0f} s")
        checks.add(code == 5, f"exit code {code} instead of 5: {session.text()[-1500:]}")
        wrong = flaw(Said(code, session.text()).error)
        checks.add(not wrong, wrong)
        left = session.left_behind(GONE_S if code is not None else 0)
        checks.failures += [f"left behind: {thing}" for thing in left]
    return checks.outcome(left=[len(left)], seconds=[seconds] if timed else [])


def many():
    """More workers than this machine has CPUs."""
    return max(8, 4 * (os.cpu_count() or 1))


def train(folder, *flags, **how):
    small = settings(folder)
    (folder / "recipe.yaml").write_text(small.to_yaml())
    return refused(
        folder, "train", "--config", folder / "recipe.yaml", "--storage", folder, *flags, **how
    )


def tune(folder, *flags, **how):
    small = settings(folder)
    (folder / "recipe.yaml").write_text(small.model_copy(update={"num_workers": 1}).to_yaml())
    (folder / "space.yaml").write_text(
        yaml.safe_dump({"stages.1.lr": {"loguniform": [0.001, 0.1]}})
    )
    where = [
        "--config",
        folder / "recipe.yaml",
        "--space",
        folder / "space.yaml",
        "--storage",
        folder,
    ]
    return refused(folder, "tune", *where, "--num-samples", "2", *flags, **how)


def taken(folder):
    """Enough CPUs, of which somebody else holds all: the workers are waited for, and not for ever."""
    before = CLUSTER.format(cpus=2) + TAKEN.format(cpus=2)
    return train(
        folder, before=before, timed=False, env={"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
    )


def rivals(folder, rounds):
    """Two processes that begin to train a run at the same time, many times; in every second there is a lock of a dead one."""
    checks, small = Checks(), settings(folder)
    (folder / "recipe.yaml").write_text(small.to_yaml())
    program = [sys.executable, str(Path(__file__).with_name("rivals.py")), str(folder), str(rounds)]
    with Session(folder, program=program) as session:
        session.end()
        ends = [line.split() for line in session.text().splitlines() if line.startswith("round ")]
        for words in ends:
            checks.add(
                words[2:] == ["0", "2"],
                f"{' '.join(words)}: not one that goes on and one that is refused",
            )
        if len(ends) < rounds:
            checks.add(False, f"{len(ends)} of {rounds} rounds: {session.text()[-1500:]}")
        left = session.left_behind()
        checks.failures += [f"left behind: {thing}" for thing in left]
    return checks.outcome(left=[len(left)])


R18 = [
    Case(
        "train with too many workers",
        lambda folder: train(folder, "--num-workers", many()),
        quick=True,
    ),
    Case("tune with too many workers", lambda folder: tune(folder, "--num-workers", many())),
    Case("train without a CPU", lambda folder: train(folder, before=CLUSTER.format(cpus=0))),
    Case("tune without a CPU", lambda folder: tune(folder, before=CLUSTER.format(cpus=0))),
    Case("train with all CPUs taken", taken),
]
R19 = [Case(f"two of one name, {TIMES} times", lambda folder: rivals(folder, TIMES))]

FIGURES = [
    Figure(
        "R18",
        "more than there is",
        "exit code 5 in 10 s, no hang",
        R18,
        lambda outcomes: f"{counted(outcomes)}; {spread(numbers(outcomes, 'seconds'))} s",
        lambda outcomes: passed(outcomes) and within(numbers(outcomes, "seconds"), LIMIT_S),
    ),
    Figure("R19", "two of one name started together", "one goes on, one is refused, 20 times", R19),
]
