"""How many folds of a cross-validation train at once, and with how many threads.

A fold is a worker group of `train`. As many of them train at once as fit into the CPUs (one is left
free), the GPUs and the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from raytrain.config import Recipe
from raytrain.distributed import slots
from raytrain.distributed.slots import Resources, Share, cpus_of_worker


@dataclass(frozen=True)
class Limit:
    """What decides how many folds train at once, beside the size of the cluster.

    Attributes:
        workers: number of workers of each fold.
        gpu: whether each worker has a GPU.
        threads: of each worker; None where each takes its share of its machine.
        most: how many folds fit into the memory; None for any.
    """

    workers: int
    gpu: bool
    threads: int | None = None
    most: int | None = None

    def at_once(self, has: Resources) -> int:
        """Returns how many folds train at once.

        Args:
            has: what the cluster, or this machine, has.

        Returns:
            At least 1: whether a single fold fits is checked where it starts.
        """
        if self.gpu:
            # All workers that have a GPU have their share of the CPUs as well.
            found = int(has.gpus) // self.workers
        else:
            share = Share(self.workers, cpus_of_worker(self.workers, has.cpus), gpus=0.0)
            found = slots.groups(share, has)
        if self.threads is not None and not self.gpu:
            # With a given number of threads, more folds would fight over the cores.
            found = min(found, int(has.cpus) // (self.workers * self.threads))
        if self.most is not None:
            found = min(found, self.most)
        return max(1, found)


def threads_of_worker(cpus: int, workers: int, at_once: int) -> int:
    """Returns the threads of each worker, where the workers of all folds share the CPUs.

    Args:
        cpus: of the machine, or of the whole cluster.
        workers: number of workers of each fold.
        at_once: how many folds train at once.
    """
    return max(1, cpus // (workers * at_once))


def with_threads(recipe: Recipe, threads: int) -> Recipe:
    """Returns the recipe with the number of threads of each worker."""
    train = recipe.train.model_copy(update={"threads": threads})
    return recipe.model_copy(update={"train": train})


def in_words(folds: int, at_once: int) -> str:
    """Returns how many folds there are to train, and how many of them at once.

    Args:
        folds: number of folds that are left.
        at_once: how many fit.
    """
    together = min(folds, at_once)
    if folds == 0:
        return "all folds are trained"
    if folds == 1:
        return "1 fold to train"
    if together == 1:
        return f"{folds} folds to train, one after the other"
    return f"{folds} folds to train, {together} at once"
