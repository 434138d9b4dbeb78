"""Small classifiers that the tests of the pipeline share."""

import torch
from torch import Tensor, nn

from zscgan_ext.images.preprocessing import Preprocessing

RGB8 = Preprocessing(3, 8, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class SmallResidual(nn.Module):
    """All kinds of tensors that quantization tells apart, in nine nodes."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(8)
        self.relu6 = nn.ReLU6()
        self.project = nn.Conv2d(8, 8, 1)
        self.project_bn = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, num_classes]."""
        x = self.relu(self.stem_bn(self.stem(images)))
        residual = self.relu6(self.depthwise_bn(self.depthwise(x)))
        x = x + self.project_bn(self.project(residual))
        return self.fc(torch.flatten(self.pool(x), 1))


@torch.no_grad()
def as_trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and parameters such as training leaves, and freeze the model."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            module.weight.uniform_(0.5, 1.5, generator=random)
            module.bias.normal_(0, 0.3, generator=random)
    return model.eval().requires_grad_(False)


def small_residual(num_classes: int = 5, seed: int = 0) -> nn.Module:
    """A frozen `SmallResidual`, always the same for a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return as_trained(SmallResidual(num_classes), seed)


def normal_batches(count: int, *shape: int, num_classes: int = 5, seed: int = 0):
    """Yield `count` batches of normal images of this shape, with labels."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(num_classes, shape[:1], generator=random)
        yield torch.randn(shape, generator=random), labels


def small_gray(num_classes: int = 10) -> nn.Module:
    """A frozen classifier of grayscale images, for runs of a second."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)),
        )
        return as_trained(model)
