"""Stages that run as CUDA graphs, on pretended ones: right gradients, replays in every stage, nothing kept for too long."""

import functools
import weakref
from dataclasses import replace

import pytest
import torch
from handmade import NETWORK
from test_step import ROWS, gradients, largest, stepper

from raytrain.bench.generate import write_tiles
from raytrain.config import load_recipe
from raytrain.models import networks
from raytrain.training import execution, loop, lr_find, stage
from raytrain.training.epoch import GroupDiverged
from raytrain.training.loop import fit
from raytrain.training.services import Hooks
from raytrain.training.setup import opened
from raytrain.training.step import Stepper
from raytrain.worker import Worker

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STAGES = [
    {"size": 32, "epochs": 2, "freeze": True, "lr": 0.01},
    {"size": 32, "epochs": 2, "freeze": False, "lr": [1e-4, 0.002]},
]


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.usefixtures("graphs")
def test_graphed_passes_give_the_gradient_of_the_whole_batch(passes):
    whole, one = gradients(stepper()), stepper(accumulate=passes)
    execution.set_execution(one.network, "graphs", (12 // passes, 3, 32, 32), "fp64", CPU)
    parts = gradients(one)
    assert largest([a - b for a, b in zip(whole, parts, strict=True)]) < 1e-12 * largest(whole)


def test_a_batch_of_unequal_passes_is_right_too(graphs):
    whole, one = gradients(stepper()), stepper(accumulate=5)
    execution.set_execution(one.network, "graphs", (3, 3, 32, 32), "fp64", CPU)
    parts = gradients(one)
    assert graphs.replays == [2], "the passes of 2 tiles run eagerly"
    assert largest([a - b for a, b in zip(whole, parts, strict=True)]) < 1e-12 * largest(whole)


def test_an_eager_pass_leaves_its_gradients_to_autograd():
    one = stepper(accumulate=2)
    assert not execution.reuses_gradients(one.network)


def recipe_of(data, **train):
    settings = {
        "batch_size": 16,
        "threads": 1,
        "execution": "graphs",
        "precision": "fp32",
        "save_every_s": 9999,
    }
    values = {
        "dataset": data.path,
        "model": {"arch": NETWORK, "weights": "none"},
        "stages": STAGES,
        "lr": "auto",
        "train": settings | train,
    }
    return load_recipe("smoke", values)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiles(str(tmp_path_factory.mktemp("data") / "dataset"), 80, 32)


def test_every_stage_replays_a_graph_of_its_own_and_range_tests_replay_none(
    data, graphs, no_collector, monkeypatch, tmp_path
):
    replayed, trained, steppers, alive = [], [], [], []
    real_test = stage.range_test

    def range_test(*arguments):
        before = list(graphs.replays)
        trained.clear()
        curve = real_test(*arguments)
        replayed.append(graphs.replays != before)
        return curve

    class Noted(Stepper):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            steppers.append(weakref.ref(self))
            weights = self.weights
            self.optimizer.register_step_pre_hook(
                lambda *_: trained.append(sum(p.grad is not None for p in weights) == len(weights))
            )

    real_set = execution.set_execution

    def set_execution(*arguments):
        alive.append(sum(step() is not None for step in steppers))
        real_set(*arguments)

    shorter = functools.partial(lr_find.range_test, steps=26)
    monkeypatch.setattr(lr_find, "range_test", shorter)
    monkeypatch.setattr(stage, "range_test", range_test)
    monkeypatch.setattr(stage, "Stepper", Noted)
    monkeypatch.setattr(execution, "set_execution", set_execution)
    torch.backends.cudnn.allow_tf32 = True
    fit(recipe_of(data), data, str(tmp_path / "run"), Worker(), Hooks())
    assert replayed == [False, False] and all(trained), "every weight that trains has a gradient"
    assert [training for training, _ in graphs.captures] == [True, True]
    frozen, unfrozen = (wanted for _, wanted in graphs.captures)
    assert frozen < unfrozen == len(list(networks.build(NETWORK, 17, 0.0).parameters()))
    steps = 2 * (64 // 16)
    assert graphs.replays == [steps, steps]
    assert graphs.held == [0, 0], "a graph that is freed during a capture would break it"
    assert alive == [0, 0], "an old DDP would refuse the capture"
    assert not torch.backends.cudnn.allow_tf32, "fp32 means fp32"


def test_a_run_that_diverged_frees_network_and_tiles_before_it_goes_back(
    data, no_collector, monkeypatch, tmp_path
):
    models_seen, alive = [], []

    def run(job, state, services):
        alive.append([model() is not None for model in models_seen])
        models_seen.append(weakref.ref(state.model))
        if len(models_seen) == 1:
            raise GroupDiverged("the loss became nan")
        return {}

    monkeypatch.setattr(loop, "train_run", run)
    real = loop.opened

    def opened(*arguments):
        alive.append([model() is not None for model in models_seen])
        return real(*arguments)

    monkeypatch.setattr(loop, "opened", opened)
    fit(
        recipe_of(data),
        data,
        str(tmp_path / "run"),
        Worker(),
        Hooks(),
        backoff=True,
    )
    assert alive == [[], [], [False], [False]]


def test_a_capture_after_validation_is_taken_in_training(graphs):
    network, shape = networks.build(NETWORK, 5, 0.0), (4, 3, 32, 32)
    execution.set_execution(network.eval(), "graphs", shape, "fp32", CPU)
    network.train()(torch.zeros(shape))
    network.eval()(torch.zeros(shape))
    assert graphs.replays == [1]


@pytest.mark.parametrize("known", [True, False])
def test_a_capture_accepts_gradients_from_its_stream_where_torch_asks(graphs, monkeypatch, known):
    asked = []
    name = "set_warn_on_accumulate_grad_stream_mismatch"
    if known:
        monkeypatch.setattr(torch.autograd.graph, name, asked.append, raising=False)
    else:
        monkeypatch.delattr(torch.autograd.graph, name, raising=False)
    network = networks.build(NETWORK, 5, 0.0)
    execution.set_execution(network, "graphs", (4, 3, 32, 32), "fp32", CPU)
    assert asked == [False] * known and len(graphs.captures) == 1


@pytest.mark.parametrize("steps", [2530, 10**6])
def test_several_workers_run_eagerly_unless_told(steps):
    assert (
        execution.chosen("auto", GPU, steps, world=2)
        == "eager"
        != execution.chosen("auto", GPU, steps, world=1)
    )
    assert execution.chosen("graphs", GPU, steps, world=2) == "graphs"


def test_what_the_ranks_run_depends_on_how_many_there_are(data, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(execution, "chosen", lambda *arguments: asked.append(arguments) or "eager")
    with opened(recipe_of(data), data, str(tmp_path), Worker(), Hooks()) as (job, state, _):
        one_of_three = replace(job, worker=Worker(0, 3))
        stage.choose_execution(one_of_three, state, 1, job.batches(1, 1))
    assert asked[0][-1] == 3


def test_an_infinite_gradient_moves_nothing_in_a_graph_either(graphs):
    one = stepper()
    execution.set_execution(one.network, "graphs", (12, 3, 32, 32), "fp64", CPU)
    before = [p.detach().clone() for p in one.weights]
    one.network.head[-1].bias.register_hook(lambda gradient: gradient * float("inf"))
    assert isinstance(one, Stepper) and one(ROWS, 1, 1).values[1] == 1 and graphs.replays == [1]
    assert all(torch.equal(a, b) for a, b in zip(before, one.weights, strict=True))
