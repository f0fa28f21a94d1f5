"""Makes the workers of a group connect over the network that Ray uses.

By itself, gloo connects over the address of the host name. On Debian and Ubuntu that address is
127.0.1.1, which leads only to the machine itself, and workers on several machines would not find
each other. The address that Ray has for a machine is one that the other machines reach.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from raytrain.distributed.network import GLOO, NCCL, is_loopback

# `_TorchBackend` is internal to Ray 2.60: `test_the_group_hooks_into_the_pinned_ray` guards it.


class _OwnInterface(_TorchBackend):
    """Ray's set-up of the process group, after each worker has chosen its network interface."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called by Ray once all workers of the group run."""
        worker_group.execute(use_interface_of_ray)
        super().on_start(worker_group, backend_config)


class OverNetworkOfRay(TorchConfig):
    """`TorchConfig` whose workers connect over the interface of their machine's Ray address."""

    @property
    def backend_cls(self) -> type:
        """What sets up the process group."""
        return _OwnInterface


def use_interface_of_ray() -> None:
    """Names the interface of this machine's Ray address to gloo and NCCL.

    A variable that is set already stays. Nothing is set for a Ray that is known by a loopback
    address, since all its workers are on one machine.
    """
    address = ray.util.get_node_ip_address()
    if is_loopback(address):
        return
    name = interface_of(address)
    if name is None:
        return
    os.environ.setdefault(GLOO, name)
    # NCCL takes a name for a prefix, unless it follows `=`.
    os.environ.setdefault(NCCL, f"={name}")


def interface_of(address: str) -> str | None:
    """Returns the name of the network interface that has an address.

    Args:
        address: IPv4 or IPv6.

    Returns:
        None if no interface of this machine has it, as behind some forms of port forwarding.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    name: str
    for name, addresses in psutil.net_if_addrs().items():
        for found in addresses:
            # An IPv6 address of a link ends with its interface, as in fe80::1%eth0.
            plain, _, _ = found.address.partition("%")
            if found.family in families and plain == address:
                return name
    return None
