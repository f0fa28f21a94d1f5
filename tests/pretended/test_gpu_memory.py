"""Too little memory on a pretended GPU: what is told, what is freed first, and the time of a step that is foretold."""

import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_step import ROWS, stepper

from raytrain.config import load_recipe
from raytrain.distributed import dry_run
from raytrain.errors import ResourceError
from raytrain.models.precision import keep_fp32
from raytrain.tiles import placement
from raytrain.tiles.cache import Store
from raytrain.training import out_of_memory


def test_what_the_failed_step_computed_is_gone_when_smaller_passes_are_tried(
    no_collector, monkeypatch
):
    one = stepper()
    held, alive, full = [], [], [True]

    def note(module, inputs, output):
        if full:
            held.append(weakref.ref(output))

    def too_much(module, inputs):
        if full:
            full.clear()
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    for module in one.network.body.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    # The last layer: all activations are there.
    one.network.head[-1].register_forward_pre_hook(too_much)
    real = out_of_memory.passes_that_fit

    def noted(*arguments):
        alive.append(sum(activation() is not None for activation in held))
        return real(*arguments)

    monkeypatch.setattr(out_of_memory, "passes_that_fit", noted)
    with pytest.raises(ResourceError) as caught:
        one(ROWS, 1, 0)
    assert len(held) > 10 and alive == [0]
    assert caught.value.fix == "--train.accumulate 2" and "CUDA out of memory." in caught.value.what
    assert "more" not in caught.value.what


def test_what_a_trial_that_failed_made_is_gone_when_the_next_is_tried(no_collector, monkeypatch):
    """Of 12 tiles 3 fit in a pass: the trial of 6 fails, and its moments of the optimiser are freed before the next makes its own."""
    one, trials = stepper(), []
    real = torch.empty_like

    def empty_like(tensor, **options):
        made = real(tensor, **options)
        if tensor is one.weights[0] and len(trials[-1]) < 2:
            # How many of those of the trials before are left.
            counts.append(sum(moment() is not None for trial in trials[:-1] for moment in trial))
            trials[-1].append(weakref.ref(made))
        return made

    def too_much(module, inputs):
        if len(inputs[0]) > 3:
            trials.append([])
            raise torch.OutOfMemoryError("CUDA out of memory.")

    counts = []
    one.network.head[-1].register_forward_pre_hook(too_much)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    with pytest.raises(ResourceError, match="12 tiles") as caught:
        one(ROWS, 1, 0)
    assert caught.value.fix == "--train.accumulate 4"
    assert [len(trial) for trial in trials] == [2, 2] and counts == [0, 0, 0, 0]


def test_tiles_that_do_not_fit_into_the_gpu_are_told_with_their_size_and_what_is_free(
    tmp_path, monkeypatch
):
    def too_large(pixels, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(placement, "DeviceFeed", too_large)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2_000_000_000, 24_000_000_000))
    pixels = np.broadcast_to(np.uint8(0), (10_000, 256, 256, 3))
    with pytest.raises(ResourceError) as caught:
        placement._uploaded(Store(tmp_path, pixels, 0, None), torch.device("cuda"))
    assert caught.value.what == (
        "decoded tiles of 2.0 GB do not fit into the GPU's memory: 2.0 GB of its 24.0 GB are free"
    )
    assert caught.value.exit_code == 5 and caught.value.fix.startswith("--tiles cache")
    assert caught.value.__context__ is None


@pytest.mark.parametrize(("device", "seconds"), [("cuda", 2.0), ("cpu", 60.0)])
def test_a_dry_run_on_a_gpu_times_a_step_after_the_one_that_loads_its_kernels(
    device, seconds, monkeypatch
):
    clock, steps = [0.0], iter([60.0, 2.0])

    class Step:
        def __init__(self, *arguments):
            pass

        def __call__(self, rows, epoch, number):
            clock[0] += next(steps)
            self.values = torch.zeros(2)
            return self

    monkeypatch.setattr(dry_run, "Stepper", Step)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    recipe = load_recipe(
        "smoke", {"stages": [{"size": 32, "epochs": 1, "freeze": False, "lr": 0.01}]}
    )
    model = stepper().network
    source = SimpleNamespace(targets=SimpleNamespace(device=torch.device(device)))
    assert dry_run._step_seconds(recipe, 1, model, source, None, ROWS) == seconds


def test_fp32_is_kept_from_being_rounded_to_tf32():
    torch.backends.cudnn.allow_tf32 = True
    keep_fp32()
    assert torch.backends.cudnn.allow_tf32 is False
