"""Tries and measures the network between the machines of a cluster, for `raytrain doctor`."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from raytrain.distributed.nodes import Node, node_name
from raytrain.machine import MB

# MB that two machines exchange to measure their link, as all-reduce does between two.
MEGABYTES = 64
# Seconds after which a link counts as too slow, or a port as blocked.
LINK_S = 60.0
PORT_S = 5.0
# Of more machines, only neighbours try to connect.
ALL_PAIRS_UP_TO = 8


class Listener:
    """Accepts connections on a machine."""

    def __init__(self) -> None:
        """Begins to listen on a free port of all interfaces."""
        self.server = socket.create_server(("", 0))

    def port(self) -> int:
        """The port."""
        found: int = self.server.getsockname()[1]
        return found


def pairs(nodes: Sequence[Node]) -> list[tuple[Node, Node]]:
    """Returns the pairs of machines that are tried: all of a few, the neighbours of many."""
    if len(nodes) <= ALL_PAIRS_UP_TO:
        return list(itertools.combinations(nodes, 2))
    return neighbours(nodes)


def neighbours(nodes: Sequence[Node]) -> list[tuple[Node, Node]]:
    """Returns each machine with the next one, as in a ring."""
    if len(nodes) == 2:
        return [(nodes[0], nodes[1])]
    return [(nodes[i - 1], nodes[i]) for i in range(len(nodes))]


def _on(node: Node) -> NodeAffinity:
    return NodeAffinity(node["NodeID"], soft=False)


def blocked(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """Tries to connect machines in both directions, over a port that the system chooses.

    Args:
        nodes: as `ray.nodes` describes them.

    Returns:
        (from, to) of each connection that failed.
    """
    listener = ray.remote(num_cpus=0)(Listener)
    listeners = {
        node["NodeID"]: listener.options(scheduling_strategy=_on(node)).remote() for node in nodes
    }
    ports = {}
    for identifier, actor in listeners.items():
        # A machine that has just died listens nowhere.
        with suppress(ray.exceptions.RayError):
            ports[identifier] = ray.get(actor.port.remote(), timeout=LINK_S)
    task = ray.remote(num_cpus=0, max_retries=0)(connects)
    found = []
    tried = []
    for first, second in pairs(nodes):
        for start, end in ((first, second), (second, first)):
            if end["NodeID"] not in ports:
                found.append((node_name(start), node_name(end)))
                continue
            pinned = task.options(scheduling_strategy=_on(start))
            answer = pinned.remote(end["NodeManagerAddress"], ports[end["NodeID"]])
            tried.append((start, end, answer))
    for start, end, answer in tried:
        reached = False
        with suppress(ray.exceptions.RayError):
            reached = ray.get(answer, timeout=LINK_S)
        if not reached:
            found.append((node_name(start), node_name(end)))
    for actor in listeners.values():
        ray.kill(actor)
    return found


def connects(address: str, port: int) -> bool:
    """Returns whether a TCP connection to another machine succeeds."""
    try:
        socket.create_connection((address, port), timeout=PORT_S).close()
    except OSError:
        return False
    return True


def measured(nodes: Sequence[Node]) -> dict[tuple[str, str], float | None]:
    """Measures an all-reduce of `MEGABYTES` between neighbours, one pair after the other.

    Args:
        nodes: as `ray.nodes` describes them.

    Returns:
        Seconds by the names of the two machines; None where it failed or took too long.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(reduce_between)
    found: dict[tuple[str, str], float | None] = {}
    for first, second in neighbours(nodes):
        started = []
        taken = None
        with suppress(ray.exceptions.RayError):
            port = ray.get(_free_port_on(first), timeout=LINK_S)
            for rank, node in enumerate((first, second)):
                pinned = task.options(scheduling_strategy=_on(node))
                started.append(pinned.remote(first["NodeManagerAddress"], port, rank))
            taken = max(ray.get(started, timeout=LINK_S + PORT_S))
        for reference in started:
            ray.cancel(reference, force=True)
        found[node_name(first), node_name(second)] = taken
    return found


def _free_port_on(node: Node) -> Any:
    task: Callable[..., Any] = (
        ray.remote(num_cpus=0)(free_port).options(scheduling_strategy=_on(node)).remote
    )
    return task()


def free_port() -> int:
    """Returns a port of this machine that nobody listens on."""
    with socket.create_server(("", 0)) as server:
        found: int = server.getsockname()[1]
        return found


def reduce_between(address: str, port: int, rank: int) -> float:
    """Exchanges and adds `MEGABYTES` with another machine. Returns the seconds it took.

    Args:
        address: of the machine of rank 0.
        port: of it that is free.
        rank: of this process, 0 or 1.
    """
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from raytrain.distributed.process_group import use_interface_of_ray

    use_interface_of_ray()
    limit = timedelta(seconds=LINK_S)
    meeting = f"tcp://{address}:{port}"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=2, timeout=limit)
    try:
        # Before the clock starts: the first exchange makes the connections.
        dist.barrier()
        values = torch.ones(MEGABYTES * MB // 4)
        began = time.perf_counter()
        dist.all_reduce(values)
        return time.perf_counter() - began
    finally:
        dist.destroy_process_group()
