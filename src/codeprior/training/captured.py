"""A pass forward and backward as one CUDA graph: a GPU gets its thousand orders at once, and waits for none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_WARM_UP = 3  # calls before the one that is recorded: what is compiled, chosen or reserved in them is not recorded


class Captured:
    """A function of tensors that leaves gradients: recorded at its first call, replayed from then on.

    The result and the gradients lie at the same places after every call, so whoever wants to keep them makes a copy.
    Random numbers are those of the device's generator, as it is when a call begins.

    Parameters
    ----------
    function : callable
        Of tensors of one CUDA device, whose shapes never change; it must not ask for any of their values, and gives a
        tensor without gradient.
    parameters : iterable of Parameter
        What it leaves gradients of. Those before a call are not added to.
    """

    def __init__(self, function: Callable[..., Tensor], parameters: Iterable[nn.Parameter]) -> None:
        self.function, self.parameters = function, list(parameters)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._graph is None:
            self._graph = self._record(inputs)
        for place, given in zip(self._inputs, inputs, strict=True):
            place.copy_(given)
        self._graph.replay()
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._result

    def _record(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._inputs = [given.clone() for given in inputs]
        graph, here, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.random.fork_rng([inputs[0].device], device_type="cuda"):
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    self.function(*self._inputs)
                    self._forget_gradients()
            here.wait_stream(aside)
            with torch.cuda.graph(graph):
                self._result = self.function(*self._inputs)
        self._gradients = [parameter.grad for parameter in self.parameters]
        return graph

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
