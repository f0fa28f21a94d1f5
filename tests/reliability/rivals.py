"""Begins the same run in two processes at once, ROUNDS times: `python rivals.py FOLDER ROUNDS`, with FOLDER/recipe.yaml.

Each process goes the way of `raytrain train` until it would start Ray. Prints `round N CODE CODE`: 0 came that far, 2 was
refused. In every second round there is a lock that a dead process held.
"""

import multiprocessing
import os
import sys
import time
from contextlib import contextmanager

from raytrain import storage
from raytrain.config import load_recipe
from raytrain.distributed import train
from raytrain.errors import ConfigError

fork = multiprocessing.get_context("fork")


@contextmanager
def instead_of_ray():
    """Long enough for the other one to come to the lock, then the end."""
    time.sleep(0.5)
    os._exit(0)
    yield


def rival(barrier, checked, name):
    held = train.held

    def together(path):
        barrier.wait()
        return held(path)

    train.held, train.session = together, instead_of_ray
    train.check_recipe = lambda recipe: checked  # the same for both, and slow
    try:
        train.train(checked[0], name=name)
    except ConfigError:
        os._exit(2)


def dead(path):
    with train.held(path):
        os._exit(0)


def main(folder, rounds):
    checked = train.check_recipe(load_recipe(f"{folder}/recipe.yaml", {"storage": folder}))
    for n in range(rounds):
        if n % 2:
            run(lambda n=n: dead(storage.join(folder, f"run-{n}")))
        barrier = fork.Barrier(2)
        codes = run(*[lambda n=n, barrier=barrier: rival(barrier, checked, f"run-{n}")] * 2)
        print(f"round {n}", *sorted(codes), flush=True)


def run(*functions):
    """Exit codes of processes that run some functions together."""
    processes = [fork.Process(target=function) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
