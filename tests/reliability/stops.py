"""Signals (R15): a checkpoint newer than the signal, exit code 75, and the bits of a run that was never stopped."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from deaths import STEP_S, reached, settings, started
from driver import PACE
from figures import PROJECT, Case, Checks, Figure, counted, numbers, spread
from session import PROGRAM, Session
from workshop import same_trace, undisturbed

POINTS, LIMIT_S = 5, 5.0
# Batches that a run has left when it is told to stop: a signal needs a second to be obeyed, `ray job stop` one more to begin.
ROOM, ROOM_OF_JOB = 15, 35
BIN = Path(sys.executable).parent


def signalled(folder, number):
    """A run that is stopped by a signal at random points, each time gone on with by hand."""
    checks, whole, small, points = plan(folder, number, ROOM)
    found, left = [], []
    for i, point in enumerate(points):
        with attempt(folder, small, i) as session:
            session.wait_for(lambda entries, point=point: reached(entries, 0, point))
            time.sleep(random.Random(i).uniform(0, 0.3))
            sent = session.send(number)
            code = session.end()
            left += session.left_behind()
            checks.failures += [f"left behind: {thing}" for thing in left]
        found += [kept(folder, sent)]
        checks.add(code == 75 and found[-1] <= LIMIT_S, f"point {i}: exit code {code}, kept after {found[-1]:.1f} s")
    with attempt(folder, small, POINTS) as session:
        checks.add(session.end() == 0 and same_trace(folder / "run", whole), f"other bits: {session.text()[-1500:]}")
    return checks.outcome(left=[len(left)], kept=found)


def plan(folder, seed, room):
    """(checks, trace to come to, recipe, batches after which to stop). Only the signal makes it save within epochs."""
    small = settings(folder, save_every_s=None)
    whole, met = undisturbed(folder, settings(folder), "whole")
    places = sorted(random.Random(seed).sample(range(len(met) - room), POINTS))
    return Checks(), whole, small, [met[i] for i in places]


def attempt(folder, small, i):
    """The command of an attempt: the first begins the run, the others go on."""
    if i == 0:
        return started(folder, small)
    return Session(folder, *going_on(folder), env={PACE: STEP_S})


def going_on(folder):
    return ["train", "--resume", "run", "--storage", folder]


def kept(folder, sent):
    """Seconds from a time to the first checkpoint after it; infinite where there is none."""
    times = [file.stat().st_mtime for file in (folder / "run" / "checkpoints").glob("*/MANIFEST.json")]
    return min((t - sent for t in times if t > sent), default=float("inf"))


def job_stopped(folder):
    """The same with `ray job submit` and `ray job stop` on a head of its own."""
    checks, whole, small, points = plan(folder, 0, ROOM_OF_JOB)
    (folder / "recipe.yaml").write_text(small.to_yaml())
    first = ["train", "--config", folder / "recipe.yaml", "--name", "run", "--storage", folder]
    found = []
    with head(folder) as (session, ray_job):
        for i, point in enumerate(points):
            began = time.time()
            submitted(ray_job, first if i == 0 else going_on(folder), "--no-wait", "--submission-id", f"job-{i}")
            session.wait_for(lambda entries, point=point, began=began: reached(entries, 0, point, began))
            asked = time.time()
            ray_job("stop", f"job-{i}")
            found += [kept(folder, asked)]
            code = exit_code(folder)
            good = code == 75 and found[-1] <= LIMIT_S
            checks.add(good, f"point {i}: exit code {code}, kept {found[-1]:.1f} s after the command began")
        done = submitted(ray_job, going_on(folder))
        checks.add(done.returncode == 0 and same_trace(folder / "run", whole), f"other bits: {done.stdout[-1500:]}")
    return checks.outcome(kept_job=found)


def exit_code(folder):
    """What the run says that its last command ended with, since a job says only whether it failed."""
    failure = folder / "run" / "failure.json"
    return json.loads(failure.read_text())["exit_code"] if failure.exists() else 0


@contextmanager
def head(folder):
    """A head with four declared CPUs: its session, and a function for `ray job VERB ...` there."""
    ports = [free_port(), free_port()]
    command = ["start", "--head", f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--num-cpus=4",
               "--disable-usage-stats", "--block"]  # fmt: skip
    # As in cluster.yaml: by default a job has three seconds between SIGTERM and SIGKILL.
    env = {PACE: STEP_S, "RAY_JOB_STOP_WAIT_TIME_S": "60", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def ray_job(verb, *words):
        words = [BIN / "ray", "job", verb, "--address", f"http://127.0.0.1:{ports[1]}", *words]
        return subprocess.run(list(map(str, words)), cwd=PROJECT, capture_output=True, text=True, timeout=300)

    with Session(folder, *command, program=[str(BIN / "ray")], env=env) as session:
        end = time.monotonic() + 90
        while ray_job("list").returncode:
            if time.monotonic() > end:
                raise TimeoutError(f"no head: {session.text()[-1500:]}")
        yield session, ray_job


def submitted(ray_job, arguments, *options):
    return ray_job("submit", *options, "--", *PROGRAM, *arguments)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def told(outcomes):
    kept_s, job_s = numbers(outcomes, "kept"), numbers(outcomes, "kept_job")
    return (
        f"{counted(outcomes)}; kept {spread(kept_s)} s after the signal, {spread(job_s)} s after `ray job stop` began"
    )


CASES = [
    Case("SIGTERM at five points", lambda folder: signalled(folder, signal.SIGTERM)),
    Case("SIGINT at five points", lambda folder: signalled(folder, signal.SIGINT)),
    Case("ray job stop at five points", job_stopped),
]
FIGURES = [
    Figure("R15", "stopped by a signal or `ray job stop`", "kept within 5 s, exit code 75, the same bits", CASES, told)
]
