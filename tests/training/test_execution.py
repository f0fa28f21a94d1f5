"""How the network of a stage runs: which way is chosen, and which batches take it."""

import pytest
import torch

from raytrain.models import networks
from raytrain.training import execution

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = (4, 3, 32, 32)


@pytest.mark.parametrize(
    "choice, device, steps, wanted",
    [
        ("auto", CPU, 10**6, "eager"),
        ("auto", GPU, 10, "eager"),
        ("auto", GPU, 2530, "graphs"),
        ("auto", GPU, 10**6, "compiled"),
        ("eager", GPU, 10**6, "eager"),
        ("compiled", CPU, 1, "compiled"),
    ],
)
def test_auto_decides_by_device_and_planned_steps_and_any_choice_holds(
    choice, device, steps, wanted
):
    assert execution.chosen(choice, device, steps) == wanted


@pytest.fixture
def network():
    torch.manual_seed(0)
    return networks.build("resnet18", 5, 0.0)


def test_only_training_batches_of_the_planned_shape_take_the_fast_way(network, monkeypatch):
    taken = []

    def compiled(function, **options):
        return lambda pixels: (taken.append(tuple(pixels.shape)), function(pixels))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    execution.set_execution(network, "compiled", SHAPE, "fp32", CPU)
    network(torch.zeros(SHAPE))
    network(torch.zeros(3, 3, 32, 32))
    network.eval()(torch.zeros(SHAPE))
    with torch.no_grad():
        network.train()(torch.zeros(SHAPE))
    assert taken == [SHAPE]
    # The next stage takes it back.
    execution.set_execution(network, "eager", SHAPE, "fp32", CPU)
    network(torch.zeros(SHAPE))
    assert taken == [SHAPE] and "forward" not in vars(network)


def test_graphs_without_a_gpu_are_said_to_be_impossible_and_the_stage_runs(network, logged):
    execution.set_execution(network, "graphs", SHAPE, "fp32", CPU)
    assert logged == ["CUDA graphs need a GPU: the network runs eagerly"]
    assert network(torch.zeros(SHAPE)).shape == (4, 5)


@pytest.mark.slow
def test_a_compiled_step_gives_the_eager_gradient(network):
    # In fp64: in fp32 a rounding that turns over one ReLU or pooling window moves a gradient by some per cent.
    network.double()
    pixels, target, found = torch.rand(SHAPE).double(), torch.rand(SHAPE[0], 5).double(), []
    for how in ("eager", "compiled"):
        execution.set_execution(network, how, SHAPE, "fp32", CPU)
        network.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(pixels), target).backward()
        found.append([p.grad.clone() for p in network.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_graphed_step_gives_the_eager_gradient_and_leaves_the_statistics(network):
    networks.to_device(network, GPU)
    pixels, found = torch.rand(SHAPE, device=GPU), []
    for how in ("eager", "graphs"):
        execution.set_execution(network, how, SHAPE, "fp32", GPU, print)
        before = [b.clone() for b in network.buffers()]
        network.zero_grad()
        network(pixels).sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])
        with torch.no_grad():
            for buffer, kept in zip(network.buffers(), before, strict=True):
                buffer.copy_(kept)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
