"""Runs small tasks on chosen nodes of a Ray cluster, and checks that every node reaches a path.

Commands that only move tiles use this module too. It must not import torch, which costs each
process seconds and memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from raytrain import storage
from raytrain.errors import StorageError

# Seconds to wait for a node. Its first task starts a process, which has to import raytrain.
NODE_ANSWERS_S = 60.0

# A node as `ray.nodes` describes it.
Node = dict[str, Any]


def check_reach(path: str, flag: str = "--storage") -> None:
    """Tries a path from every working node of the connected cluster.

    Nothing is tried where this machine is the only working node.

    Args:
        path: directory or URI.
        flag: the command-line flag that sets the path, for the error message.

    Raises:
        StorageError: a node cannot use the path, as in `probe_from`.
    """
    nodes = working_nodes()
    this_node = ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] != this_node for node in nodes):
        probe_from(nodes, storage.absolute(path), flag)


def working_nodes() -> list[Node]:
    """The live nodes that declare a CPU, as `ray.nodes` describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def node_name(node: Node) -> str:
    """A node as messages name it: host name and address."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def start_on_each(
    nodes: Sequence[Node],
    function: Callable[..., Any],
    *arguments: Any,
    **options: Any,
) -> list[tuple[Node, Any]]:
    """Starts one task on each node without waiting for any of them.

    Args:
        nodes: as `ray.nodes` describes them.
        function: what each task runs. It has to be picklable.
        arguments: of the function, the same on every node.
        options: further options of the Ray task.

    Returns:
        Each node with the Ray object reference of its result, in the order of `nodes`.
    """
    # Such a task is not work: with 0 CPUs it also starts on a node whose CPUs are all taken.
    task = ray.remote(num_cpus=0)(function)
    started = []
    for node in nodes:
        # `soft=False`: another node must not answer for one that is gone.
        affinity = NodeAffinity(node["NodeID"], soft=False)
        pinned = task.options(scheduling_strategy=affinity, **options)
        started.append((node, pinned.remote(*arguments)))
    return started


def first_line(error: BaseException) -> str:
    """The first line of an error's text: Ray's errors go on with stack traces and advice."""
    return str(error).splitlines()[0]


def probe_from(nodes: Sequence[Node], path: str, flag: str = "--storage") -> None:
    """Has each node read a file written here, and write, read and remove a file of its own.

    Args:
        nodes: as `ray.nodes` describes them.
        path: absolute path or URI of a directory.
        flag: the command-line flag that sets the path, for the error message.

    Raises:
        StorageError: names the first node that cannot use the path. One reason is a node with a
            disk of its own under this path.
    """
    marker = storage.join(path, f".raytrain-marker-{uuid.uuid4().hex[:8]}")
    storage.write_bytes(marker, b"marker")
    try:
        for node, answer in start_on_each(nodes, _probe, path, marker):
            _check_answer(node, answer, path, flag)
    finally:
        storage.remove(marker)


def _probe(path: str, marker: str) -> str:
    """Runs on a node. Returns what is wrong with the path there, or an empty string."""
    try:
        storage.read_bytes(marker)
        storage.probe(path)
    except FileNotFoundError:
        return "what this machine wrote is not there"
    except StorageError as error:
        return error.what
    return ""


def _check_answer(node: Node, answer: Any, path: str, flag: str) -> None:
    """Waits for what `_probe` returns on a node and raises if it names a problem."""
    try:
        problem = ray.get(answer, timeout=NODE_ANSWERS_S)
    except ray.exceptions.RayError as error:
        problem = f"no answer ({first_line(error)})"
    if problem:
        raise StorageError(
            f"the node {node_name(node)} cannot use {path}: {problem}",
            "what is written there would be lost",
            f"a {flag} that every node reaches: a shared disk, s3:// or gs://",
        )
