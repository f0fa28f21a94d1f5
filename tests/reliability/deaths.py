"""SIGKILL under Ray: R1 (the same bits), R3 (work lost), R4 (time until it trains again), R13 (all that may die beside)."""

import random
import statistics
import time

import canary
import psutil
from driver import PACE
from figures import Case, Checks, Figure, counted, numbers, passed, spread
from recovery import PARTS, Recovery, batches, driver, path
from session import PATIENCE_S, Session, kill, titled
from workshop import dataset, once, recipe, same_trace, undisturbed

from raytrain.training.decision import EVERY_S

# An epoch lasts for at least two intervals: what it loses tells whether there are checkpoints within it.
SAVE_EVERY_S, STEP_S = 1.0, "0.2"
# From a checkpoint to the next: rank 0 asks twice a second whether one is due.
INTERVAL_S = SAVE_EVERY_S + EVERY_S
# Ray starts the workers again by itself; all others are for the supervisor.
WORKER, DRIVER, CONTROLLER = "worker", "driver", "controller"
RAYLET, GCS, CLUSTER = "raylet", "gcs_server", "whole cluster"
# So many batches are left after a kill: two show that a run has come back.
ROOM = 3
TITLES = {CONTROLLER: "ray::TrainController", RAYLET: "raylet", GCS: "gcs_server", CLUSTER: ""}


def settings(folder, **train):
    """The four stages on two workers, each of one epoch of 16 steps: room for checkpoints within epochs."""
    path = str(once(folder, "data", lambda path: dataset(path / "tiles")) / "tiles")
    small = recipe(path, epochs=1, **{"batch_size": 4, "save_every_s": SAVE_EVERY_S, **train})
    return small.model_copy(update={"num_workers": 2})


def started(folder, recipe, *arguments, step_s=STEP_S):
    """`raytrain train` of a new run named `run`, whose steps are held back."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    command = [
        "train",
        "--config",
        folder / "recipe.yaml",
        "--name",
        "run",
        "--storage",
        folder,
        *arguments,
    ]
    return Session(folder, *command, env={PACE: step_s, **canary.ENVIRONMENT})


def killed(folder, victims, seed, step_s, share):
    """A run whose processes are killed at random moments of a share of it, and that nobody helps."""
    chance, small = random.Random(seed), settings(folder)
    whole, met = undisturbed(folder, small, "whole")
    met = met[: int(share * len(met))]
    with started(folder, small, *restarts(victims), step_s=step_s) as session:
        kills = hurt(session, victims, met, chance)
        code = session.end(2 * PATIENCE_S)
        left, entries, keys = (
            session.left_behind(),
            session.entries(),
            canary.keys_in(folder, session.tmp),
        )
    same = code == 0 and same_trace(folder / "run", whole)
    return judged(kills, entries, same, left, keys, f"exit code {code}, {session.text()[-1500:]}")


def restarts(victims):
    """The flag for the deaths that Ray does not mend."""
    many = len(victims) - victims.count(WORKER)
    return ["--restarts", many] if many else []


def hurt(session, victims, met, chance):
    """Kills the victims at random moments, each after the run has come back. Returns (victim, time) of each."""
    moments, kills = sorted(chance.sample(range(len(met) - ROOM), len(victims))), []
    for victim, moment in zip(chance.sample(victims, len(victims)), moments, strict=True):
        rank, after = chance.randrange(2), kills[-1][1] if kills else 0.0
        found = session.wait_for(lambda entries: reached(entries, rank, met[moment], after))  # noqa: B023
        time.sleep(chance.uniform(0, 0.3))
        kills.append((victim, kill(*pids(session, victim, found["pid"]))))
    return kills


def pids(session, victim, worker):
    """Processes of the run that are killed as the victim."""
    pid = driver(session.entries())
    if victim in (WORKER, DRIVER):
        return [worker if victim == WORKER else pid]
    return [
        process.pid
        for process in titled(psutil.Process(pid).children(recursive=True), TITLES[victim])
    ]


def reached(entries, rank, batch, after=0.0):
    """The entry of a rank that has come as far as a batch, in a process that began after a time and has done a step."""
    return next((e for e in batches(entries, rank, after)[1:] if path(e) >= path(batch)), None)


def judged(kills, entries, same, left, keys, end):
    """The outcome of a run by its kills; one is survived where another process trains after it, and the end is right."""
    checks, found = Checks(), [(victim, Recovery(entries, at)) for victim, at in kills]
    checks.failures += [f"left behind: {thing}" for thing in left] + [
        f"a key in {file}" for file in keys.found
    ]
    for victim, recovery in found:
        again = recovery.seconds is not None
        checks.add(
            same and again, f"{victim} killed: {'' if again else 'nothing trains after it, '}{end}"
        )
    workers = [recovery for victim, recovery in found if victim == WORKER]
    return checks.outcome(
        left=[len(left)],
        keys=[len(keys.found)],
        searched=[keys.searched],
        lost=[recovery.lost_s / INTERVAL_S for _, recovery in found if recovery.seconds],
        **{
            victim: [r.seconds for v, r in found if v == victim and r.seconds]
            for victim, _ in kills
        },
        **{
            part: [recovery.parts[part] for recovery in workers if recovery.parts] for part in PARTS
        },
    )


def within(found, limit, judge=max):
    """Whether there are numbers, and their maximum is at most so much."""
    return bool(found) and judge(found) <= limit


def little(lost):
    """At most an interval, and a median of half of one, of which less than five kills say nothing."""
    return within(lost, 1) and (len(lost) < 5 or within(lost, 0.5, statistics.median))


def all_of(cases, least):
    """A judgement: everything passed; and where all cases were run, with so many kills."""
    return lambda outcomes: (
        passed(outcomes) and (len(outcomes) < len(cases) or sum(o.of for o in outcomes) >= least)
    )


def after_a_worker(outcomes):
    """Seconds after a worker's death with their parts, and after a driver's."""
    parts = [(part, numbers(outcomes, part)) for part in PARTS]
    told = ", ".join(f"{part} {statistics.median(found):.1f}" for part, found in parts if found)
    return f"worker {spread(numbers(outcomes, WORKER))} s: {told}; driver {spread(numbers(outcomes, DRIVER))} s"


def by_victim(outcomes):
    """Kills survived, and seconds to the next step by what was killed."""
    found = [
        (victim, numbers(outcomes, victim)) for victim in (CONTROLLER, DRIVER, RAYLET, GCS, CLUSTER)
    ]
    return f"{counted(outcomes)}; " + ", ".join(
        f"{victim} {spread(some, 0)} s" for victim, some in found if some
    )


def case(label, victims, seed, step_s=STEP_S, share=1.0, quick=False):
    return Case(
        f"{label}, seed {seed}", lambda folder: killed(folder, victims, seed, step_s, share), quick
    )


CASES = [
    case("a worker killed", [WORKER], 0, "0.05", quick=True),
    *(case("five kills", [WORKER] * 3 + [DRIVER] * 2, seed) for seed in range(1, 5)),
]
# A run goes on without its raylet for some ten seconds, without its GCS for a minute: it must last longer than that.
OTHERS = [
    *(
        case("controller, driver and cluster killed", [CONTROLLER, DRIVER, CLUSTER], seed)
        for seed in range(11, 14)
    ),
    *(case("raylet killed", [RAYLET], seed, "0.5", 0.5) for seed in range(14, 17)),
    case("GCS killed", [GCS], 17, "1", 0.1),
]

FIGURES = [
    Figure(
        "R1",
        "kills of a worker or driver with the bits of an undisturbed run",
        "all of 20 or more",
        CASES,
        met=all_of(CASES, 20),
    ),
    Figure(
        "R3",
        f"training done again after a kill, in checkpoint intervals of {INTERVAL_S} s",
        "at most 1, median 0.5",
        CASES,
        lambda outcomes: spread(numbers(outcomes, "lost"), 2),
        lambda outcomes: little(numbers(outcomes, "lost")),
    ),
    Figure(
        "R4",
        "from a kill to the end of the next step",
        "12 s after a worker's",
        CASES,
        after_a_worker,
        lambda outcomes: within(numbers(outcomes, WORKER), 12, statistics.median),
    ),
    Figure(
        "R13",
        "controller, driver, raylet, cluster killed thrice, GCS once: the supervisor finishes the run",
        "all 13",
        OTHERS,
        by_victim,
        all_of(OTHERS, 13),
    ),
]
