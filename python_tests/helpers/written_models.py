"""Small classifiers in the style of code that people write: each asks something else of tracing."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

SHAPE = (3, 16, 16)
CLASSES = 5
WRITTEN = {}  # functions that build a model, by their names


def written(build):
    """Register a function or class that builds a model."""
    WRITTEN[build.__name__] = build
    return build


def block(inputs, outputs, stride=1, activation=nn.ReLU):
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


class Body(nn.Module):
    """Two blocks with something between them, pooling, and a linear layer."""

    def __init__(self, middle=None):
        super().__init__()
        self.first, self.second = block(3, 8, 2), block(8, 8)
        self.last = nn.Linear(8, CLASSES)
        self.middle = nn.Identity() if middle is None else middle

    def head(self, x):
        return self.last(self.second(x).mean((2, 3)))

    def forward(self, x):
        return self.head(self.middle(self.first(x)))


def between(function):
    """Return a class of models that call a function between their two blocks."""

    class Between(Body):
        def forward(self, x):
            return self.head(function(self, self.first(x)))

    return Between


# ---- what torch.fx cannot see -------------------------------------------------------------------
@written
class SliceOverwritten(Body):
    def forward(self, x):
        x = self.first(x)
        x[:, :4].mul_(3)
        return self.head(x)


@written
class SliceAssigned(Body):
    def forward(self, x):
        x = self.first(x)
        x[:, -1] = x[:, 0] * 0.5
        x[..., 1:3] = 0
        return self.head(x)


@written
class ImagesOverwritten(Body):
    def forward(self, x):
        x -= 0.3
        x.div_(0.7)
        return super().forward(x)


@written
class CopyOfImagesOverwritten(Body):
    def forward(self, x):
        x = x.clone()
        x[:, 0] = x[:, 0] * 3 + 1
        return super().forward(x)


@written
class SumUnderTwoNames(Body):
    def __init__(self):
        super().__init__(nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x):
        x = shortcut = self.first(x)
        x += self.middle(x)
        return self.head(x + shortcut)


@written
class ReluThroughAView(Body):
    def forward(self, x):
        x = self.first(x) - 0.5
        x.flatten(1).relu_()
        return self.head(x)


@written
class SplitOverwritten(Body):
    def forward(self, x):
        x = self.first(x)
        left, right = x.chunk(2, 1)
        left.add_(right)
        return self.head(x)


@written
def pre_hook_of_the_model():
    model = Body()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3 + 1,))
    return model


@written
def hook_of_the_model():
    model = Body()
    model.register_forward_hook(lambda module, inputs, logits: logits * 2 - 1)
    return model


@written
def hooks_of_layers():
    model = Body(nn.Conv2d(8, 8, 1))
    model.middle.register_forward_pre_hook(lambda module, inputs: (inputs[0].clamp(max=2),))
    model.middle.register_forward_hook(lambda module, inputs, result: result + inputs[0])
    model.second[1].register_forward_hook(lambda module, inputs, result: result * 0.5)
    return model


@written
class OptionalScale(Body):
    def forward(self, x, scale=None, *, labels=None, return_features=False):
        x = self.first(x)
        if scale is None:
            x = x * 2
        logits = self.head(x)
        if labels is not None:
            return F.cross_entropy(logits, labels)
        return (logits, x) if return_features else logits


@written
class DefaultNumber(Body):
    def forward(self, x, scale=1.5):
        return self.head(self.first(x) * scale)


@written
class AsksForTypes(Body):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = x * 2
        features = self.first(x)
        if isinstance(features, (list, tuple)):
            features = features[0]
        if torch.is_tensor(features) and features.dim() == 4 and len(features.shape) == 4:
            features = features + 0.25
        return self.head(features)


@written
class AsksForSizes(Body):
    def forward(self, x):
        _, _, h, w = x.shape
        if h % 2 == 0 and w > 8:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.first(x)
        scale = 1 / math.sqrt(x.size(1))
        return self.head(x * scale * math.sqrt(int(x.shape[1])))


@written
class CountsCalls(Body):
    """Keeps what it saw, which changes nothing."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        self.features = self.first(x)
        return self.head(self.features)


@written
class BatchOfOne(Body):
    def forward(self, x):
        if x.shape[0] == 1:
            x = torch.cat([x, x])
            return super().forward(x)[:1]
        return super().forward(x)


# ---- how tensors are flattened, joined and cut --------------------------------------------------
@written
class FlattenedByView(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = block(3, 8, 4), nn.Linear(128, CLASSES)

    def forward(self, x):
        x = self.body(x)
        x = x.view(x.size(0), -1)
        return self.last(x)


@written
class FlattenedOtherwise(FlattenedByView):
    def forward(self, x):
        batch_size, channels, height, width = self.body(x).shape
        x = self.body(x).reshape([batch_size, channels * height * width])
        return self.last(x.view((-1, 128)))


@written
class FlattenedByFeatures(FlattenedByView):
    def num_flat_features(self, x):
        size = 1
        for s in x.size()[1:]:
            size *= s
        return size

    def forward(self, x):
        x = self.body(x)
        return self.last(x.view(-1, self.num_flat_features(x)))


@written
class ShuffledByHand(Body):
    def forward(self, x):
        x = self.first(x)
        n, c, h, w = x.data.size()
        x = x.view(n, 2, c // 2, h, w)
        x = torch.transpose(x, 1, 2).contiguous()
        return self.head(x.view(n, -1, h, w))


@written
class Focus(Body):
    def __init__(self):
        super().__init__()
        self.first = block(12, 8)

    def forward(self, x):
        parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return super().forward(torch.cat(parts, 1))


@written
class StemOfPixels(Body):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.PixelUnshuffle(2), block(12, 8))


# ---- attention, gates, poolings -----------------------------------------------------------------
@written
class SqueezeExcite(Body):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x):
        x = self.first(x)
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = self.up(F.relu(self.down(y))).sigmoid().view(b, c, 1, 1)
        return self.head(x * y.expand_as(x))


@written
class SpatialAttention(Body):
    """Channel maxima and means, as in CBAM."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        x = self.first(x)
        largest, _ = torch.max(x, dim=1, keepdim=True)
        pooled = torch.cat([largest, torch.mean(x, dim=1, keepdim=True)], dim=1)
        return self.head(x * torch.sigmoid(self.gate(pooled)))


@written
class ChannelAttention(Body):
    """Attention over channels by a convolution along them, as in ECA-Net."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        x = self.first(x)
        y = F.adaptive_avg_pool2d(x, 1)
        y = self.gate(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return self.head(x * y.sigmoid())


@written
class GeneralizedMean(Body):
    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        x = self.second(self.first(x)).clamp(min=1e-6).pow(self.power)
        return self.last(F.adaptive_avg_pool2d(x, (1, 1)).pow(1.0 / self.power).flatten(1))


@written
class LearnedGates(Body):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 0.7))
        self.register_buffer("shift", torch.linspace(-1, 1, 8))

    def forward(self, x):
        x = self.first(x)
        return self.head(self.scale * x + self.shift[None, :, None, None])


# ---- functions ----------------------------------------------------------------------------------
def function_between(name, function):
    """Register a model that calls a function between its blocks."""
    WRITTEN[name] = between(function)


function_between("cast", lambda self, x: x.to(torch.float32).float())
function_between("norm_as_a_function", lambda self, x: F.layer_norm(x, x.shape[1:]))
function_between("hard_sigmoid_by_hand", lambda self, x: x * (x + 3).clamp(0, 6) / 6)
function_between("one_sided_clamps", lambda self, x: x.clamp(max=2).clamp_min(0.1))
function_between("numpys_names", lambda self, x: x - x.mean(axis=(2, 3), keepdims=True))
function_between("maxima_of_two", lambda self, x: torch.maximum(x, 0.5 * x.flip(1)))
function_between("uneven_average", lambda self, x: F.avg_pool2d(x, 3, 2, 1, True))
function_between("numbers_first", lambda self, x: 1 - x / 4 + 2 * x)
function_between("normalized", lambda self, x: 4 * F.normalize(x, dim=1))
function_between("factor_of_a_sum", lambda self, x: torch.add(x, x.roll(1, 1), alpha=0.5))
function_between(
    "standardized", lambda self, x: (x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), keepdim=True)
)
function_between("repeated", lambda self, x: x[:, :4].repeat(1, 2, 1, 1))
function_between("indexed_tensor", lambda self, x: x[:, torch.tensor([3, 1, 0, 2, 7, 5, 6, 4])])
function_between("several_maxima", lambda self, x: x - 0.1 * x.max(dim=1, keepdim=True).values)


@written
def pixel_shuffle():
    return Body(nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)))


@written
def circular_padding():
    return Body(nn.Sequential(nn.CircularPad2d(1), nn.Conv2d(8, 8, 3)))


@written
def activations_with_weights():
    return Body(nn.Sequential(nn.Conv2d(8, 8, 1), nn.PReLU(8), nn.Conv2d(8, 8, 1), nn.SELU()))


@written
def instance_norm():
    return Body(nn.Sequential(nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8, affine=True)))


# ---- weights ------------------------------------------------------------------------------------
@written
def old_weight_norm():
    conv = nn.utils.weight_norm(nn.Conv2d(8, 8, 3, 1, 1))
    return Body(nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU()))


@written
def old_spectral_norm():
    return Body(nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(8, 8, 3, 1, 1)), nn.ReLU()))


class Symmetric(nn.Module):
    def forward(self, weight):
        return (weight + weight.flip(-1)) / 2


@written
def parametrized():
    conv = nn.Conv2d(8, 8, 3, 1, 1)
    parametrize.register_parametrization(conv, "weight", Symmetric())
    return Body(conv)


@written
class Standardized(Body):
    """Weights that are standardized at each call."""

    def __init__(self):
        super().__init__(nn.Conv2d(8, 8, 3, 1, 1))

    def forward(self, x):
        weight = self.middle.weight
        deviation, mean = torch.std_mean(weight, dim=[1, 2, 3], keepdim=True)
        x = F.conv2d(self.first(x), (weight - mean) / (deviation + 1e-5), self.middle.bias, 1, 1)
        return self.head(x)


@written
class Tied(Body):
    def __init__(self):
        super().__init__()
        self.c, self.d = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.d.weight = self.c.weight

    def forward(self, x):
        return self.head(F.relu(self.d(F.relu(self.c(self.first(x))))))


@written
class UnusedParts(Body):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, x):
        if self.training:
            return self.auxiliary(self.first(x).mean((2, 3)))
        return super().forward(x)


# ---- names and wrappers -------------------------------------------------------------------------
@written
class TakenNames(nn.Module):
    """Names that modules, graphs and what is added to them have, too."""

    def __init__(self):
        super().__init__()
        self.graph, self.code, self.constants = block(3, 8, 2), block(8, 8), block(8, 8)
        self.activation_quantizers, self.functional_layers = block(8, 8), nn.Linear(8, CLASSES)
        self.keys, self.items, self.values = nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Sigmoid()

    def forward(self, graph):
        x = self.constants(self.code(self.graph(graph))).float()
        x = self.activation_quantizers(self.values(self.items(self.keys(x)))).type(torch.float32)
        return self.functional_layers(x.mean((-2, -1)))


@written
def data_parallel():
    return nn.DataParallel(Body())


@written
def data_parallel_inside():
    model = Body()
    model.first = nn.DataParallel(model.first)
    return model


@written
def compiled_inside():
    model = Body()
    model.second = torch.compile(model.second)
    return torch.compile(model)


@written
def averaged():
    return torch.optim.swa_utils.AveragedModel(Body())


@written
class LogSoftmax(Body):
    def forward(self, x):
        return F.log_softmax(super().forward(x), dim=1)


@written
class Scaled(Body):
    def forward(self, x):
        return 4000 * super().forward(x)


@torch.no_grad()
def build(name):
    """Return a model with statistics of images, whose logits tell images apart."""
    torch.manual_seed(0)
    model = WRITTEN[name]()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    trained = model._orig_mod if name == "compiled_inside" else model
    if name == "compiled_inside":
        inner, trained.second = trained.second, trained.second._orig_mod
    trained.train()
    for seed in range(2):
        trained(images(16, seed))
    trained.eval()
    if name == "compiled_inside":
        trained.second = inner
    return model.eval()


def images(count, seed=1):
    """Return coloured patches with noise, normalized [count, *SHAPE]."""
    rng = torch.Generator().manual_seed(seed)
    patches = F.interpolate(torch.rand(count, 3, 4, 4, generator=rng), size=SHAPE[1:])
    return 4 * (patches + 0.1 * torch.randn(count, *SHAPE, generator=rng)) - 2
