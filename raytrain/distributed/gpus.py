"""Finds out which GPUs a command can use: those that torch sees on the machines that declare them.

What Ray declares is only a number that somebody has set. So each machine that declares GPUs is
asked what torch sees there. The driver's own GPUs prove nothing about other machines.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from raytrain.distributed.nodes import Node, first_line, node_name, start_on_each
from raytrain.errors import ResourceError
from raytrain.machine import usable_cpus

logger = logging.getLogger(__name__)


# Seconds to wait for a machine: a new process there imports torch first.
ANSWER_S = 60.0
# A task that asks for no GPU may otherwise see none, since Ray hides them by an environment
# variable. A task that asks for a GPU would have to wait until one is free.
SEES_ALL = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Seen:
    """What torch sees in a process.

    Attributes:
        count: number of GPUs that torch can use.
        why: the reason where `count` is 0, else empty.
    """

    count: int
    why: str = ""


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster that declares GPUs.

    Attributes:
        name: as messages name it.
        cpus: CPUs that it declares to Ray.
        declared: GPUs that it declares to Ray.
        seen: what torch sees there.
    """

    name: str
    cpus: float
    declared: int
    seen: Seen

    @property
    def has_unusable_gpus(self) -> bool:
        """Whether Ray would hand out GPUs here that torch cannot use."""
        return self.seen.count < self.declared

    def __str__(self) -> str:
        declared = "1 GPU" if self.declared == 1 else f"{self.declared} GPUs"
        text = f"{self.name} declares {declared}, torch sees {self.seen.count or 'none'} there"
        if self.seen.why:
            text += f" ({self.seen.why})"
        return text


def seen() -> Seen:
    """The GPUs that torch sees in this process. All decisions about GPUs rest on this answer."""
    # Why torch cannot use a driver appears only in a warning.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return Seen(torch.cuda.device_count())
    # torch for AMD cards is built with HIP instead of CUDA.
    if torch.version.cuda is None and torch.version.hip is None:
        return Seen(0, "this torch is a build without CUDA")
    if caught:
        # The sentences after the first are advice on where to get a driver.
        sentence = str(caught[-1].message).split(". ")[0]
        return Seen(0, sentence.splitlines()[0])
    return Seen(0, "no device, or no driver that this torch can use")


def declaring() -> list[Machine]:
    """The live machines of the connected cluster that declare GPUs. A task asks on each of them.

    Raises:
        ResourceError: a machine does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
    started = start_on_each(nodes, seen, runtime_env={"env_vars": SEES_ALL})
    return [_machine(node, answer) for node, answer in started]


def _machine(node: Node, answer: Any) -> Machine:
    """Waits for what `seen` returns on a node."""
    name = node_name(node)
    try:
        found = ray.get(answer, timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"the machine {name} does not answer which GPUs it has ({first_line(error)})",
            "workers on GPUs that cannot be used would end in an error of CUDA or NCCL",
            "ray status; then the same command, or --no-use-gpu",
        ) from None
    resources = node["Resources"]
    return Machine(name, resources.get("CPU", 0.0), int(resources["GPU"]), found)


def usable(wanted: bool | None) -> list[Machine]:
    """The machines whose GPUs a command uses. The list is empty where it uses CPUs.

    Args:
        wanted: whether the user asks for GPUs. None takes GPUs where there are any.

    Raises:
        ResourceError: torch does not see all GPUs that a machine declares, and either the user
            asks for GPUs or torch sees other ones. Ray cannot tell them apart.
    """
    if wanted is False:
        return []
    machines = declaring() if ray.is_initialized() else _this_machine()
    unusable = [machine for machine in machines if machine.has_unusable_gpus]
    if not unusable:
        return machines
    nothing_seen = not any(machine.seen.count for machine in machines)
    if wanted is None and nothing_seen:
        logger.info(f"CPUs are used: {unusable[0]}")
        return []
    raise ResourceError(
        str(unusable[0]),
        "Ray would start workers there, which would end in an error of CUDA or NCCL",
        "--no-use-gpu, or a torch and a driver that fit together on that machine,"
        " or no GPUs declared for it",
    )


def needed(wanted: bool | None) -> list[Machine]:
    """The machines of `usable`, at least one of them where the user asks for GPUs.

    Raises:
        ResourceError: as `usable`, or the user asks for GPUs and there are none.
    """
    machines = usable(wanted)
    if wanted and not machines:
        owner = "the cluster declares" if ray.is_initialized() else "this machine has"
        raise ResourceError(
            f"GPUs are asked for, {owner} 0 GPUs",
            "Ray would wait for one forever",
            "--no-use-gpu, or a cluster with GPUs",
        )
    return machines


def _this_machine() -> list[Machine]:
    """This machine if it has a GPU: what a local cluster would consist of."""
    found = seen()
    if found.count == 0:
        return []
    # A local Ray declares the CPUs and GPUs that it finds.
    cpus = usable_cpus()
    return [Machine("this machine", cpus, found.count, found)]


def count(machines: Sequence[Machine]) -> int:
    """Number of GPUs that the machines declare together."""
    return sum(machine.declared for machine in machines)


def cpus_of_each(machines: Sequence[Machine]) -> float:
    """CPUs that a process on one GPU can ask for on each of the machines.

    Returns:
        A whole number, or a fraction below 1: Ray accepts no other fractions.
    """
    least = min(machine.cpus / machine.declared for machine in machines)
    if least < 1:
        return least
    return int(least)
