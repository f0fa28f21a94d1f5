"""The network interfaces over which the workers of a group connect, as gloo and NCCL choose them.

gloo exchanges gradients between CPUs, and with GPUs the decisions that all ranks make together.
NCCL exchanges gradients between GPUs. A wrong interface would let workers fail or wait for each
other, so it is checked before they start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raytrain.errors import ConfigError
from raytrain.machine import INTERFACE_VARIABLES, interfaces

GLOO, NCCL = INTERFACE_VARIABLES
# Names of the loopback interface on Linux and macOS.
LOOPBACK = ("lo", "lo0")


@dataclass(frozen=True)
class Network:
    """The network of a machine, as the workers there find it.

    Attributes:
        unknown: `NAME="value"` of a variable that names no interface; empty if there is none.
        alone: why other machines cannot reach the workers; empty if they can.
        interfaces: names of the interfaces that have an address.
    """

    unknown: str
    alone: str
    interfaces: tuple[str, ...]

    @property
    def suggestion(self) -> str:
        """Name of the first interface that leads to other machines; empty if there is none."""
        for interface in self.interfaces:
            if interface not in LOOPBACK:
                return interface
        return ""


def network(gpu: bool, present: Sequence[str], environment: Mapping[str, str]) -> Network:
    """Returns the network of a machine.

    Args:
        gpu: whether the workers use GPUs, and so NCCL.
        present: names of the interfaces of the machine.
        environment: of the workers there.
    """
    gloo = environment.get(GLOO, "")
    nccl = environment.get(NCCL, "")
    unknown = ""
    # Only one variable is reported. gloo comes first, since all workers use it.
    if unknown_to_gloo(gloo, present):
        unknown = f'{GLOO}="{gloo}"'
    elif gpu and no_match_for_nccl(nccl, present):
        unknown = f'{NCCL}="{nccl}"'
    return Network(unknown, _alone(gloo), tuple(present))


def check_interfaces(gpu: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Checks the variables of this process, for workers that will all run on this machine.

    Args:
        gpu: whether the workers use GPUs, and so NCCL.
        environment: of the workers.

    Raises:
        ConfigError: a variable names an interface that does not exist.
    """
    found = network(gpu, interfaces(), environment)
    if found.unknown:
        raise unknown_interface(found, "this machine", "")


def unknown_interface(found: Network, where: str, when: str) -> ConfigError:
    """Returns the error of a machine with a variable that names no interface.

    Args:
        found: the network of the machine.
        where: name of the machine, for the message.
        when: where and when to correct the variable, with a leading space; may be empty.
    """
    name, _, _ = found.unknown.partition("=")
    known = ", ".join(found.interfaces) or "none with an address"
    why = "workers connect through it, one or several separated by commas"
    if name == GLOO:
        # NCCL has these prefixes, so users may expect them.
        why += ", without = or ^"
    fix = f"unset {name}{when}"
    if found.suggestion:
        fix += f", or export {name}={found.suggestion}"
    what = f"{found.unknown} names no network interface of {where}; there are {known}"
    return ConfigError(what, why, fix)


def only_here(found: Network, where: str) -> ConfigError:
    """Returns the error of a machine whose workers cannot be reached from other machines.

    Args:
        found: the network of the machine.
        where: name of the machine, for the message.
    """
    interface = found.suggestion or "INTERFACE"
    return ConfigError(
        f"workers on {where} would be known by {found.alone}, which no other machine reaches",
        "the workers run on several machines, and would wait for each other",
        f"there, before ray start: unset {GLOO}, or export {GLOO}={interface}",
    )


def unknown_to_gloo(value: str, there: Sequence[str]) -> list[str]:
    """Returns the names in a value of GLOO_SOCKET_IFNAME that are no interface.

    Args:
        value: names separated by commas.
        there: names of the interfaces of the machine.
    """
    names = _gloo_names(value)
    # A comma at the end is allowed.
    if names and not names[-1]:
        names.pop()
    return [name for name in names if name not in there]


def _gloo_names(value: str) -> list[str]:
    # torch ignores values of one character (torch/csrc/distributed/c10d/init.cpp).
    if len(value) <= 1:
        return []
    return value.split(",")


def no_match_for_nccl(value: str, there: Sequence[str]) -> bool:
    """Returns whether a value of NCCL_SOCKET_IFNAME leaves no interface.

    The value has words separated by commas, which are prefixes of names. After a leading `=` they
    are whole names, and after a leading `^` the interfaces that do not match are used
    (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-socket-ifname).

    Args:
        value: of the variable.
        there: names of the interfaces of the machine.
    """
    if not value:
        return False
    is_inverted = value.startswith("^")
    is_exact = value.lstrip("^").startswith("=")
    words = []
    for word in value.lstrip("^=").split(","):
        if word:
            # A port may follow the name.
            name, _, _ = word.partition(":")
            words.append(name)
    matching = [name for name in there if _matches(name, words, is_exact)]
    if is_inverted:
        return len(matching) == len(there)
    return not matching


def _matches(name: str, words: list[str], is_exact: bool) -> bool:
    if is_exact:
        return name in words
    return name.startswith(tuple(words))


def _alone(gloo: str) -> str:
    """Returns why other machines cannot reach workers here; empty if they can.

    Args:
        gloo: value of GLOO_SOCKET_IFNAME. Without it, `process_group` names the interface of Ray.
    """
    for name in _gloo_names(gloo):
        if name in LOOPBACK:
            return f"the interface {name} ({GLOO})"
    return ""


def is_loopback(address: str) -> bool:
    """Returns whether an IPv4 or IPv6 address leads only to its own machine."""
    return address.startswith("127.") or address == "::1"
