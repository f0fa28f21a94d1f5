"""Pretended devices: each fixture makes this machine look as if it had some."""

import dataclasses
import functools
import gc

import pytest
import ray
import ray.train.torch
import torch
from fake_graphs import Graphs
from streams import Device, Streams

from raytrain import machine
from raytrain.distributed import dry_run, predict, search_resources, train
from raytrain.distributed.process_group import OverNetworkOfRay
from raytrain.training import execution

# Of the local Ray.
GPUS = 2


@pytest.fixture
def graphs(monkeypatch):
    """Graphs can be captured on this machine."""
    made = Graphs()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    monkeypatch.setattr(execution, "has_graphs", lambda device: True)
    return made


@pytest.fixture
def streams(monkeypatch):
    found = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", found.make)
    monkeypatch.setattr(torch.cuda, "current_stream", found.current)
    monkeypatch.setattr(torch.cuda, "set_stream", found.set)
    monkeypatch.setattr(torch.cuda, "_get_device_index", lambda *arguments, **options: 0)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    return found


@pytest.fixture(scope="module")
def declared():
    """A local Ray that declares GPUs which do not exist: resources, local ranks and pools are real, the devices are CPUs.

    Torch sees none of them.
    """
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        for module in (dry_run, predict, train, search_resources):
            patch.setattr(module, "compute_device", lambda gpu: torch.device("cpu"))
        # NCCL needs devices.
        over_gloo = functools.partial(OverNetworkOfRay, backend="gloo")
        patch.setattr(train, "OverNetworkOfRay", over_gloo)
        ray.init(
            address="local", num_cpus=2, num_gpus=GPUS, log_to_driver=False, include_dashboard=False
        )
        yield
        ray.shutdown()


@pytest.fixture
def usable(declared, monkeypatch):
    """Torch sees all that Ray declares: the answer is replaced here, and travels with the question to the workers."""
    facts = machine.facts

    def pretended(question):
        seen = machine.Gpus(GPUS) if question.gpus else None
        return dataclasses.replace(facts(dataclasses.replace(question, gpus=False)), gpus=seen)

    monkeypatch.setattr(machine, "facts", pretended)
    monkeypatch.setattr(machine, "seen_gpus", lambda: machine.Gpus(GPUS))


@pytest.fixture
def no_collector():
    """Nothing that refers to itself is freed unless the program asks for it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
