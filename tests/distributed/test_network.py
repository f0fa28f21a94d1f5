"""Network interfaces of workers: what gloo and NCCL make of their variables, and who reaches whom."""

import os
import socket
from datetime import timedelta
from types import SimpleNamespace

import psutil
import pytest
import torch.distributed
from ray.train.torch import TorchConfig

from raytrain.cli.main import run_command
from raytrain.distributed import network as module
from raytrain.distributed import process_group
from raytrain.distributed.network import (
    check_interfaces,
    network,
    no_match_for_nccl,
    unknown_to_gloo,
)
from raytrain.distributed.nodes import Answer
from raytrain.distributed.preflight import check_networks
from raytrain.distributed.process_group import (
    OverNetworkOfRay,
    interface_of,
    use_interface_of_ray,
)
from raytrain.errors import ConfigError

THERE = module.interfaces()
FIRST = THERE[0]


def test_interfaces_are_those_of_this_machine():
    assert THERE and set(THERE) <= {name for _, name in socket.if_nameindex()}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        FIRST,
        f"{FIRST},{THERE[-1]}",
        f"{FIRST},",
        "eth99",
        f"{FIRST},eth99",
        f"={FIRST}",
        f"^{FIRST}",
        f" {FIRST}",
        f"{FIRST}, {FIRST}",
        f"{FIRST},,{FIRST}",
        FIRST[:-1] + "#",
        FIRST.upper(),
    ],
)
def test_a_value_is_refused_exactly_where_gloo_fails(value, monkeypatch):
    monkeypatch.setenv(module.GLOO, value)
    try:
        torch.distributed.ProcessGroupGloo(
            torch.distributed.HashStore(), 0, 1, timedelta(seconds=5)
        )
        fails = False
    except RuntimeError:
        fails = True
    assert bool(unknown_to_gloo(value, THERE)) == fails
    if fails:
        with pytest.raises(ConfigError) as caught:
            check_interfaces(gpu=False)
        assert f'{module.GLOO}="{value}"' in caught.value.what and FIRST in caught.value.what
    else:
        check_interfaces(gpu=False)


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("", False),
        ("eth", False),
        ("eth0", False),
        ("=eth0", False),
        ("=eth", True),
        ("^lo", False),
        ("^eth,lo", True),
        ("ib", True),
        ("ib,eth", False),
        ("^=eth0,lo", True),
        ("^=eth", False),
        ("eth0:5000", False),
        ("eth99", True),
    ],
)
def test_nccl_takes_prefixes_whole_names_and_all_others(value, refused):
    assert no_match_for_nccl(value, ["lo", "eth0"]) == refused


def test_nccl_counts_only_where_gpus_are_used():
    environment = {module.NCCL: "eth99"}
    check_interfaces(gpu=False, environment=environment)
    with pytest.raises(ConfigError, match='NCCL_SOCKET_IFNAME="eth99"'):
        check_interfaces(gpu=True, environment=environment)


@pytest.mark.parametrize("command", ["train", "lr-find", "train --dry-run"])
def test_a_command_says_it_before_anything_starts(command, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(module.GLOO, "eth99")
    where = ["--dataset", dataset.path, "--storage", str(tmp_path / "runs")]
    assert run_command([*command.split(), "--config", "smoke", *where]) == 2
    said = capsys.readouterr().err
    assert (
        'GLOO_SOCKET_IFNAME="eth99" names no network interface of this machine; there are' in said
    )
    assert "unset GLOO_SOCKET_IFNAME" in said and "fault of raytrain" not in said
    assert not (tmp_path / "runs").exists()


def test_a_bench_of_workers_says_it_too(dataset, monkeypatch, capsys):
    monkeypatch.setenv(module.GLOO, "eth99")
    assert run_command(["bench", "--only", "workers", "--dataset", dataset.path]) == 2
    assert 'GLOO_SOCKET_IFNAME="eth99" names no network interface' in capsys.readouterr().err


# Several machines


def test_only_a_variable_that_names_the_loopback_interface_leaves_a_machine_alone():
    there = ["lo", "eth0"]
    assert network(False, there, {}).alone == ""
    assert network(False, there, {module.GLOO: "eth0"}).alone == ""
    alone = network(False, there, {module.GLOO: "lo"}).alone
    assert alone == "the interface lo (GLOO_SOCKET_IFNAME)"


def test_the_interface_of_an_address_is_found():
    for name, addresses in psutil.net_if_addrs().items():
        for found in addresses:
            if found.family == socket.AF_INET:
                assert interface_of(found.address) == name
    assert interface_of("192.0.2.77") is None  # of no machine: RFC 5737


def test_the_group_hooks_into_the_pinned_ray():
    backend = OverNetworkOfRay().backend_cls
    assert issubclass(backend, TorchConfig().backend_cls)
    group = Group()
    with pytest.raises(Reached):
        backend().on_start(group, OverNetworkOfRay())
    assert group.first is use_interface_of_ray


class Reached(Exception):
    """Ray's own set-up would begin."""


class Group:
    """A worker group that notes what its workers run first."""

    first = None

    def execute(self, function):
        self.first = function

    def __getattr__(self, name):
        raise Reached


@pytest.fixture
def unset(monkeypatch):
    """Neither variable is set, now and after the test."""
    for name in (module.GLOO, module.NCCL):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_workers_connect_over_the_interface_of_ray(unset, monkeypatch):
    monkeypatch.setattr(process_group, "interface_of", lambda address: "eth7")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "192.0.2.2")
    process_group.use_interface_of_ray()
    assert (os.environ[module.GLOO], os.environ[module.NCCL]) == ("eth7", "=eth7")


def test_a_variable_of_the_user_stays(unset, monkeypatch):
    monkeypatch.setenv(module.GLOO, "ib0")
    monkeypatch.setattr(process_group, "interface_of", lambda address: "eth7")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "192.0.2.2")
    process_group.use_interface_of_ray()
    assert (os.environ[module.GLOO], os.environ[module.NCCL]) == ("ib0", "=eth7")


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.77"])
def test_a_loopback_address_and_one_of_no_interface_set_nothing(address, unset, monkeypatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: address)
    process_group.use_interface_of_ray()
    assert not {module.GLOO, module.NCCL} & set(os.environ)


def answers(count, **variables):
    """Machines with two interfaces and variables of their own."""
    node = {"NodeManagerHostname": "worker", "NodeManagerAddress": "192.0.2.2", "Resources": {}}
    facts = SimpleNamespace(interfaces=("lo", "eth0"), interface_variables=variables)
    return [Answer(node, facts)] * count


def test_one_machine_on_the_loopback_interface_trains_and_several_are_refused():
    check_networks(answers(1, GLOO_SOCKET_IFNAME="lo"), 2, gpu=False)
    check_networks(answers(2, GLOO_SOCKET_IFNAME="lo"), 1, gpu=False)  # who has nobody to meet
    with pytest.raises(
        ConfigError,
        match=r"workers on the machine worker \(.*\) would be known by the interface lo",
    ) as caught:
        check_networks(answers(2, GLOO_SOCKET_IFNAME="lo"), 2, gpu=False)
    assert "export GLOO_SOCKET_IFNAME=eth0" in caught.value.fix


def test_a_variable_that_names_no_interface_of_a_machine_is_refused():
    with pytest.raises(
        ConfigError, match=r'GLOO_SOCKET_IFNAME="eth99" names no network interface of the machine'
    ):
        check_networks(answers(1, GLOO_SOCKET_IFNAME="eth99"), 1, gpu=False)
    # Variables of NCCL count only where there are GPUs.
    check_networks(answers(1, NCCL_SOCKET_IFNAME="eth99"), 1, gpu=False)
    with pytest.raises(ConfigError, match=r'NCCL_SOCKET_IFNAME="eth99" names no network'):
        check_networks(answers(1, NCCL_SOCKET_IFNAME="eth99"), 1, gpu=True)
