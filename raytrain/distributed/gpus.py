"""Which GPUs can be used: those that torch sees, asked on every machine that declares some, never of the driver alone."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from raytrain.errors import ResourceError

logger = logging.getLogger(__name__)


# A new process imports torch first.
ANSWER_S = 60.0
# Else Ray may hide all GPUs from a task that asks for none, and one that asks for a GPU would wait for whoever holds it.
SEES_ALL = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Seen:
    """How many GPUs torch can use in a process, and why none where it is 0."""

    count: int
    why: str = ""


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster that declares GPUs: its name, what it declares, what torch sees there."""

    name: str
    cpus: float
    declared: int
    seen: Seen

    @property
    def short(self) -> bool:
        """Whether Ray would hand out GPUs here that torch cannot use."""
        return self.seen.count < self.declared

    def __str__(self) -> str:
        why = f" ({self.seen.why})" if self.seen.why else ""
        return f"{self.name} declares {_gpus(self.declared)}, torch sees {self.seen.count or 'none'} there{why}"


def seen() -> Seen:
    """The GPUs that torch sees in this process: the one question that all decisions rest on."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return Seen(torch.cuda.device_count())
    if torch.version.cuda is None and torch.version.hip is None:
        return Seen(0, "this torch is a build without CUDA")
    if said:
        return Seen(0, str(said[-1].message).split(". ")[0].splitlines()[0])
    return Seen(0, "no device, or no driver that this torch can use")


def device(granted: bool) -> torch.device:
    """Where a process computes that was, or was not, granted a GPU: Ray does not hide GPUs from those that asked for none."""
    return torch.device("cuda" if granted else "cpu")


def declaring() -> list[Machine]:
    """The living machines of the connected cluster that declare GPUs, each asked by a task of its own.

    Raises:
        ResourceError: one does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
    question = ray.remote(num_cpus=0)(seen)
    asked = [
        question.options(
            scheduling_strategy=NodeAffinity(node["NodeID"], soft=False),
            runtime_env={"env_vars": SEES_ALL},
        ).remote()
        for node in nodes
    ]
    return [_heard(node, answer) for node, answer in zip(nodes, asked, strict=True)]


def _heard(node: dict[str, Any], answer: Any) -> Machine:
    name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    resources = node["Resources"]
    try:
        found = ray.get(answer, timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"the machine {name} does not say which GPUs it has ({str(error).splitlines()[0]})",
            "workers on GPUs that cannot be used would end in CUDA or NCCL",
            "ray status; then the same command, or --no-use-gpu",
        ) from None
    return Machine(name, resources.get("CPU", 0.0), int(resources["GPU"]), found)


def usable(wanted: bool | None) -> list[Machine]:
    """The machines whose GPUs a command uses; none where it uses CPUs.

    Args:
        wanted: whether GPUs are asked for; None takes them where there are any.

    Raises:
        ResourceError: GPUs are declared that torch does not see, and were asked for or are among others that it sees:
            Ray does not tell the ones from the others.
    """
    if wanted is False:
        return []
    machines = declaring() if ray.is_initialized() else _here()
    short = [machine for machine in machines if machine.short]
    if not short:
        return machines
    if wanted is None and not any(machine.seen.count for machine in machines):
        logger.info(f"CPUs are used: {short[0]}")
        return []
    raise ResourceError(
        str(short[0]),
        "Ray would place workers there, which would end in CUDA or NCCL",
        "--no-use-gpu, or a torch and a driver that fit together on that machine, or no GPUs declared for it",
    )


def needed(wanted: bool | None) -> list[Machine]:
    """As `usable`; where GPUs are asked for, at least one.

    Raises:
        ResourceError: as `usable`, and where GPUs are asked for and there are none.
    """
    machines = usable(wanted)
    if wanted and not machines:
        raise ResourceError(
            "GPUs are asked for, the cluster declares 0 GPUs",
            "Ray would wait for one for ever",
            "--no-use-gpu, or a cluster with GPUs",
        )
    return machines


def _here() -> list[Machine]:
    """This machine, where no cluster is connected: a local one would find what torch finds."""
    found = seen()
    return [Machine("this machine", 0.0, found.count, found)] if found.count else []


def count(machines: list[Machine]) -> int:
    """GPUs of some machines."""
    return sum(machine.declared for machine in machines)


def cpus_of_each(machines: list[Machine]) -> float:
    """CPUs that a process on one GPU can ask for on every one of the machines: a whole number, or less than 1."""
    least = min(machine.cpus / machine.declared for machine in machines)
    return int(least) if least >= 1 else least


def _gpus(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"
