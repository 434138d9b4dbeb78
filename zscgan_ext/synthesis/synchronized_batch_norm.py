"""Batch norm over the images of all processes, on the CPU too."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zscgan_ext import distributed, ops
from zscgan_ext.ops.noisy_batch_norm import NOISY_BATCH_NORM, gradients


class SynchronizedNoisyBatchNorm(torch.autograd.Function):
    """`ops.noisy_batch_norm` with the statistics of the images of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        values: Tensor,
        seed: Tensor,
        eps: float,
        noise: float,
        negative_slope: float,
    ) -> Tensor:
        """Return y; `values` is how many of a channel the statistics are of."""
        settings = (seed, eps, noise, negative_slope, True)
        y, positive = NOISY_BATCH_NORM(x, weight, bias, mean, variance, *settings)
        ctx.save_for_backward(x, positive, weight, mean, variance)
        ctx.settings = (eps, negative_slope, values)
        result: Tensor = y
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of x, weight and bias."""
        x, positive, weight, mean, variance = ctx.saved_tensors
        eps, negative_slope, values = ctx.settings
        found = gradients(
            *(grad, x, positive, weight, mean, variance),
            eps,
            negative_slope,
            values,
            distributed.all_reduce_sum,
        )
        return *found, *(None,) * 7


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch is that of all processes, by `ops.noisy_batch_norm`.

    `nn.SyncBatchNorm` is for GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [N, C, H, W]."""
        return self.noisy_leaky_relu(x, 0.0, 1.0)

    def noisy_leaky_relu(self, x: Tensor, noise: float, negative_slope: float) -> Tensor:
        """Normalize [N, C, H, W], add normal noise and apply a LeakyReLU, in one pass.

        torch's default generator draws the seed of the noise.

        Args:
            x: feature maps.
            noise: standard deviation of the noise.
            negative_slope: of the LeakyReLU.
        """
        seed = torch.zeros(1, dtype=torch.int64, device=x.device)
        if noise:
            seed.random_()
        if self.training and distributed.world_size() > 1:
            statistics = self.moved_statistics(x)
            settings = (seed, self.eps, noise, negative_slope)
            y: Tensor = SynchronizedNoisyBatchNorm.apply(
                x, self.weight, self.bias, *statistics, *settings
            )
            return y
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance, _ = self.moved_statistics(x)
        assert mean is not None
        assert variance is not None
        return ops.noisy_batch_norm(
            x,
            self.weight,
            self.bias,
            mean,
            variance,
            seed,
            noise,
            negative_slope,
            self.eps,
            is_of_batch=self.training,
        )

    @torch.no_grad()
    def moved_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as `statistics_of_all`, and move the stored ones towards it."""
        mean, variance, values = self.statistics_of_all(x)
        self.update_running_statistics(mean, variance, values)
        return mean, variance, values

    def statistics_of_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and variance [C] of all processes' images, and the values of a channel."""
        assert self.running_mean is not None
        shift = self.running_mean.clone()
        mean, variance = ops.batch_norm_statistics(x, shift)
        (mean,), (variance,), images = distributed.combined_statistics(
            [mean], [variance], [shift], len(x)
        )
        return mean, variance, images * x[0, 0].numel()

    @torch.no_grad()
    def update_running_statistics(self, mean: Tensor, variance: Tensor, values: Tensor) -> None:
        """Move the stored statistics [C] towards those of a batch with so many values each."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * values / (values - 1), self.momentum)
