"""Which GPUs count, and who gets them: decided by what torch sees; no Ray runs here."""

from types import SimpleNamespace

import pytest
import ray
import torch
from handmade import NETWORK

from raytrain import machine
from raytrain.bench.generate import write_tiles
from raytrain.config import load_recipe
from raytrain.distributed import dry_run, gpus
from raytrain.distributed.predict import processes
from raytrain.distributed.train import _set_up_worker
from raytrain.errors import ConfigError, ResourceError
from raytrain.worker import compute_device


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpus")
    values = {
        "dataset": write_tiles(str(path / "dataset"), 64, 32).path,
        "storage": str(path / "runs"),
        "num_workers": 2,
        "stages": [{"size": 32, "epochs": 1, "freeze": False, "lr": 0.01}],
        "train": {"batch_size": 8},
        "model": {"arch": NETWORK, "weights": "none"},
    }
    return load_recipe("smoke", values)


def machines(*numbers):
    """Machines with (CPUs, declared, seen) each."""
    return [
        gpus.Machine(f"m{i}", cpus, n, machine.Gpus(seen))
        for i, (cpus, n, seen) in enumerate(numbers)
    ]


@pytest.mark.parametrize(
    ("found", "wanted", "count"),
    [
        ([], None, 0),
        ([], True, 0),
        ([(8, 2, 2), (8, 1, 1)], None, 3),
        ([(8, 2, 3)], True, 2),
        ([(8, 2, 0), (8, 2, 0)], None, 0),
        ([(8, 2, 0)], True, "m0 declares 2 GPUs, torch sees none there"),
        ([(8, 2, 2), (8, 2, 1)], None, "m1 declares 2 GPUs, torch sees 1 there"),
        ([(8, 2, 2), (8, 1, 0)], True, "m1 declares 1 GPU, torch sees none there"),
        ([(8, 2, 2), (8, 1, 0)], False, 0),
    ],
)
def test_a_gpu_counts_where_torch_sees_one(found, wanted, count, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(gpus, "declaring", lambda answers: machines(*found))
    if isinstance(count, int):
        assert gpus.count(gpus.usable(wanted)) == count
        return
    with pytest.raises(ResourceError) as caught:
        gpus.usable(wanted)
    assert caught.value.what == count and caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("found", "share"),
    [([(16, 1, 1)], 16), ([(16, 1, 1), (9, 2, 2)], 4), ([(1, 2, 2)], 0.5), ([(0, 1, 1)], 0)],
)
def test_a_process_on_a_gpu_asks_for_no_more_cpus_than_every_machine_has_for_it(found, share):
    assert gpus.cpus_of_each(machines(*found)) == share


def test_no_more_processes_predict_than_there_are_blocks_or_gpus():
    four = machines((8, 4, 4))
    assert [processes(four, blocks) for blocks in (1, 3, 9)] == [1, 3, 4]


def test_a_dry_run_without_a_cluster_asks_this_machine(recipe, monkeypatch, logged):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(machine, "seen_gpus", lambda: machine.Gpus(0, "no driver"))
    with pytest.raises(
        ResourceError, match="2 workers with a GPU each are asked for, this machine has 0 GPUs"
    ):
        dry_run.dry_run(recipe.model_copy(update={"use_gpu": True}))
    with pytest.raises(ConfigError, match="needs GPUs"):
        model = recipe.model.model_copy(update={"batch_norm": "sync"})
        dry_run.dry_run(recipe.model_copy(update={"model": model, "use_gpu": False}))
    monkeypatch.setattr(machine, "seen_gpus", lambda: machine.Gpus(2))
    assert dry_run._device(recipe) == torch.device("cuda")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    dry_run._device(recipe)
    assert any("counted when the command starts" in line for line in logged)


@pytest.mark.parametrize("granted", [False, True])
def test_a_worker_follows_the_decision_of_the_run_and_not_what_torch_sees(
    granted, recipe, monkeypatch
):
    context = SimpleNamespace(
        get_world_rank=lambda: 1,
        get_world_size=lambda: 2,
        get_local_rank=lambda: 1,
        get_local_world_size=lambda: 2,
    )
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not granted)
    config = {
        "recipe": recipe.model_dump(mode="json"),
        "run": "r",
        "mailbox": None,
    }
    config |= {"device": compute_device(granted).type}
    worker = _set_up_worker(config)[3]
    assert worker.device == (torch.device("cuda", 1) if granted else torch.device("cpu"))
    assert compute_device(granted).type == worker.device.type


def test_the_answer_says_why_torch_sees_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert machine.seen_gpus() == machine.Gpus(0, "this torch is a build without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert machine.seen_gpus() == machine.Gpus(0, "no device, or no driver that this torch can use")

    def old_driver():
        import warnings

        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old. Please update",
            stacklevel=1,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    assert machine.seen_gpus() == machine.Gpus(
        0, "CUDA initialization: The NVIDIA driver on your system is too old"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert machine.seen_gpus() == machine.Gpus(3)
