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
from recovery import is_batch, path
from session import PROGRAM, Session
from workshop import same_trace, undisturbed

POINTS, LIMIT_S = 5, 5.0
# Batches that a run has left when it is told to stop: a signal needs a second to be obeyed, `ray job stop` one more to begin.
ROOM, ROOM_OF_JOB = 15, 35
BIN = Path(sys.executable).parent


def signalled(folder, number):
    """A run that is stopped by a signal at random points, each time gone on with by hand."""
    checks, found, left = Checks(), [], []
    small, points = plan(folder, number, ROOM)
    for i, point in enumerate(points):
        with attempt(folder, small, i) as session:
            session.wait_for(lambda entries, point=point: reached(entries, 0, point))
            time.sleep(random.Random(i).uniform(0, 0.3))
            sent = session.send(number)
            code = session.end()
            left += session.left_behind()
            checks.failures += [f"left behind: {thing}" for thing in left]
        found += [kept(folder, sent)]
        checks.add(
            code == 75 and found[-1] <= LIMIT_S,
            f"point {i}: exit code {code}, kept after {found[-1]:.1f} s",
        )
    with attempt(folder, small, POINTS) as session:
        ended_well(checks, folder, session.end(), session.text())
    return checks.outcome(left=[len(left)], kept=found)


def plan(folder, seed, room):
    """(recipe, batches after which to stop). Only the signal makes it save within epochs."""
    met = undisturbed(folder, settings(folder), "whole")[1]
    paths = sorted(random.Random(seed).sample(range(len(met) - room), POINTS))
    return settings(folder, save_every_s=None), [met[i] for i in paths]


def ended_well(checks, folder, code, text):
    """The bits of a run that was never stopped; and no step was done twice."""
    whole, met = undisturbed(folder, settings(folder), "whole")
    checks.add(
        code == 0 and same_trace(folder / "run", whole),
        f"other bits: exit code {code}, {text[-1500:]}",
    )
    entries = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    steps = [path(e) for e in entries if is_batch(e, 0) and e["part"] == "train"]
    checks.add(
        steps == [path(b) for b in met if b["part"] == "train"], f"not each step once: {steps}"
    )


def attempt(folder, small, i):
    """The command of an attempt: the first begins the run, the others go on."""
    if i == 0:
        return started(folder, small)
    return Session(folder, *going_on(folder), env={PACE: STEP_S})


def going_on(folder):
    return ["train", "--resume", "run", "--storage", folder]


def kept(folder, sent):
    """Seconds from a time to the checkpoint that the run says it kept; infinite where that is older, or none."""
    checkpoint = failure(folder).get("message", "").partition(" kept in ")[2].partition("\n")[0]
    seconds = Path(checkpoint, "MANIFEST.json").stat().st_mtime - sent if checkpoint else -1.0
    return seconds if seconds > 0 else float("inf")


def job_stopped(folder):
    """The same with `ray job submit` and `ray job stop` on a head of its own."""
    checks, found = Checks(), []
    small, points = plan(folder, 0, ROOM_OF_JOB)
    (folder / "recipe.yaml").write_text(small.to_yaml())
    first = ["train", "--config", folder / "recipe.yaml", "--name", "run", "--storage", folder]
    with head(folder) as (session, ray_job):
        for i, point in enumerate(points):
            began = time.time()
            submitted(
                ray_job,
                first if i == 0 else going_on(folder),
                "--no-wait",
                "--submission-id",
                f"job-{i}",
            )
            session.wait_for(
                lambda entries, point=point, began=began: reached(entries, 0, point, began)
            )
            asked = time.time()
            ray_job("stop", f"job-{i}")
            found += [kept(folder, asked)]
            # A job itself says only whether it failed.
            code = failure(folder).get("exit_code")
            good = code == 75 and found[-1] <= LIMIT_S
            checks.add(
                good, f"point {i}: exit code {code}, kept {found[-1]:.1f} s after the command began"
            )
        done = submitted(ray_job, going_on(folder))
        ended_well(checks, folder, done.returncode, done.stdout)
        session.send(signal.SIGTERM)
        left = session.left_behind()
        checks.failures += [f"left behind: {thing}" for thing in left]
    return checks.outcome(left=[len(left)], kept_job=found)


def failure(folder):
    """What the run says about the end of its last command; empty where that went well."""
    file = folder / "run" / "failure.json"
    return json.loads(file.read_text()) if file.exists() else {}


@contextmanager
def head(folder):
    """A head with four declared CPUs: its session, and a function for `ray job VERB ...` there."""
    ports = [free_port(), free_port()]
    command = [
        "start",
        "--head",
        f"--port={ports[0]}",
        f"--dashboard-port={ports[1]}",
        "--num-cpus=4",
        "--disable-usage-stats",
        "--block",
    ]
    # As in cluster.yaml: by default a job has three seconds between SIGTERM and SIGKILL.
    env = {
        PACE: STEP_S,
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }

    def ray_job(verb, *words):
        words = [BIN / "ray", "job", verb, "--address", f"http://127.0.0.1:{ports[1]}", *words]
        return subprocess.run(
            list(map(str, words)), cwd=PROJECT, capture_output=True, text=True, timeout=300
        )

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
    return f"{counted(outcomes)}; kept {spread(kept_s)} s after the signal, {spread(job_s)} s after `ray job stop` began"


CASES = [
    Case("SIGTERM at five points", lambda folder: signalled(folder, signal.SIGTERM)),
    Case("SIGINT at five points", lambda folder: signalled(folder, signal.SIGINT)),
    Case("ray job stop at five points", job_stopped),
]
FIGURES = [
    Figure(
        "R15",
        "stopped by a signal or `ray job stop`",
        "kept within 5 s, exit code 75, the same bits",
        CASES,
        told,
    )
]
