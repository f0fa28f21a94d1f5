"""Asks the machines of a Ray cluster for their facts, all in one round of tasks.

`check_machines` is what commands call before anything starts. Errors name the machine and the path.
Commands that only move tiles use this module too. It must not import torch, which costs each
process seconds and memory.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from raytrain import machine, storage
from raytrain.distributed import environment
from raytrain.errors import DataError, ResourceError, StorageError, masked
from raytrain.machine import Facts, Question

logger = logging.getLogger(__name__)

# Seconds to wait for a machine. Its first task starts a process, which imports raytrain and, for a
# question about GPUs, torch.
ANSWERS_S = 60.0
# A task that asks for no GPU may otherwise see none, since Ray hides them by an environment
# variable. A task that asks for a GPU would have to wait until one is free.
SEES_ALL_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

# Of many files, how many are compared between machines.
COMPARED_FILES = 8

# A machine as `ray.nodes` describes it.
Node = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """The paths that a command uses on every machine, by the flag that sets them.

    Attributes:
        written: a directory for each flag.
        read: files for each flag. They have to be the same on every machine.
    """

    written: Mapping[str, str] = field(default_factory=dict)
    read: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are read."""
        found: list[str] = []
        for paths in self.read.values():
            found += paths
        return tuple(found)


@dataclass(frozen=True)
class Answer:
    """What a machine has answered.

    Attributes:
        node: the machine as `ray.nodes` describes it.
        facts: None if it does not answer.
        silence: why it does not answer; empty if it does.
        clock_s: seconds by which its clock is ahead of this machine's.
    """

    node: Node
    facts: Facts | None
    silence: str = ""
    clock_s: float = 0.0

    @property
    def name(self) -> str:
        """The machine as messages name it: host name and address."""
        return node_name(self.node)

    @property
    def declared_gpus(self) -> int:
        """GPUs that the machine declares to Ray."""
        return int(self.node["Resources"].get("GPU", 0))


def check_machines(places: Places, gpus: bool = False) -> list[Answer]:
    """Asks every machine that may work, and refuses what would fail there later.

    Nothing is asked in a session that Ray has started for this command alone.

    Args:
        places: that the command uses.
        gpus: whether machines that declare GPUs are asked what torch sees.

    Returns:
        The answers, one for each machine; empty where nothing was asked.

    Raises:
        DataError: a machine cannot read a file, or reads another one.
        ResourceError: a machine does not answer, or runs other source code of raytrain.
        StorageError: a machine cannot use a directory.
    """
    nodes = working_nodes()
    if not environment.connects() and len(nodes) < 2:
        return []
    directories = {flag: storage.absolute(path) for flag, path in places.written.items()}
    with marked(list(directories.values())) as marker:
        question = Question(tuple(directories.values()), marker, places.files, gpus)
        answers = ask(nodes, question)
    here = {path: machine.seen_file(path) for path in places.files}
    for answer in answers:
        found = facts_of(answer)
        _check_source(answer.name, found)
        for flag, files in places.read.items():
            _check_files(answer.name, found, flag, [here[path] for path in files])
        for flag, path in directories.items():
            _check_directory(answer.name, found, flag, path)
    _warn_of_versions(answers)
    return answers


def working_nodes() -> list[Node]:
    """The live machines that declare a CPU or a GPU, as `ray.nodes` describes them, by address."""
    found = [node for node in ray.nodes() if node["Alive"] and _works(node["Resources"])]
    return sorted(found, key=lambda node: str(node["NodeManagerAddress"]))


def _works(resources: Mapping[str, float]) -> bool:
    return bool(resources.get("CPU") or resources.get("GPU"))


def node_name(node: Node) -> str:
    """A machine as messages name it: host name and address."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def ask(nodes: Sequence[Node], question: Question) -> list[Answer]:
    """Asks machines for their facts, all at the same time.

    Args:
        nodes: as `ray.nodes` describes them.
        question: for all of them. Only those that declare GPUs are asked for GPUs.

    Returns:
        One answer for each node, in the order of `nodes`.
    """
    # Such a task is not work: with 0 CPUs it also starts on a machine whose CPUs are all taken.
    task = ray.remote(num_cpus=0, max_retries=0)(machine.facts)
    asked: dict[Any, int] = {}
    for number, node in enumerate(nodes):
        options: dict[str, Any] = {}
        own = replace(question, gpus=False)
        if question.gpus and node["Resources"].get("GPU"):
            options["runtime_env"] = {"env_vars": SEES_ALL_GPUS}
            own = question
        # `soft=False`: another machine must not answer for one that is gone.
        pinned = task.options(
            scheduling_strategy=NodeAffinity(node["NodeID"], soft=False), **options
        )
        asked[pinned.remote(own)] = number
    found = {}
    for reference, answer in _as_they_come(asked, nodes):
        found[asked[reference]] = answer
    return [found[number] for number in range(len(nodes))]


def _as_they_come(asked: Mapping[Any, int], nodes: Sequence[Node]) -> Iterator[tuple[Any, Answer]]:
    """Yields the answers at the moment when they arrive, which tells how far clocks are apart."""
    waiting = list(asked)
    end = time.monotonic() + ANSWERS_S
    while waiting:
        left = max(0.0, end - time.monotonic())
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        now = time.time()
        if not done:
            break
        [reference] = done
        yield reference, _answer(reference, nodes[asked[reference]], now)
    for reference in waiting:
        silence = f"nothing within {ANSWERS_S:.0f} s"
        yield reference, Answer(nodes[asked[reference]], None, silence)


def _answer(reference: Any, node: Node, now: float) -> Answer:
    try:
        found: Facts = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Its own text begins with where the task ran. The cause is what failed there.
        return Answer(node, None, f"{type(error.cause).__name__}: {first_line(error.cause)}")
    except ray.exceptions.RayError as error:
        return Answer(node, None, first_line(error))
    return Answer(node, found, clock_s=found.clock - now)


def first_line(error: BaseException) -> str:
    """The first line of an error's text: Ray's errors go on with stack traces and advice."""
    return str(error).partition("\n")[0]


@contextmanager
def marked(directories: Sequence[str]) -> Iterator[str]:
    """Puts a file of one name into each directory, and removes them at the end.

    Raises:
        StorageError: this machine cannot write a directory.
    """
    marker = f"{storage.PROBES}marker-{uuid.uuid4().hex[:8]}"
    written: list[str] = []
    try:
        for path in directories:
            file = storage.join(path, marker)
            storage.write_bytes(file, b"marker")
            written.append(file)
        yield marker
    finally:
        for file in written:
            storage.remove(file)


def facts_of(answer: Answer) -> Facts:
    """Returns the facts of a machine that has to answer.

    Raises:
        ResourceError: it does not.
    """
    if answer.facts is not None:
        return answer.facts
    raise ResourceError(
        f"the machine {answer.name} does not answer: {answer.silence}",
        "work that Ray starts there would not begin",
        "ray status shows the machines of the cluster; then the same command again",
    )


def software_of(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Returns by the name of each machine what runs there: `source`, `python` and `versions`."""
    found = {}
    for answer in answers:
        facts = facts_of(answer)
        found[answer.name] = {
            "source": facts.source,
            "python": facts.python,
            "versions": facts.versions,
        }
    return found


def _check_source(name: str, found: Facts) -> None:
    if found.source == machine.source_hash():
        return
    raise ResourceError(
        f"the machine {name} runs other source code of raytrain (version "
        f"{found.versions.get('raytrain', 'unknown')}, source {found.source}) than this one "
        f"(version {machine.versions().get('raytrain', 'unknown')}, "
        f"source {machine.source_hash()})",
        "its results would not be those of this version",
        "install the same version there, or ray job submit --working-dir ., which sends this one "
        "to every machine",
    )


def spread(paths: Sequence[str]) -> list[str]:
    """Returns the first and the last of many paths, and some at equal distances between them."""
    if len(paths) <= COMPARED_FILES:
        return list(paths)
    step = (len(paths) - 1) / (COMPARED_FILES - 1)
    return [paths[round(step * number)] for number in range(COMPARED_FILES)]


def _check_files(name: str, found: Facts, flag: str, here: Sequence[machine.File]) -> None:
    """Compares files of a flag with what this machine reads."""
    there = {file.path: file for file in found.files}
    for own in here:
        other = there[own.path]
        if (other.size, other.sha256, other.problem) == (own.size, own.sha256, own.problem):
            continue
        reader = f"the machine {name}"
        problem = other.problem or "another file of that name is there"
        if own.problem and not other.problem:
            reader = "this machine"
            problem = own.problem
        raise DataError(
            f"{reader} cannot read {masked(own.path)} ({flag}): {problem}",
            "every machine reads these files itself",
            f"a {flag} that every machine reaches under the same path: a shared disk, "
            "s3:// or gs://",
        )


def _check_directory(name: str, found: Facts, flag: str, path: str) -> None:
    for directory in found.directories:
        if directory.path == path and directory.problem:
            raise StorageError(
                f"the machine {name} cannot use {masked(path)}: {directory.problem}",
                "what is written there would be lost",
                f"a {flag} that every machine reaches: a shared disk, s3:// or gs://",
            )


def _warn_of_versions(answers: Sequence[Answer]) -> None:
    """Says which machine has another version of a package than this one."""
    own = machine.versions()
    for answer in answers:
        different = other_versions(facts_of(answer).versions, own)
        if different:
            logger.warning(
                f"the machine {answer.name} has other packages than this one: {different}; "
                "results may differ from those of a single machine"
            )


def other_versions(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Returns which packages have other versions, such as `torch 2.14 (here 2.15)`.

    Args:
        there: version of each package on another machine.
        here: on this machine.
    """
    different = []
    for package in sorted({*there, *here}):
        other = there.get(package, "none")
        own = here.get(package, "none")
        if other != own:
            different.append(f"{package} {other} (here {own})")
    return ", ".join(different)
