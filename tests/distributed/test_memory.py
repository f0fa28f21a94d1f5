"""What a run needs of memory, and what is refused before anything starts."""

import pytest
import torch

from raytrain import memory
from raytrain.cli import quickstart as quickstarting
from raytrain.cli.main import run_command
from raytrain.config import load_recipe
from raytrain.distributed.memory import (
    RAY_BYTES,
    WORKER_BYTES,
    available,
    check_memory,
    needed,
    workers_that_fit,
)
from raytrain.errors import ResourceError
from raytrain.models import layer_groups, networks
from raytrain.training.footprint import footprint

CLASSES = 17
CPU = torch.device("cpu")


def recipe(own=None, **train):
    """The quickstart's, in fp32, with its own network."""
    overrides = {"num_workers": 2, "train": {"precision": "fp32", **train}, **(own or {})}
    return load_recipe("quickstart", overrides)


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory there is."""
    monkeypatch.setattr(memory, "resident", lambda: 0)

    def set_free(size):
        bound = memory.Memory(size, "left of the limit of 4.0 GB (memory.max)", size)
        monkeypatch.setattr(memory, "left", lambda: bound)

    return set_free


def test_the_state_is_weights_gradients_moments_and_the_copies_of_a_save(own_network):
    small = recipe()
    model = networks.build("resnet18", CLASSES, 0.25)
    weights = 4 * sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    # Weights four times: trained, gradient, a save's copy, the best; moments twice; buffers in three of them.
    assert footprint(small, CLASSES, CPU).state == 4 * weights + 2 * 2 * weights + 3 * buffers


def test_averages_and_frozen_groups_count_as_what_they_keep(own_network):
    plain = footprint(recipe(), CLASSES, CPU).state
    assert footprint(recipe(ema=0.9), CLASSES, CPU).state > 1.3 * plain
    stages = tuple(stage.model_copy(update={"freeze": True}) for stage in recipe().stages)
    frozen = recipe().model_copy(update={"stages": stages})
    assert footprint(frozen, CLASSES, CPU).state < 0.6 * plain


def test_the_step_grows_with_the_batch_and_shrinks_with_workers_and_passes(own_network):
    one = recipe().model_copy(update={"num_workers": 1})
    step = footprint(one, CLASSES, CPU).step
    for halved in (
        recipe(),
        one.model_copy(update={"train": one.train.model_copy(update={"accumulate": 2})}),
    ):
        assert footprint(halved, CLASSES, CPU).step == pytest.approx(step / 2, rel=0.02)


def test_what_a_step_keeps_is_what_a_real_forward_pass_keeps(own_network):
    small = recipe(batch_size=4).model_copy(
        update={"num_workers": 1, "stages": recipe().stages[:1]}
    )
    model = networks.build("resnet18", CLASSES, 0.25).train()
    layer_groups.set_frozen(model, 0)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    pixels = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(pixels)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert output.shape == (4, CLASSES)
    assert saved < footprint(small, CLASSES, CPU).step < 1.6 * saved


def test_a_run_that_fits_is_let_through_and_one_that_does_not_is_told_what_fits(own_network, free):
    need = needed(recipe(), CLASSES)
    assert need.total == RAY_BYTES + 2 * need.worker > RAY_BYTES + 2 * WORKER_BYTES
    free(need.total)
    check_memory(recipe(), CLASSES)
    free(need.total - 1)
    with pytest.raises(
        ResourceError, match=r"this run needs .* 2 workers of .* left of the limit of 4.0 GB"
    ) as caught:
        check_memory(recipe(), CLASSES)
    assert caught.value.fix == "--num-workers 1" and caught.value.exit_code == 5


def test_where_one_worker_is_too_large_smaller_passes_are_tried(own_network, free):
    one = recipe().model_copy(update={"num_workers": 1})
    quarter = one.model_copy(update={"train": one.train.model_copy(update={"accumulate": 4})})
    free(needed(quarter, CLASSES).total)
    with pytest.raises(ResourceError) as caught:
        check_memory(one, CLASSES)
    assert caught.value.fix == "--num-workers 1 --train.accumulate 4"


@pytest.mark.parametrize(("whole", "free"), [(100, 13), (12, 12)])
def test_what_this_process_holds_is_part_of_what_a_run_needs_but_never_more_than_the_whole(
    monkeypatch, whole, free
):
    monkeypatch.setattr(memory, "resident", lambda: 3)
    monkeypatch.setattr(memory, "left", lambda: memory.Memory(10, "free on this machine", whole))
    assert available().free == free


def test_memory_that_an_ending_session_still_holds_is_waited_for(own_network, monkeypatch):
    need = needed(recipe(), CLASSES).total
    found = iter([need - 2, need - 1, need])
    monkeypatch.setattr(memory, "resident", lambda: 0)
    monkeypatch.setattr(
        memory, "left", lambda: memory.Memory(next(found), "free on this machine", 10**12)
    )
    check_memory(recipe(), CLASSES)
    assert list(found) == []


def test_where_nothing_fits_the_memory_that_would_is_named(own_network, free):
    free(RAY_BYTES)
    with pytest.raises(ResourceError, match="a machine or a container with"):
        check_memory(recipe(), CLASSES)
    assert workers_that_fit(recipe(), CLASSES) == 0


def test_a_cluster_and_a_system_that_tells_nothing_are_not_judged(own_network, free, monkeypatch):
    free(1)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_memory(recipe(), CLASSES)
    assert workers_that_fit(recipe(), CLASSES) == 2
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(memory, "left", lambda: None)
    check_memory(recipe(), CLASSES)


@pytest.mark.parametrize("command", ["quickstart", "train", "lr-find", "train --dry-run"])
def test_every_command_that_trains_refuses_before_anything_is_written(
    command, dataset, tmp_path, free, capsys
):
    free(RAY_BYTES)
    if command == "quickstart":
        arguments = ["quickstart", "--out", str(tmp_path / "out")]
    else:
        name, *flags = command.split()
        arguments = [
            name,
            "--config",
            "smoke",
            "--dataset",
            dataset.path,
            "--storage",
            str(tmp_path),
            *flags,
        ]
    assert run_command(arguments) == 5
    assert "this run needs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class Reached(Exception):
    """Training would begin."""


@pytest.mark.slow
def test_quickstart_takes_the_workers_that_fit_and_says_so(
    own_network, no_cluster, free, monkeypatch, tmp_path, logged
):
    asked = []

    def train(settings, **other):
        asked.append(settings.num_workers)
        raise Reached

    monkeypatch.setattr("raytrain.distributed.train.train", train)
    monkeypatch.setattr(quickstarting, "TILES", 20)
    for size, given in ((10**11, None), (needed(recipe(), CLASSES).total - 1, None), (10**11, 1)):
        free(size)
        with pytest.raises(Reached):
            quickstarting.run_quickstart(str(tmp_path / "out"), given)
    assert asked == [2, 1, 1]
    assert sum("1 worker instead of 2" in line for line in logged) == 1
