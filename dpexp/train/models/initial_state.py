"""The seeded initial state that every replica starts from, in shared memory."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.nn.parameter import is_lazy

from dpexp.config.built_in import BuiltInConfig
from dpexp.errors import USER_CODE_ERRORS, ConfigError, one_line
from dpexp.processes.shared_memory import SharedTensors
from dpexp.train.data.dataset import Dataset
from dpexp.train.models.architectures import build_model


def initial_state(config: BuiltInConfig, dataset: Dataset) -> SharedTensors:
    """Return the seeded weights and buffers from which every replica of every training of this job starts.

    Raises ConfigError when the model doesn't fit the data, or can't train on the smallest shard.
    """
    torch.manual_seed(config.seed)
    dtype = getattr(torch, config.dtype)
    model = build_model(config.model, dataset.input_shape, dataset.classes, dtype)
    samples = _smallest_shard(config)
    name = f"model={config.model.name}"
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ConfigError(f"{name} has lazy layers; give each layer its input size")
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            raise ConfigError(
                f"{name} has the parameter {parameter_name} of {str(parameter.dtype).removeprefix('torch.')}: "
                f"gradients are exchanged as {config.dtype}; keep it as a buffer, or measure a script that trains it"
            )
    if any(not parameter.isfinite().all() for parameter in model.parameters()):
        raise ConfigError(f"{name} has parameters that are NaN or infinite before it is trained")
    inputs = dataset.tensors["train_inputs"][:samples].clone()  # which a model may change
    state = SharedTensors.copy_of(model.state_dict())
    with _explain_errors(name, inputs):
        logits = model(inputs)
    expected = (samples, dataset.classes)
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        returned = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(f"{name} returns {returned}; it must be logits of shape {expected}")
    if not logits.requires_grad:
        raise ConfigError(
            f"{name} returns logits that don't depend on its parameters; does it use torch.no_grad(), or is it frozen?"
        )
    with _explain_errors(name, inputs):
        F.cross_entropy(logits, dataset.tensors["train_labels"][:samples]).backward()
    if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in model.parameters()):
        raise ConfigError(f"{name} has sparse gradients; build its embeddings with sparse=False")
    return state


@contextlib.contextmanager
def _explain_errors(name: str, inputs: torch.Tensor) -> Iterator[None]:
    try:
        yield
    except USER_CODE_ERRORS as error:
        raise ConfigError(
            f"{name} can't train on {str(inputs.dtype).removeprefix('torch.')} inputs of shape {tuple(inputs.shape)}, "
            f"the smallest batch of this job: {one_line(error)}"
        ) from error


def _smallest_shard(config: BuiltInConfig) -> int:
    """Return the samples of the smallest non-empty shard of the last batch, of the candidate or the baseline."""
    last_batches = [
        (trained.train_samples % trained.global_batch_size or trained.global_batch_size, trained.workers)
        for trained in config.whole_training_configs.values()
    ]
    return min(max(1, samples // workers) for samples, workers in last_batches)
