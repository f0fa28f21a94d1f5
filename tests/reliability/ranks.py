"""R2: a rank is killed at a random batch and the same command goes on there: the bits of a run that nothing disturbed."""

import contextlib
import json
import random
import tempfile
from functools import cache, partial
from pathlib import Path

from figures import Case, Checks, Figure, Outcome
from group import run_group, trace
from torch.multiprocessing import ProcessExitedException
from workshop import TRAIN, dataset, recipe

WORLDS, KILLS = (1, 2, 3, 4), 10
SIZES, BATCH = (32, 64), 8
# Every rank sees more: validation has batches too.
BATCHES = 4 * TRAIN // BATCH
SAVE_EVERY_S = 0.0
# Steps done again: rank 0 may not yet have kept the last one, nor have heard of the end of that before.
AGAIN = 2


def _recipe(folder: Path, save_every_s: float | None = None):
    return recipe(
        dataset(folder, SIZES[1]), SIZES, epochs=1, batch_size=BATCH, save_every_s=save_every_s
    )


@cache
def undisturbed(world: int):
    """The trace of a run that nothing disturbs, and the batches of each of its ranks."""
    with tempfile.TemporaryDirectory(prefix="undisturbed-") as folder:
        run_group(_recipe(Path(folder) / "data"), Path(folder) / "run", world)
        return trace(Path(folder) / "run"), [
            _batches(Path(folder) / "run", rank) for rank in range(world)
        ]


def _batches(run: Path, rank: int) -> list[tuple]:
    """The batches that a rank met; in validation some have fewer than others."""
    lines = [json.loads(line) for line in (run / f"batches-{rank}.jsonl").read_text().splitlines()]
    return [(line["part"], line["stage"], line["epoch"], line["number"]) for line in lines]


def _steps(batches: list[tuple]) -> int:
    return sum(part == "train" for part, *_ in batches)


def killed(world: int, number: int, folder: Path) -> Outcome:
    """One kill of one rank, and the run that goes on."""
    checks, chance = Checks(), random.Random(100 * world + number)
    rank, batch = chance.randrange(world), chance.randrange(1, BATCHES)
    ended = False
    with contextlib.suppress(ProcessExitedException):
        run_group(
            _recipe(folder / "data", SAVE_EVERY_S),
            folder / "run",
            world,
            record=False,
            kill=(rank, batch),
        )
        ended = True
    what = f"world {world}, rank {rank} killed at its batch {batch}"
    if checks.add(not ended, f"{what}: nothing was killed"):
        run_group(_recipe(folder / "data"), folder / "run", world)
        (wanted, batches), found = undisturbed(world), trace(folder / "run")
        mine = batches[rank]
        again = _steps(mine[:batch]) + _steps(_batches(folder / "run", rank)) - _steps(mine)
        checks.add(0 <= again <= AGAIN, f"{what}: {again} steps done again")
        for n, part in enumerate(("weights and averages", "metrics", "losses of the steps")):
            checks.add(found[n] == wanted[n], f"{what}: other {part}")
    return checks.outcome(identical=[float(checks.passed == checks.of)])


def _identical(outcomes: list[Outcome]) -> str:
    return f"{sum(o.passed == o.of for o in outcomes)}/{len(outcomes)}"


FIGURES = [
    Figure(
        "R2",
        "kills with bit-identical weights, averages, metrics; no Ray, 1 to 4 ranks",
        f"{KILLS * len(WORLDS)}/{KILLS * len(WORLDS)}",
        [
            Case(
                f"kill {n + 1} of {world} ranks",
                partial(killed, world, n),
                quick=(world, n) == (3, 0),
            )
            for world in WORLDS
            for n in range(KILLS)
        ],
        _identical,
    ),
]
