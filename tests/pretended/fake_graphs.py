"""CUDA graphs on a CPU, as torch/cuda/graphs.py has them: static buffers, and what is frozen and the mode kept as captured."""

import weakref

import torch

WARM_UPS = 3


class Graphs:
    """Stands for `torch.cuda.make_graphed_callables`, and remembers what was captured and how often it was replayed.

    Attributes:
        captures: (training mode, number of tensors with a gradient) of each capture.
        held: at each capture, how many graphs of earlier ones were still held.
        replays: of forward, since the last capture.
    """

    def __init__(self):
        self.captures, self.held, self.replays, self.graphs = [], [], [], []

    def __call__(self, module, sample_args):
        self.held.append(sum(graph() is not None for graph in self.graphs))
        graph = Graph(module, *sample_args)
        self.graphs.append(weakref.ref(graph))
        self.captures.append((graph.training, len(graph.wanted)))
        self.replays.append(0)
        capture, eager, parameters = (
            len(self.replays) - 1,
            module.forward,
            tuple(module.parameters()),
        )

        class Replayed(torch.autograd.Function):
            """A class is a cycle: with what it closes over it lives until the collector comes, as in torch 2.11."""

            @staticmethod
            def forward(ctx, pixels, *parameters):
                return graph.forward(pixels)

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, gradient):
                return graph.backward(gradient)

        def forward(pixels):
            if module.training != graph.training:
                return eager(pixels)
            self.replays[capture] += 1
            return Replayed.apply(pixels, *parameters)

        module.forward = forward
        return module


class Graph:
    """One capture: computes what was captured, whatever the network is now, and writes it into the same memory each time."""

    def __init__(self, module, pixels):
        self.module, self.compute, self.training = module, module.forward, module.training
        self.pixels, self.inputs = pixels, (pixels, *module.parameters())
        self.asked = [tensor.requires_grad for tensor in self.inputs]
        self.wanted = [
            tensor for tensor, asked in zip(self.inputs, self.asked, strict=True) if asked
        ]
        for _ in range(WARM_UPS):
            output = self.compute(pixels)
            torch.autograd.grad(output, self.wanted, torch.ones_like(output))
        self.output = self.compute(pixels).detach().clone()
        self.gradients = [
            torch.empty_like(t) if asked else None
            for t, asked in zip(self.inputs, self.asked, strict=True)
        ]
        self.alive = None

    def forward(self, pixels):
        self.pixels.copy_(pixels)
        was = self.module.training
        self.module.train(self.training)
        with torch.enable_grad():
            for tensor in self.wanted:
                tensor.requires_grad_(True)
            self.alive = self.compute(self.pixels)
        self.module.train(was)
        self.output.copy_(self.alive.detach())
        return self.output.detach()

    def backward(self, gradient):
        found = iter(torch.autograd.grad(self.alive, self.wanted, gradient))
        self.alive = None
        for buffer in self.gradients:
            if buffer is not None:
                buffer.copy_(next(found))
        # The same memory after every replay: whoever keeps it sees it change.
        return tuple(buffer if buffer is None else buffer.detach() for buffer in self.gradients)
