"""Finds out which GPUs a command can use: those that torch sees on the machines that declare them.

What Ray declares is only a number that somebody has set. So each machine that declares GPUs is
asked what torch sees there. The driver's own GPUs prove nothing about other machines.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from raytrain import machine
from raytrain.distributed.nodes import Answer, ask, facts_of, working_nodes
from raytrain.errors import ResourceError
from raytrain.machine import Gpus, Question, usable_cpus

logger = logging.getLogger(__name__)


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
    seen: Gpus

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


def declaring(answers: Sequence[Answer] = ()) -> list[Machine]:
    """The live machines of the connected cluster that declare GPUs.

    Args:
        answers: of its machines, which were asked for GPUs; empty to ask them now.

    Raises:
        ResourceError: a machine does not answer.
    """
    if not answers:
        nodes = [node for node in working_nodes() if node["Resources"].get("GPU", 0) >= 1]
        answers = ask(nodes, Question(gpus=True))
    return [_machine(answer) for answer in answers if answer.declared_gpus >= 1]


def _machine(answer: Answer) -> Machine:
    found = facts_of(answer).gpus
    assert found is not None  # every machine that declares GPUs is asked for them
    cpus = answer.node["Resources"].get("CPU", 0.0)
    return Machine(answer.name, cpus, answer.declared_gpus, found)


def usable(wanted: bool | None, answers: Sequence[Answer] = ()) -> list[Machine]:
    """The machines whose GPUs a command uses. The list is empty where it uses CPUs.

    Args:
        wanted: whether the user asks for GPUs. None takes GPUs where there are any.
        answers: as for `declaring`.

    Raises:
        ResourceError: torch does not see all GPUs that a machine declares, and either the user
            asks for GPUs or torch sees other ones. Ray cannot tell them apart.
    """
    if wanted is False:
        return []
    machines = declaring(answers) if ray.is_initialized() else _this_machine()
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


def needed(wanted: bool | None, answers: Sequence[Answer] = ()) -> list[Machine]:
    """The machines of `usable`, at least one of them where the user asks for GPUs.

    Raises:
        ResourceError: as `usable`, or the user asks for GPUs and there are none.
    """
    machines = usable(wanted, answers)
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
    found = machine.seen_gpus()
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
