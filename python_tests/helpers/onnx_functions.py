"""Functions of feature maps [N, 4, 8, 8], as classifiers that people write call them."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Scaled(nn.Module):
    """A learned gate."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1,), 0.3))
        self.low = nn.Parameter(torch.full((4, 1, 1), -0.2))

    def forward(self, x):
        return self.gamma * torch.maximum(x, self.low) + x.clamp(min=self.low)


class GeneralizedMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        x = x.clamp(min=1e-6).pow(self.p)
        return F.avg_pool2d(x, (x.size(-2), x.size(-1))).pow(1.0 / self.p)


class ChannelAttention(nn.Module):
    """ECA: a convolution along the channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class CoordinateAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.columns = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        _, _, h, w = x.size()
        rows, columns = self.rows(x), self.columns(x).permute(0, 1, 3, 2)
        y = self.conv(torch.cat([rows, columns], dim=2))
        rows, columns = torch.split(y, [h, w], dim=2)
        return x * rows.sigmoid() * columns.permute(0, 1, 3, 2).sigmoid()


class Involution(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernels = nn.Conv2d(4, 2 * 9, 1)
        self.unfold = nn.Unfold(3, padding=1)

    def forward(self, x):
        n, c, h, w = x.shape
        kernels = self.kernels(x).view(n, 2, 9, h, w).unsqueeze(2)
        windows = self.unfold(x).view(n, 2, c // 2, 9, h, w)
        return (kernels * windows).sum(dim=3).view(n, c, h, w)


class BlurPool(nn.Module):
    def __init__(self):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (row[:, None] * row / 16).repeat(4, 1, 1, 1))

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.kernel, stride=2, groups=4)


class SpatialTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x):
        theta = self.fc(x.mean((2, 3))).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.size(), False), align_corners=False)


class Coordinates(nn.Module):
    """CoordConv: the place of each pixel beside its channels."""

    def forward(self, x):
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.arange(w).float().repeat(n, 1, h, 1) / (w - 1)
        return torch.cat([x, rows, columns, torch.ones_like(x[:, :1])], 1)


class Token(nn.Module):
    """A token before those of the image, and attention between all."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.position = nn.Parameter(torch.randn(1, 65, 4))
        self.all = nn.Linear(4, 12)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.token.repeat(x.shape[0], 1, 1), x], 1) + self.position
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1)
        q, k, v = self.all(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)[:, 0]


def focus(x):
    slices = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
    return torch.cat(slices, 1)


def channel_maxima(x):
    pooled = torch.cat([torch.max(x, 1, keepdim=True)[0], torch.mean(x, 1, keepdim=True)], 1)
    return x * torch.sigmoid(pooled.sum(1, keepdim=True))


def maxima_by_name(x):
    return x.max(dim=2).values + x.min(dim=3, keepdim=False).values


def pyramid(x):
    pooled = [F.adaptive_max_pool2d(x, size).flatten(1) for size in (1, 2, 3)]
    return torch.cat(pooled, dim=1)


def standardized(x):
    mean, std = x.new_tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.6, 0.7, 0.8])
    return (x - mean[None, :, None, None]) / std[:, None, None]


def standardized_by_itself(x):
    mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    return (x - mean) / (std + 1e-5)


def shuffle(x):
    n, c, h, w = x.data.size()
    x = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2)
    x = x.reshape(2, -1, c // 2, h, w)
    return torch.cat((x[0], x[1]), 1)


def tokens(x):
    """[N, 64, 4]."""
    return x.flatten(2).transpose(1, 2)


def row(x):
    """[N, 4, 64]."""
    return x.flatten(2)


ACTIVATIONS = {
    "clamp": lambda x: torch.clamp(x, -0.2, 0.3),
    "clamp from below": lambda x: x.clamp(min=0.1),
    "clamp from above": lambda x: torch.clamp(x, max=0.1),
    "clip": lambda x: x.clip(0, 1),
    "clamp_min": lambda x: torch.clamp_min(x, -0.1),
    "hard swish by hand": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "mish by hand": lambda x: x * torch.tanh(F.softplus(x)),
    "learned bounds": Scaled(),
    "softsign": F.softsign,
    "SELU": nn.SELU(),
    "CELU": nn.CELU(0.4),
    "LogSigmoid": nn.LogSigmoid(),
    "Hardshrink": nn.Hardshrink(0.2),
    "softshrink": lambda x: F.softshrink(x, 0.2),
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, -0.5),
    "RReLU": nn.RReLU(0.1, 0.5),
    "GLU": nn.GLU(1),
    "glu along the width": F.glu,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, -0.3, 0.4])),
    "PReLU of one slope": nn.PReLU(),
    "Softplus, beta": nn.Softplus(beta=2.0),
    "softplus, threshold": lambda x: F.softplus(x, threshold=1),
    "softmax of channels": nn.Softmax2d(),
    "softmax, no dimension": lambda x: torch.softmax(x.flatten(1), dim=-1),
    "Softmax, no dimension": nn.Sequential(nn.Flatten(), nn.Softmax(None)),
    "log_softmax": lambda x: F.log_softmax(x, dim=1),
    "softmin": lambda x: F.softmin(x, dim=2),
    "LogSoftmax of columns": nn.LogSoftmax(dim=-1),
}
ARITHMETIC = {
    "abs": torch.abs,
    "abs method": lambda x: x.abs(),
    "abs builtin": lambda x: abs(x),
    "maximum of two": lambda x: torch.maximum(x, x.flip(1)),
    "minimum, number": lambda x: torch.minimum(x, torch.tensor(0.1)),
    "max of two": lambda x: torch.max(x, -x),
    "min of two": lambda x: x.min(x.mean(1, keepdim=True)),
    "sign": torch.sign,
    "square and root": lambda x: torch.sqrt(torch.square(x) + 1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.5),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 0.5),
    "logarithms": lambda x: torch.log(x.exp() + 1) + torch.log1p(x * x) + torch.log2(x * x + 1),
    "expm1 and erf": lambda x: torch.expm1(x) + torch.erf(x),
    "sine": lambda x: torch.sin(3 * x) + x.cos(),
    "add, alpha": lambda x: torch.add(x, x.flip(3), alpha=2),
    "rsub": lambda x: torch.rsub(x, 1),
    "one minus": lambda x: 1 - x,
    "division, rounded down": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "division, truncated": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
    "lerp": lambda x: torch.lerp(x, x.flip(2), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.flip(1), value=0.5),
    "where": lambda x: torch.where(x > 0.1, x, 0.2 * x),
    "where, constant mask": lambda x: torch.where(torch.ones(8, 8).tril().bool(), x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x < -0.1, 0.5),
    "mask times": lambda x: x * (x >= x.mean((2, 3), keepdim=True)).float(),
    "two comparisons": lambda x: torch.where((x > -0.2) & ~(x > 0.3), x, x * 0 + 1),
    "einsum of one": lambda x: torch.einsum("nchw->nc", x),
    "bmm": lambda x: torch.bmm(row(x), tokens(x)),
    "addmm": lambda x: torch.addmm(torch.ones(3), x.mean((2, 3)), torch.ones(4, 3), alpha=0.5),
    "attention": lambda x: F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x)),
    "standardized": standardized,
    "standardized by itself": standardized_by_itself,
    "as another's type": lambda x: (x > 0.1).type_as(x) * x,
}
REDUCTIONS = {
    "max over a dimension": lambda x: torch.max(x, 1)[0],
    "max by name": maxima_by_name,
    "max, keeping": lambda x: x.max(1, keepdim=True)[0],
    "max by its attribute": lambda x: torch.max(x, dim=3, keepdim=True).values,
    "channel maxima and means": channel_maxima,
    "amin": lambda x: x.amin((2, 3)),
    "amax of all channels": lambda x: torch.amax(x, dim=1, keepdim=True),
    "numpy's names": lambda x: x.mean(axis=1, keepdims=True) + x.sum(axis=3, keepdims=True),
    "numpy's axes": lambda x: torch.mean(x, axis=(2, 3)),
    "standard deviation": lambda x: x.std(dim=(2, 3)),
    "variance": lambda x: torch.var(x, 1, unbiased=False, keepdim=True),
    "var_mean": lambda x: torch.cat(torch.var_mean(x, (2, 3), correction=0), 1),
    "std_mean": lambda x: torch.std_mean(x, 2, keepdim=True)[1],
    "logsumexp": lambda x: torch.logsumexp(30 * x, 1),
    "prod": lambda x: x.prod(1),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "norm of order one": lambda x: torch.norm(x, 1, (2, 3)),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, ord=3, dim=1),
    "norm of infinite order": lambda x: torch.linalg.vector_norm(x, math.inf, (1, 2)),
    "cumsum": lambda x: torch.cumsum(x, 1),
    "topk": lambda x: torch.topk(x.flatten(2), 5, dim=-1)[0],
    "sort": lambda x: x.sort(dim=2, descending=True)[0],
    "argmax": lambda x: x + x.argmax(1, keepdim=True),
}
POOLING = {
    "MaxPool1d": nn.Sequential(nn.Flatten(2), nn.MaxPool1d(5, 3, 1)),
    "max_pool1d of vectors": lambda x: F.max_pool1d(x.flatten(1), 4),
    "AvgPool1d": nn.Sequential(nn.Flatten(2), nn.AvgPool1d(5, 3, 2)),
    "avg_pool1d, ceil_mode": lambda x: F.avg_pool1d(row(x), 5, 3, 1, ceil_mode=True),
    "AdaptiveAvgPool1d": nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(5)),
    "AdaptiveAvgPool1d to one": nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(1)),
    "adaptive_avg_pool1d of vectors": lambda x: F.adaptive_avg_pool1d(x.flatten(1), 10),
    "AdaptiveMaxPool1d": nn.Sequential(nn.Flatten(2), nn.AdaptiveMaxPool1d(7)),
    "AdaptiveMaxPool2d to three": nn.AdaptiveMaxPool2d(3),
    "AdaptiveMaxPool2d, larger": nn.AdaptiveMaxPool2d((11, 5)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, None)),
    "max_pool2d with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "MaxPool2d, ceil_mode": nn.MaxPool2d(3, 2, ceil_mode=True),
    "MaxPool2d, strides beyond": nn.MaxPool2d(2, 3, 1, ceil_mode=True),
    "MaxPool2d, dilated, ceil_mode": nn.MaxPool2d(2, 4, dilation=4, ceil_mode=True),
    "AvgPool2d, ceil_mode and padding": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "AvgPool2d, ceil_mode, no padding counted": nn.AvgPool2d(
        3, 2, 1, ceil_mode=True, count_include_pad=False
    ),
    "AvgPool2d, ceil_mode alone": nn.AvgPool2d((3, 5), 2, ceil_mode=True),
    "AvgPool2d, divisor": nn.AvgPool2d(3, 2, 1, divisor_override=5),
    "avg_pool2d of the whole": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "LPPool2d": nn.LPPool2d(2, 3, 2),
    "lp_pool2d, ceil_mode": lambda x: F.lp_pool2d(x.abs(), 3, 3, 2, ceil_mode=True),
    "LPPool1d": nn.Sequential(nn.Flatten(2), nn.LPPool1d(2, 3)),
    "MaxPool3d": lambda x: F.max_pool3d(x.unsqueeze(1), (2, 3, 3), (1, 2, 2), (0, 1, 1)),
    "AvgPool3d, ceil_mode": lambda x: F.avg_pool3d(x.unsqueeze(1), 3, 2, 1, ceil_mode=True),
    "AdaptiveAvgPool3d": lambda x: F.adaptive_avg_pool3d(x.unsqueeze(1), (3, 5, 2)),
    "pyramid": pyramid,
    "generalized mean": GeneralizedMean(),
}
SHAPING = {
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat by a tuple": lambda x: x.mean((2, 3)).repeat((2, 1, 1)).transpose(0, 1),
    "tile": lambda x: torch.tile(x, (2, 1)),
    "repeat_interleave": lambda x: torch.repeat_interleave(x, 3, dim=1),
    "flip": lambda x: torch.flip(x, (2, 3)),
    "flip method": lambda x: x.flip(-1) + x.flip(1, 2),
    "fliplr": torch.fliplr,
    "roll": lambda x: torch.roll(x, shifts=(3, -2), dims=(2, 3)),
    "roll along one": lambda x: x.roll(1, 1),
    "PixelShuffle": nn.PixelShuffle(2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(torch.cat([x, -x], 1), 2),
    "PixelUnshuffle": nn.PixelUnshuffle(2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 4),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "CircularPad2d": nn.CircularPad2d((1, 2, 0, 3)),
    "pad, circular": lambda x: F.pad(x, (2, 1, 1, 2), mode="circular"),
    "ReflectionPad1d": nn.Sequential(nn.Flatten(2), nn.ReflectionPad1d((2, 1))),
    "pad, cropping": lambda x: F.pad(x, (-1, -2, 1, 0)),
    "focus": focus,
    "channels in another order": lambda x: x[:, [2, 1, 0, 3]],
    "by a tensor": lambda x: x[:, torch.tensor([0, 2])],
    "by a list behind dots": lambda x: x[..., [0, 3, 3], :],
    "index_select": lambda x: torch.index_select(x, 2, torch.tensor([7, 0])),
    "narrow and select": lambda x: x.narrow(2, 1, 5).select(3, -1),
    "movedim": lambda x: torch.movedim(x, (1, 2), (3, 1)),
    "swapaxes": lambda x: x.swapaxes(1, 3),
    "mT": lambda x: x.mT,
    "half by half": lambda x: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1),
    "shuffle by reshape": shuffle,
    "unfold": lambda x: F.unfold(x, (3, 2), dilation=2, padding=(1, 2), stride=(2, 3)),
    "windows of one dimension": lambda x: x.unfold(2, 3, 2),
    "bicubic": lambda x: F.interpolate(x, 5, mode="bicubic", align_corners=False),
    "nearest-exact": lambda x: F.interpolate(x, (11, 5), mode="nearest-exact"),
    "area": lambda x: F.interpolate(x, (3, 5), mode="area"),
    "linear": lambda x: F.interpolate(row(x), 27, mode="linear"),
    "nearest in one dimension": lambda x: F.interpolate(row(x), scale_factor=2),
    "like another": lambda x: F.interpolate(x[..., ::2, ::2], x.shape[2:]) + x,
    "splits": lambda x: torch.cat(torch.tensor_split(x, [1, 3], dim=1)[1:], 1),
    "Coordinates": Coordinates(),
    "zeros beside": lambda x: torch.cat([x, x.new_zeros(x.size(0), 2, 8, 8)], 1),
    "triangle": lambda x: x * torch.ones(8, 8).triu(),
}
NORMALIZATION = {
    "normalize": F.normalize,
    "normalize by the largest": lambda x: F.normalize(x, p=math.inf, dim=(2, 3)),
    "normalize, order one": lambda x: F.normalize(x.flatten(1), 1.0, dim=-1),
    "InstanceNorm2d": nn.InstanceNorm2d(4),
    "InstanceNorm2d, affine": nn.InstanceNorm2d(4, affine=True),
    "InstanceNorm2d, stored": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "InstanceNorm1d": nn.Sequential(nn.Flatten(2), nn.InstanceNorm1d(4)),
    "instance_norm": lambda x: F.instance_norm(x, weight=torch.tensor([1.0, 2, 3, 4])),
    "LayerNorm, no bias": nn.LayerNorm((8,), bias=False),
    "layer_norm of the image": lambda x: F.layer_norm(x, (4, 8, 8)),
    "RMSNorm": nn.RMSNorm((8, 8), eps=1e-3),
    "rms_norm": lambda x: F.rms_norm(x, (8,)),
    "LocalResponseNorm": nn.LocalResponseNorm(3, alpha=0.5, k=2.0),
    "local_response_norm, even": lambda x: F.local_response_norm(x, 2, alpha=0.5),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(1), dim=1),
}
BLOCKS = {
    "channel attention": ChannelAttention(),
    "coordinate attention": CoordinateAttention(),
    "involution": Involution(),
    "blur": BlurPool(),
    "spatial transformer": SpatialTransformer(),
    "token": Token(),
    "Conv3d": nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 4, (1, 3, 3), padding="same"), nn.BatchNorm3d(4)
    ),
    "ConvTranspose1d": nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(4, 3, 3, 2, 1, 1)),
    "conv3d": lambda x: F.conv3d(x[:, None], torch.ones(2, 1, 3, 3, 3) / 27, stride=2),
    "conv_transpose1d": lambda x: F.conv_transpose1d(row(x), torch.ones(4, 2, 3) / 3, stride=2),
    "ConvTranspose3d": nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.ConvTranspose3d(2, 2, (1, 2, 2), (1, 2, 2))
    ),
    "Conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 3, 2, padding_mode="circular")),
}
IN_THE_WILD = {
    **ACTIVATIONS,
    **ARITHMETIC,
    **REDUCTIONS,
    **POOLING,
    **SHAPING,
    **NORMALIZATION,
    **BLOCKS,
}
