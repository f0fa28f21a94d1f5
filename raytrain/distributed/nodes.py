"""Whether every node of a cluster reaches a place, and which nodes those are.

A command that only moves tiles asks this too: nothing here imports torch, which takes seconds and memory in each process.
"""

from __future__ import annotations

import uuid
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from raytrain import storage
from raytrain.errors import StorageError

NODE_ANSWERS_S = 60.0


def check_reach(path: str, flag: str = "--storage") -> None:
    """Tries a place from every node of the connected cluster where work will be done, if that is not this machine alone.

    Args:
        path: directory or URI.
        flag: that names it on the command line.

    Raises:
        StorageError: as `probe_from`.
    """
    nodes = working_nodes()
    here = ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] != here for node in nodes):
        probe_from(nodes, storage.absolute(path), flag)


def working_nodes() -> list[dict[str, Any]]:
    """Nodes that declare a CPU, as `ray.nodes` describes them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def probe_from(nodes: list[dict[str, Any]], path: str, flag: str = "--storage") -> None:
    """Writes, reads and removes a file from each of some nodes, and has them read one that was written here.

    Args:
        nodes: as `ray.nodes` describes them.
        path: storage path.
        flag: that names it on the command line.

    Raises:
        StorageError: naming the node that cannot, such as one with a disk of its own under this path.
    """
    marker = storage.join(path, f".raytrain-marker-{uuid.uuid4().hex[:8]}")
    storage.write_bytes(marker, b"marker")
    probe = ray.remote(num_cpus=0)(_probe)
    asked = [
        probe.options(scheduling_strategy=NodeAffinity(node["NodeID"], soft=False))
        for node in nodes
    ]
    try:
        for node, answer in [
            (node, one.remote(path, marker)) for node, one in zip(nodes, asked, strict=True)
        ]:
            _hear(node, answer, path, flag)
    finally:
        storage.remove(marker)


def _probe(path: str, marker: str) -> str:
    """What is wrong with a storage path, as a node sees it; nothing if all is well."""
    try:
        storage.read_bytes(marker)
        storage.probe(path)
    except FileNotFoundError:
        return "what this machine wrote is not there"
    except StorageError as error:
        return error.what
    return ""


def _hear(node: dict[str, Any], answer: Any, path: str, flag: str) -> None:
    try:
        wrong = ray.get(answer, timeout=NODE_ANSWERS_S)
    except ray.exceptions.RayError as error:
        wrong = f"no answer ({str(error).splitlines()[0]})"
    if wrong:
        raise StorageError(
            f"the node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}) cannot use {path}: {wrong}",
            "what is written there would be lost",
            f"a {flag} that every node reaches: a shared disk, s3:// or gs://",
        )
