"""The network interfaces over which the workers of a group meet, as gloo and NCCL choose them.

gloo carries gradients between CPUs, and decisions of all ranks on GPUs too; NCCL carries gradients between GPUs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch.distributed

from raytrain.errors import ConfigError

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
LOOPBACK = ("lo", "lo0")


@dataclass(frozen=True)
class Network:
    """What workers on a machine find there.

    `unknown` is a variable whose value names no interface, `alone` why no other machine reaches the workers there; each
    is empty where all is well. `interfaces` are those that have an address.
    """

    unknown: str
    alone: str
    interfaces: tuple[str, ...]


def network(gpu: bool, environment: Mapping[str, str] = os.environ) -> Network:
    """The network of this machine, for workers with this environment.

    Args:
        gpu: whether workers use GPUs, and so NCCL.
        environment: of the workers.
    """
    there = interfaces()
    gloo, nccl = environment.get(GLOO, ""), environment.get(NCCL, "")
    unknown = f'{GLOO}="{gloo}"' if unknown_to_gloo(gloo, there) else ""
    if not unknown and gpu and no_match_for_nccl(nccl, there):
        unknown = f'{NCCL}="{nccl}"'
    return Network(unknown, _alone(gloo), tuple(there))


def check_interfaces(gpu: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Checks the variables where all workers will stand on this machine.

    Raises:
        ConfigError: one names an interface that is not there.
    """
    found = network(gpu, environment)
    if found.unknown:
        raise unknown_interface(found, "this machine", "")


def unknown_interface(found: Network, where: str, when: str) -> ConfigError:
    """The error of a machine with a variable that names no interface; `when` it has to be corrected."""
    name = found.unknown.partition("=")[0]
    outer = [interface for interface in found.interfaces if interface not in LOOPBACK]
    known = ", ".join(found.interfaces) or "none with an address"
    return ConfigError(
        f"{found.unknown} names no network interface of {where}; there are {known}",
        "workers meet through it, one or several separated by commas"
        + (", without = or ^" if name == GLOO else ""),
        f"unset {name}{when}" + (f", or export {name}={outer[0]}" if outer else ""),
    )


def only_here(found: Network, where: str) -> ConfigError:
    """The error of a machine that the workers of others cannot reach."""
    outer = [interface for interface in found.interfaces if interface not in LOOPBACK]
    return ConfigError(
        f"workers on {where} would be known by {found.alone}, which no other machine reaches",
        "workers stand on several machines, and would wait for each other",
        f"there, before ray start: export {GLOO}={outer[0] if outer else 'INTERFACE'}; or correct its /etc/hosts",
    )


def interfaces() -> list[str]:
    """Names of the interfaces that have an address, as gloo finds them."""
    found = []
    for _, name in socket.if_nameindex():
        with suppress(RuntimeError):  # what gloo raises for an interface without an address
            torch.distributed.ProcessGroupGloo.create_device(interface=name)
            found.append(name)
    return found


def unknown_to_gloo(value: str, there: Sequence[str]) -> list[str]:
    """Names in a value of GLOO_SOCKET_IFNAME that are no interface. torch ignores values of one letter."""
    names = value.removesuffix(",").split(",") if len(value) > 1 else []
    return [name for name in names if name not in there]


def no_match_for_nccl(value: str, there: Sequence[str]) -> bool:
    """Whether a value of NCCL_SOCKET_IFNAME leaves no interface: prefixes, after `=` whole names, after `^` all others."""
    if not value:
        return False
    others, whole = value.startswith("^"), value.lstrip("^").startswith("=")
    # A port may follow a name.
    words = [word.partition(":")[0] for word in value.lstrip("^=").split(",") if word]
    matching = [
        name
        for name in there
        if any(name == word if whole else name.startswith(word) for word in words)
    ]
    return len(matching) == len(there) if others else not matching


def _alone(gloo: str) -> str:
    named = gloo.split(",") if len(gloo) > 1 else []
    inner = [name for name in named if name in LOOPBACK]
    if named:
        return f"the interface {inner[0]} ({GLOO})" if inner else ""
    name = socket.gethostname()
    address = address_of(name)
    if address is None:
        return f"a loopback address, since its host name {name} has no address"
    return f"{address}, the address of its host name {name}" if is_loopback(address) else ""


def address_of(name: str) -> str | None:
    """The address by which gloo makes a machine known: the first of its host name that belongs to it."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind((address[0], 0))
            return str(address[0])
    return None


def is_loopback(address: str) -> bool:
    """Whether an address, IPv4 or IPv6, is known on its own machine alone."""
    return address.startswith("127.") or address == "::1"
