"""Matrix products of large linear layers, by the faster library.

On some CPUs oneDNN multiplies about twice as fast as the BLAS behind torch.nn.Linear, on others it is slower; a short
timing decides (as torch.backends.cudnn.benchmark does for convolutions). All strategies use the same kernel. A custom
model is measured as it is, with torch's kernel, unless the configuration names another.
"""

from __future__ import annotations

import functools
import timeit
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from dpexp.config.experiment import ExperimentConfig
from dpexp.config.groups import CustomModelConfig

MIN_WEIGHTS = 2**15  # below, the detour through Python costs more than it gains
CLEARLY_FASTER = 1.15  # so that noise doesn't choose: results of the two differ in their last bits
ROUNDS, ROUND_SECONDS = 5, 2e-3


class Linear(nn.Linear):
    """nn.Linear by oneDNN. It can be differentiated once: a gradient of a gradient raises torch's error."""

    def __init__(self, layer: nn.Linear) -> None:
        """The same layer: its parameters are those of `layer`."""
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear.forward."""
        if input.dim() != 2 or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        output: torch.Tensor = _Product.apply(input, self.weight, self.bias)
        return output


def use(model: nn.Module, kernel: str) -> None:
    """Let the large linear layers of `model` multiply by `kernel`: "torch" or "onednn".

    Each is replaced in its parent by another layer with the same parameters. Hooks of the layer are not taken over.
    """
    if kernel != "torch":  # which they use already
        for path, layer in list(model.named_modules(remove_duplicate=False)):
            if path and _is_large(layer):
                model.set_submodule(path, Linear(layer))


def choose(config: ExperimentConfig, model: nn.Module) -> str:
    """The kernel for all trainings of a job: as configured, or the one that a timing finds faster.

    The timing adds up the batch sizes of candidate and baseline, where they differ.
    """
    if config.linear_kernel != "auto":
        return config.linear_kernel
    is_own = isinstance(config.model, CustomModelConfig)
    if is_own or config.dtype != "float32" or config.device != "cpu" or not onednn_available():
        return "torch"
    shapes = {(layer.out_features, layer.in_features) for layer in model.modules() if _is_large(layer)}
    batches = {config.local_batch_size, config.baseline().local_batch_size}
    layers = tuple(sorted((*shape, batch) for shape in shapes for batch in batches))
    return _fastest(layers, config.threads_per_worker) if layers else "torch"


def onednn_available() -> bool:
    """Whether this build of torch has oneDNN's linear layer for plain tensors."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache  # one choice for all jobs of a sweep
def _fastest(layers: tuple[tuple[int, int, int], ...], threads: int) -> str:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch_seconds, onednn_seconds = (sum(_step_seconds(name, *one) for one in layers) for name in ("torch", "onednn"))
    torch.set_num_threads(before)
    return "onednn" if onednn_seconds * CLEARLY_FASTER < torch_seconds else "torch"


def _step_seconds(kernel: str, outputs: int, inputs: int, batch: int) -> float:
    """The least time, over some rounds, of a layer's forward and backward pass."""
    own, x, gradient = nn.Linear(inputs, outputs), torch.rand(batch, inputs), torch.rand(batch, outputs)
    layer = Linear(own) if kernel == "onednn" else own
    x.requires_grad_()

    def step() -> None:
        torch.autograd.grad(layer(x), (x, *layer.parameters()), gradient)

    number = max(1, int(ROUND_SECONDS / min(timeit.repeat(step, number=1, repeat=2))))
    return min(timeit.repeat(step, number=number, repeat=ROUNDS)) / number


def _is_large(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer that is large enough to gain from another kernel."""
    if type(module) is not nn.Linear or module.weight.numel() < MIN_WEIGHTS:
        return False
    return isinstance(module.weight, nn.Parameter)  # and not computed by a hook, as torch.nn.utils.weight_norm does


def _by_onednn(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    """inputs (n, in) times weight (out, in) transposed, plus bias (out,)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return _by_onednn(inputs, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _by_onednn(gradient, weight.t()) if needs_inputs else None,
            _by_onednn(gradient.t(), inputs.t()) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )
