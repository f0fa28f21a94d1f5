"""Searches of a small space, in a process of their own, for tests that stop or kill them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

RATES = {"loggrid": [0.002, 0.03, 3]}
SPACE = {
    "stages": {
        "choice": {
            "two": [
                {"size": 32, "epochs": 1, "freeze": True, "lr": RATES, "name": "head"},
                {"size": 32, "epochs": 1, "lr": RATES},
            ],
            # The same stage under another name: the lists share it.
            "one": [{"size": 32, "epochs": 1, "freeze": True, "lr": RATES, "name": "only"}],
        }
    }
}
RECIPE = {
    "model": {"weights": "none", "dropout": 0.25},
    "train": {"batch_size": 32, "seed": 3},
    "stages": [
        {"size": 32, "epochs": 1, "freeze": True, "lr": 0.01, "name": "given"},
        {"size": 32, "epochs": 1, "lr": 0.005},
    ],
}


def files(folder: Path, dataset, epochs=1):
    """The recipe and the space as files; the first stage of the recipe may take long."""
    stages = [RECIPE["stages"][0] | {"epochs": epochs}, RECIPE["stages"][1]]
    model = RECIPE["model"] | {"arch": os.environ["RAYTRAIN_MODEL__ARCH"]}
    recipe = RECIPE | {"model": model, "stages": stages, "dataset": dataset.path}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))


def command(folder: Path, *more: str) -> list[str]:
    """The command of a search in a folder with `files`."""
    given = ["--config", str(folder / "r.yaml"), "--space", str(folder / "space.yaml")]
    return ["tune", *given, "--storage", str(folder / "runs"), "--name", "s", *more]


def resume(folder: Path, *more: str) -> list[str]:
    return ["tune", "--resume", "s", "--storage", str(folder / "runs"), *more]


MAIN = "from raytrain.cli.main import main; main()"


class Driver:
    """A search, or another command, in a process of its own."""

    def __init__(self, folder: Path, arguments: list[str], code: str = MAIN) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                # Ray's processes must not get the signals of the test.
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, condition, seconds: float = 120.0) -> None:
        """Waits until something is so while the search runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self, seconds: float = 120.0) -> int:
        """Waits for its end. Returns its exit code."""
        return self.process.wait(seconds)


def table(folder: Path) -> list[dict]:
    """The rows of trials.json."""
    return json.loads((folder / "runs/s/trials.json").read_text())["trials"]


def scores(folder: Path) -> list:
    """What must not depend on kills: number, state and scores of each trial."""
    rows = table(folder)
    return [(row["number"], row["state"], [p["score"] for p in row["parts"]]) for row in rows]


def trained(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """Stage and epoch of each row of history.csv, by key: one row for each epoch that was kept."""
    found = {}
    for stage in sorted((folder / "runs/stages").iterdir()):
        lines = (stage / "history.csv").read_text().splitlines()[1:]
        cells = [line.split(",") for line in lines]
        found[stage.name] = [(int(cell[0]), int(cell[2])) for cell in cells]
    return found
