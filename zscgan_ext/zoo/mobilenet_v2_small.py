"""A MobileNetV2 for small images (Sandler et al., 2018): inverted residuals, linear bottlenecks."""

import torch
from torch import Tensor, nn

# Expansion factor, output channels, blocks, stride of the first block.
STAGES = ((1, 16, 1, 2), (4, 24, 2, 1), (4, 40, 3, 2), (4, 80, 3, 1))
HEAD_CHANNELS = 320


def conv_bn_relu6(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Build a padded convolution followed by batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand with a 1x1, filter depthwise with a 3x3, project with a linear 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_relu6(in_channels, hidden, 1))
        layers += [
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        projected: Tensor = self.layers(x)
        return x + projected if self.has_shortcut else projected


class MobileNetV2Small(nn.Module):
    """Nine inverted residuals over 28x28, 14x14 and 7x7 maps; under 500,000 parameters."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu6(in_channels, 16, 3)]
        channels = 16
        for expansion, width, blocks, stride in STAGES:
            for index in range(blocks):
                block_stride = stride if index == 0 else 1
                layers.append(InvertedResidual(channels, width, block_stride, expansion))
                channels = width
        layers.append(conv_bn_relu6(channels, HEAD_CHANNELS, 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, num_classes]."""
        features = torch.flatten(self.pool(self.features(x)), 1)  # [N, HEAD_CHANNELS]
        logits: Tensor = self.classifier(features)
        return logits
