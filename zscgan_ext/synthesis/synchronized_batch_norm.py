"""Batch norm over the images of all processes, on the CPU too."""

import torch
from torch import Tensor, nn

from zscgan_ext import distributed, ops


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch is that of all processes; with one process the same bits.

    `nn.SyncBatchNorm` is for GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [N, C, H, W]."""
        if not self.training or distributed.world_size() == 1:
            result: Tensor = super().forward(x)
            return result
        assert self.running_mean is not None
        assert self.running_var is not None
        shift = self.running_mean.clone()
        mean, variance = ops.batch_norm_statistics(x, shift)
        (mean,), (variance,), images = distributed.combined_statistics(
            [mean], [variance], [shift], len(x)
        )
        self.update_running_statistics(mean.detach(), variance.detach(), images * x[0, 0].numel())
        multiplier = self.weight * (variance + self.eps).rsqrt()
        columns = (v.view(-1, 1, 1) for v in (mean, multiplier, self.bias))
        mean, multiplier, bias = columns
        normalized: Tensor = (x.float() - mean) * multiplier + bias
        return normalized.to(x.dtype)

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
