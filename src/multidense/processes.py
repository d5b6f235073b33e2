"""Several processes that train as one: sums over all of them, one BatchNorm for the whole batch, gradients that add up.

Every process holds the whole network and a part of each batch. Sums are over images, divided by the number of images of the
whole batch, so parts may differ in size: the step is that of one process, up to the order in which numbers are added. In one
process every function here is the identity.

Unusual: there is no DistributedDataParallel. It knows one backward a forward and means over equal parts; loss balancing needs
the gradient of every task, and the last batch of an epoch is rarely divided evenly. One explicit sum of all gradients a step
takes its place. torch's SyncBatchNorm runs on CUDA only; `GlobalBatchNorm` runs everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from multidense.types import MultidenseError


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without a gradient; the same bits in each of them."""
    tensor = tensor.detach()
    if world() > 1:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
    return tensor


def first_one(tensor: Tensor) -> Tensor:
    """The tensor of the first process, in all of them: for what is drawn at random."""
    if world() > 1:
        tensor = tensor.detach().contiguous().clone()
        dist.broadcast(tensor, src=0)
    return tensor


def gathered(words: Sequence[str]) -> list[str]:
    """The words of all processes, in their order."""
    if world() == 1:
        return list(words)
    every: list[list[str]] = [[] for _ in range(world())]
    dist.all_gather_object(every, list(words))
    return [word for each in every for word in each]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes. What no process has a gradient of keeps none."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if world() == 1 or not parameters:
        return
    reached = all_sum(
        torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=parameters[0].device)
    )
    for parameter, processes in zip(parameters, reached.tolist(), strict=True):
        if processes and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for dtype in {parameter.dtype: None for parameter in parameters}:
        gradients = [p.grad for p in parameters if p.grad is not None and p.dtype == dtype]
        if gradients:
            total = all_sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            for gradient, summed in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))


@dataclass(frozen=True)
class Share:
    """This process's part of a batch. `images` is the size of the whole batch; a part that does not count stands in for an
    empty one, because every process must take part in every step.
    """

    images: int
    counts: bool = True

    def mark(self, network: nn.Module) -> None:
        """Tell the network's BatchNorm whether what comes next counts."""
        if world() > 1:
            for layer in network.modules():
                if isinstance(layer, GlobalBatchNorm):
                    layer.counts = self.counts


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm over the images of all processes, on any device; `counts` says whether this process's images do."""

    counts = True

    def _check_input_dim(self, input: Tensor) -> None:
        """Any `[b c …]`."""

    def forward(self, input: Tensor) -> Tensor:
        if world() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        mean, variance, count = _statistics(input.detach(), self.counts)
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                keep = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(self.running_mean), keep)
                self.running_var.lerp_(unbiased.to(self.running_var), keep)
        rstd = torch.rsqrt(variance + self.eps)
        normal = _Normal.apply(input, mean, rstd, count, self.counts)
        if self.affine:
            shape = [1, -1] + [1] * (input.ndim - 2)
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)


def synchronised(model: nn.Module) -> nn.Module:
    """The model with every BatchNorm over all processes, its weights and buffers as they were; changed in place."""
    for name, layer in model.named_children():
        if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            shared = GlobalBatchNorm(
                layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, device="meta"
            )
            shared._parameters, shared._buffers = layer._parameters, layer._buffers
            setattr(model, name, shared.train(layer.training))
        elif isinstance(layer, _BatchNorm) and not isinstance(layer, GlobalBatchNorm):
            raise MultidenseError(
                f"'{name}' is a {type(layer).__name__}, whose statistics cannot be taken over several processes; expected "
                "BatchNorm2d: train on one device, or choose another backbone"
            )
        else:
            synchronised(layer)
    return model


def _statistics(input: Tensor, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[c]`, variance `[c]` and the number of values a channel, over the images of all processes that count."""
    values = input.transpose(0, 1).flatten(1).to(torch.promote_types(input.dtype, torch.float32))
    number = values.new_full((1,), float(values.shape[1] if counts else 0))
    mean = values.mean(1)
    spread = (values - mean[:, None]).square().sum(1)
    own = torch.cat([mean, spread, number])
    every = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(every, own)
    means, spreads, numbers = torch.stack(every).split([len(mean), len(mean), 1], dim=1)
    total = numbers.sum()
    overall = (numbers * means).sum(0) / total
    between = (numbers * (means - overall).square()).sum(0)
    return overall, ((numbers > 0) * spreads).sum(0).add(between) / total, total


class _Normal(torch.autograd.Function):
    """(x − mean) / σ, where mean and σ depend on the images of all processes: so does the gradient."""

    @staticmethod
    def forward(ctx, input: Tensor, mean: Tensor, rstd: Tensor, count: Tensor, counts: bool) -> Tensor:
        shape = [1, -1] + [1] * (input.ndim - 2)
        normal = (input - mean.view(shape)) * rstd.view(shape)
        ctx.save_for_backward(normal, rstd, count)
        ctx.counts, ctx.dtype = counts, input.dtype
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        normal, rstd, count = ctx.saved_tensors
        shape, axes = [1, -1] + [1] * (normal.ndim - 2), [0, *range(2, normal.ndim)]
        sums = all_sum(torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])) / count
        if ctx.counts:  # a stand-in had no part in the statistics
            gradient = gradient - sums[0].view(shape) - normal * sums[1].view(shape)
        return (gradient * rstd.view(shape)).to(ctx.dtype), None, None, None, None
