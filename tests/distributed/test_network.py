"""Network interfaces of workers: what gloo and NCCL make of their variables, and who reaches whom."""

import socket
from datetime import timedelta

import pytest
import torch.distributed

from raytrain.cli.main import run_command
from raytrain.distributed import network as module
from raytrain.distributed.network import (
    check_interfaces,
    network,
    no_match_for_nccl,
    unknown_to_gloo,
)
from raytrain.errors import ConfigError, ResourceError

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


def named(monkeypatch, *addresses):
    """A host name with these addresses."""
    found = [
        (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 0, "", (a, 0))
        for a in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **how: found)


@pytest.mark.parametrize("address", ["127.0.1.1", "127.0.0.1", "::1"])
def test_a_host_name_on_a_loopback_address_is_alone(address, monkeypatch):
    named(monkeypatch, address)
    found = network(gpu=False, environment={})
    assert address in found.alone and not found.unknown
    assert network(gpu=False, environment={module.GLOO: FIRST}).alone == (
        f"the interface {FIRST} (GLOO_SOCKET_IFNAME)" if FIRST in module.LOOPBACK else ""
    )


def test_a_host_name_without_an_address_is_alone(monkeypatch):
    def none(*args, **how):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", none)
    assert "has no address" in network(gpu=False, environment={}).alone
    named(
        monkeypatch, "192.0.2.77"
    )  # of another machine: gloo takes no address that it cannot bind
    assert "has no address" in network(gpu=False, environment={}).alone


def test_a_host_name_with_an_address_of_its_own_is_reached(monkeypatch):
    monkeypatch.setattr(module, "address_of", lambda name: "192.0.2.2")
    assert network(gpu=False, environment={}).alone == ""
    assert network(gpu=False, environment={module.GLOO: "lo"}).alone


@pytest.mark.usefixtures("cluster")
def test_one_machine_with_such_a_name_trains_and_several_are_refused(monkeypatch):
    import ray

    from raytrain.distributed import preflight

    alone = module.Network("", "127.0.1.1, the address of its host name node1", ("lo", "eth0"))
    monkeypatch.setattr(preflight, "network", lambda gpu: alone)
    preflight.check_networks(2, gpu=False)
    here = ray.nodes()
    monkeypatch.setattr(preflight, "working_nodes", lambda: here * 2)
    preflight.check_networks(1, gpu=False)  # who has nobody to meet
    with pytest.raises(
        ConfigError, match=r"workers on the node \S+ \(.*\) would be known by 127\.0\.1\.1"
    ) as caught:
        preflight.check_networks(2, gpu=False)
    assert "export GLOO_SOCKET_IFNAME=eth0" in caught.value.fix
    monkeypatch.setattr(
        preflight, "network", lambda gpu: module.Network('GLOO_SOCKET_IFNAME="eth99"', "", ("lo",))
    )
    with pytest.raises(
        ConfigError, match=r'GLOO_SOCKET_IFNAME="eth99" names no network interface of the node'
    ):
        preflight.check_networks(1, gpu=False)
    monkeypatch.setattr(preflight, "working_nodes", lambda: [here[0] | {"NodeID": "0" * 56}])
    with pytest.raises(ResourceError, match=r"the node \S+ \(.*\) does not answer"):
        preflight.check_networks(1, gpu=False)
