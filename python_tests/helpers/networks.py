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


class SwitchedOff(nn.Module):
    """A residual block whose last batch norm gives zeros, as training may leave one."""

    def __init__(self, gain: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same weights each time, as a trained classifier has
            first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.first = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(second, nn.BatchNorm2d(4))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 4, H, W] to as much."""
        return torch.relu(x + self.second(self.first(x)))


class GeneralizedMean(nn.Module):
    """Generalized-mean pooling, whose exponent is learned."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor([3.0]))
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C]."""
        powers = x.clamp(min=1e-6).pow(self.exponent)
        if self.pool == "mean":
            return powers.mean((2, 3)).pow(1 / self.exponent)
        pooled = torch.nn.functional.avg_pool2d(powers, (powers.size(2), powers.size(3)))
        return pooled.pow(1.0 / self.exponent).flatten(1)


class RootMeanSquare(nn.Module):
    """Pools by the root of the mean square."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C]."""
        return (x.pow(2).mean((2, 3)) + 1e-6).sqrt()


class UnitLength(nn.Module):
    """Average pooling, and vectors of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C]."""
        x = x.mean((2, 3))
        return x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-6)


class Scaled(nn.Module):
    """Multiplies."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return a multiple."""
        return self.factor * x


def gray_with(
    middle: nn.Module | None = None, pool: nn.Module | None = None, last: nn.Module | None = None
) -> nn.Module:
    """A frozen classifier of grayscale images with other modules in some places."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        usual = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
            *(middle or nn.Identity(), nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            *(pool or usual, nn.Linear(8, 10), last or nn.Identity()),
        )
        as_trained(model)
        if isinstance(middle, SwitchedOff):
            with torch.no_grad():
                middle.second[1].weight.fill_(middle.gain)
                middle.second[1].bias.zero_()
        return model


class SeveralOutputs(nn.Module):
    """Gives feature maps, and two heads of other classes in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.auxiliary = nn.Sequential(nn.Conv2d(4, 6, 3, stride=3), nn.BatchNorm2d(6), nn.ReLU())
        self.auxiliary_head = nn.Linear(6, 3)
        self.last = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        maps = self.body(images)
        auxiliary = self.auxiliary_head(self.auxiliary(maps).mean((2, 3)))
        return maps, {"auxiliary": auxiliary, "logits": self.head(self.last(maps).mean((2, 3)))}


def several_outputs() -> nn.Module:
    """A frozen classifier of grayscale images that gives more than logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return as_trained(SeveralOutputs())


def labels_gray() -> nn.Module:
    """A frozen classifier of grayscale images with four labels, each of which applies or not."""
    return nn.Sequential(*small_gray(4), nn.Sigmoid())


def one_logit_gray() -> nn.Module:
    """A frozen classifier of grayscale images with one logit, [N]."""
    return nn.Sequential(*small_gray(1), nn.Flatten(0))
