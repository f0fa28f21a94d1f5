"""How many trials of a search, or folds of a cross-validation, can run at once on a cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ray

from raytrain import machine
from raytrain.distributed.session import cpus
from raytrain.errors import ConfigError, ResourceError

# What the process of a trial asks for whose training is done by a worker group of its own.
GROUP_CPU = 0.01


@dataclass(frozen=True)
class Share:
    """What a trial takes.

    Attributes:
        workers: number of its workers; with more than one they are a group of their own.
        cpus: of each worker.
        gpus: of each worker; 0 on CPUs, below 1 for several trials on a GPU.
    """

    workers: int
    cpus: float
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """What the process of a trial asks Ray Tune for."""
        if self.workers > 1:
            return {"CPU": GROUP_CPU}
        found = {"CPU": self.cpus}
        if self.gpus:
            found["GPU"] = self.gpus
        return found


@dataclass(frozen=True)
class Resources:
    """What a cluster, or one machine, has in total.

    Attributes:
        cpus: number of CPUs.
        gpus: number of GPUs.
    """

    cpus: float
    gpus: float = 0.0


def check(share: Share) -> None:
    """Refuses a share that Ray cannot give.

    Raises:
        ConfigError: a number out of range.
    """
    if share.cpus <= 0 or (share.cpus > 1 and share.cpus % 1):
        raise ConfigError(
            f"--trial-cpus {share.cpus:g} is not a whole number, nor a part of one CPU",
            "Ray accepts no other numbers",
            "--trial-cpus 1",
        )
    if share.gpus < 0 or (share.gpus > 1 and share.gpus % 1):
        raise ConfigError(
            f"--trial-gpus {share.gpus:g} is not a whole number, nor a part of one GPU",
            "a trial has a GPU, or shares one with others",
            "--trial-gpus 0.5 for two trials on each GPU",
        )
    if share.gpus > 1:
        raise ConfigError(
            f"--trial-gpus {share.gpus:g}: a trial of one worker uses one GPU",
            "the others would be idle",
            f"--num-workers {share.gpus:g} gives each trial so many workers with a GPU each",
        )


def count(share: Share, most: int | None = None) -> int:
    """Returns how many trials the cluster holds at once. It may grow, so this is asked again.

    Args:
        share: what a trial takes.
        most: how many fit into the memory of this machine; None for any.
    """
    if share.workers > 1:
        found = groups(share, resources())
    else:
        found = sum(_on_node(has, share) for has in _nodes())
    if most is not None:
        found = min(found, most)
    return found


def _on_node(has: dict[str, float], share: Share) -> int:
    """Trials of one worker that a node holds."""
    found = math.floor(has.get("CPU", 0.0) / share.cpus)
    if share.gpus:
        # Ray gives a part of one GPU, never parts of two.
        on_each = math.floor(1 / share.gpus)
        found = min(found, int(has.get("GPU", 0.0)) * on_each)
    return found


def groups(share: Share, has: Resources) -> int:
    """Returns how many worker groups fit at once. One CPU is left to the driver and Ray Data.

    Args:
        share: what a group takes.
        has: what there is for all of them.
    """
    # Without the small number, a group that takes thirds of a CPU would miss the last of them.
    found = math.floor((has.cpus - 1) / (share.workers * share.cpus) + 1e-9)
    if share.gpus:
        found = min(found, math.floor(has.gpus / (share.workers * share.gpus)))
    return found


def resources() -> Resources:
    """Returns what the connected cluster has, or this machine where none is connected."""
    return Resources(cpus(), sum(has.get("GPU", 0.0) for has in _nodes()))


def _nodes() -> list[dict[str, float]]:
    """CPUs and GPUs of each live node, or of this machine where Ray will run locally."""
    if ray.is_initialized():
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [{"CPU": float(cpus()), "GPU": float(machine.seen_gpus().count)}]


def cpus_of_worker(workers: int, cpus: float) -> float:
    """Returns the CPUs that each worker of a group asks Ray for, at most 1.

    Args:
        workers: number of workers of the group.
        cpus: of the cluster. One of them is left to Ray Data and the driver.
    """
    # Workers share the CPUs that remain. With a single CPU none remains, and each worker asks for
    # a hundredth of it.
    return max(0.01, min(1.0, (cpus - 1) / workers))


def cpus_of_gpu_worker() -> float:
    """Returns the CPUs that each worker with a GPU asks Ray for.

    That is an equal part of its machine's CPUs, of which one is left to Ray Data and the driver:
    a whole number, or a fraction below 1, since Ray accepts no other fractions.
    """
    shares = []
    for has in _nodes():
        declared = int(has.get("GPU", 0.0))
        if declared:
            shares.append((has.get("CPU", 0.0) - 1) / declared)
    least = min(shares, default=1.0)
    if least < 1:
        return max(0.01, least)
    return int(least)


def check_room(share: Share) -> None:
    """Refuses a trial that the whole cluster cannot hold.

    Raises:
        ResourceError: with what the cluster has.
    """
    if count(share) > 0:
        return
    has_cpus = sum(has.get("CPU", 0.0) for has in _nodes())
    has_gpus = sum(has.get("GPU", 0.0) for has in _nodes())
    owner = "the cluster declares" if ray.is_initialized() else "this machine has"
    each = f"{share.workers} workers" if share.workers > 1 else "one worker"
    with_gpus = f" and {share.gpus:g} GPU" if share.gpus else ""
    raise ResourceError(
        f"a trial takes {each} of {share.cpus:g} CPU{with_gpus}, {owner} "
        f"{has_cpus:g} CPUs and {has_gpus:g} GPUs",
        "no trial would ever start",
        "fewer --num-workers, --trial-cpus or --trial-gpus, or a larger cluster",
    )


def is_free(share: Share) -> bool:
    """Returns whether the cluster has a trial's CPUs and GPUs free, as far as Ray knows by now."""
    free = ray.available_resources()
    return all(free.get(name, 0.0) >= value for name, value in share.resources.items())


def lacking(share: Share) -> str:
    """Returns what is free of what a trial takes, in words."""
    free = ray.available_resources()
    needs = ", ".join(f"{value:g} {name}" for name, value in share.resources.items())
    has = ", ".join(f"{free.get(name, 0.0):g} {name}" for name in share.resources)
    return f"it needs {needs}, and {has} is free"
