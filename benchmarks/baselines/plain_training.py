"""Both training steps as they are usually written: plain modules, hooks and autograd.

They learn the same from the same shapes as the trainers of the package, and use none of its ops: a
generator of upsampling, convolution, `nn.BatchNorm2d`, noise and LeakyReLU; hooks that take the
statistics of a classifier's batch-norm inputs; quantizers of elementwise functions. Eager, in the
precision and memory format of the trainers, and under torch.compile, they are what these are
compared with.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines import plain_torch
from zscgan_ext.classifiers.batch_norm import batch_norm_layers, stored
from zscgan_ext.classifiers.graph import activate
from zscgan_ext.config.configs import FineTuningConfig, GeneratorConfig
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.feature_distillation import pair_features
from zscgan_ext.quantization.fine_tuning import parameter_groups, student_loss
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizer_placement import ACTIVATION_QUANTIZERS
from zscgan_ext.quantization.quantizers import ActivationQuantizer
from zscgan_ext.synthesis.generator import (
    NEGATIVE_SLOPE,
    NOISE,
    ConditionalGenerator,
    UpsampleBlock,
)
from zscgan_ext.synthesis.generator_training import log_pair_distance, paired
from zscgan_ext.synthesis.penultimate_features import PenultimateFeatures
from zscgan_ext.training.execution import Execution
from zscgan_ext.training.trainer import ParameterGroup

Loss = Callable[..., Tensor]


class Noise(nn.Module):
    """Add normal noise."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same."""
        return x + NOISE * torch.randn_like(x)


def doubling(convolution: nn.Conv2d) -> list[nn.Module]:
    """Return nearest doubling, and a copy of a convolution as torch has it."""
    bias = convolution.bias is not None
    sizes = (convolution.in_channels, convolution.out_channels)
    plain = nn.Conv2d(*sizes, 3, padding=1, bias=bias)
    plain.load_state_dict(convolution.state_dict())
    return [nn.Upsample(scale_factor=2), plain]


class PlainGenerator(ConditionalGenerator):
    """The generator with the layers that it stands for, and the same weights after a seed."""

    def __init__(self, num_classes: int, latent_dim: int, preprocessing: Preprocessing) -> None:
        super().__init__(num_classes, latent_dim, preprocessing)
        first, last = nn.BatchNorm2d(self.bn.num_features), self.to_pixels
        layers: list[nn.Module] = [first, nn.LeakyReLU(NEGATIVE_SLOPE)]
        for block in self.blocks:
            assert isinstance(block, UpsampleBlock)
            norm = nn.BatchNorm2d(block.bn.num_features)
            layers += [*doubling(block.conv), norm, Noise(), nn.LeakyReLU(NEGATIVE_SLOPE)]
        doubles_last = type(last) is not nn.Conv2d
        layers += [*(doubling(last) if doubles_last else [last])]
        self.layers = nn.Sequential(*layers)
        self.last_norm = nn.BatchNorm2d(preprocessing.channels)
        del self.bn, self.blocks, self.to_pixels, self.pixel_bn

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Map latent vectors [N, latent_dim] and labels [N] to normalized images [N, C, H, W]."""
        joined = torch.cat([latent, self.embedding(labels)], dim=1)
        x = self.layers(self.linear(joined).view(len(latent), -1, *self.map_size))
        _, height, width = self.image_shape
        pixels = torch.sigmoid(2 * self.last_norm(x[:, :, :height, :width]))
        return (pixels - self.get_buffer("mean")) / self.get_buffer("std")


class HookedTeacher:
    """A frozen classifier whose batch-norm inputs hooks measure."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self.layers = batch_norm_layers(model)
        self.statistics: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            layer.register_forward_pre_hook(self.measure)
        self.features = PenultimateFeatures(model)

    def measure(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep mean and variance of a layer's input."""
        self.statistics.append(plain_torch.batch_norm_statistics(inputs[0]))

    def logits_and_distance(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [N, num_classes], the distance of statistics, and features [N, F]."""
        self.statistics.clear()
        logits = self.model(images)
        distances = [
            plain_torch.gaussian_kl(
                mean, variance, stored(layer.running_mean), stored(layer.running_var), layer.eps
            )
            for layer, (mean, variance) in zip(self.layers, self.statistics, strict=True)
        ]
        return logits, torch.stack(distances).mean(), self.features.take(logits)


def plain_step(
    groups: Sequence[ParameterGroup],
    loss: Loss,
    sample: Callable[[], tuple[Tensor, ...]],
    execution: Execution,
) -> Callable[[], Tensor]:
    """Return a step of torch's own optimizer, as it comes."""
    optimizer = torch.optim.Adam(
        [{"params": group.parameters, "lr": group.learning_rate} for group in groups]
    )
    precision = execution.new_precision()
    computed = torch.compile(loss) if execution.compile else loss

    def step() -> Tensor:
        batch = sample()
        with precision.autocast():
            value = computed(*batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def generator_step(
    generator: PlainGenerator,
    model: nn.Module,
    config: GeneratorConfig,
    execution: Execution,
    rng: torch.Generator,
) -> Callable[[], Tensor]:
    """Return a step of generator learning."""
    teacher = HookedTeacher(model)

    def sample() -> tuple[Tensor, Tensor]:
        latent, labels = generator.random_inputs(config.batch_size, rng)
        return latent, paired(labels)

    def loss(latent: Tensor, labels: Tensor) -> Tensor:
        images = to_memory_format(generator(latent, labels), execution.memory_format)
        logits, distance, features = teacher.logits_and_distance(images)
        cross_entropy = F.cross_entropy(logits.float(), labels)
        difference = log_pair_distance(features)
        return (
            config.cross_entropy_weight * cross_entropy
            + config.batch_norm_weight * distance
            - config.diversity_weight * difference
        )

    group = ParameterGroup(list(generator.parameters()), config.learning_rate)
    return plain_step([group], loss, sample, execution)


# ---- fine-tuning --------------------------------------------------------------------------------


class PlainQuantizer(ActivationQuantizer):
    """An activation quantizer of elementwise functions."""

    def forward(self, x: Tensor, activation: str = "none", bias: Tensor | None = None) -> Tensor:
        """Quantize any shape."""
        x = activate(x, activation)
        if not self.enabled:
            return x
        low, high = self.quant_range.quant_min, self.quant_range.quant_max
        settings = (low, high, None, (x.numel() * high) ** -0.5)
        return plain_torch.lsq_fake_quantize(
            x, self.log_scale.exp(), self.zero_point.detach(), *settings
        )


class PlainStudent(QuantizedClassifier):
    """A student with such quantizers for activations and weights.

    Args:
        student: whose graph and parameters are taken over.
    """

    def __init__(self, student: QuantizedClassifier) -> None:
        quantizers = student.graph.get_submodule(ACTIVATION_QUANTIZERS)
        for name, quantizer in student.named_activation_quantizers().items():
            plain = PlainQuantizer(quantizer.quant_range).to(quantizer.log_scale.device)
            plain.load_state_dict(quantizer.state_dict())
            plain.enabled = quantizer.enabled
            setattr(quantizers, name, plain)
        super().__init__(student.graph, student.scheme, student.image_shape)

    def quantize_weights(self) -> list[Tensor]:
        """Quantize the weights of all layers."""
        return [
            plain_torch.lsq_fake_quantize(
                layer.layer.weight,
                layer.log_scale.exp(),
                layer.zero_point,
                layer.quant_range.quant_min,
                layer.quant_range.quant_max,
                0,
                (layer.layer.weight[0].numel() * layer.quant_range.quant_max) ** -0.5,
            )
            for layer in self.layers
        ]


def fine_tuning_step(
    student: QuantizedClassifier,
    model: Any,
    batches: Iterator[tuple[Tensor, Tensor]],
    config: FineTuningConfig,
    execution: Execution,
) -> Callable[[], Tensor]:
    """Return a step of fine-tuning a calibrated student of a traced classifier."""
    plain = PlainStudent(student).eval()
    student_graph, teacher_graph = pair_features(plain, model, wanted=True)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits, teacher_features = teacher_graph(images)
        with plain.quantized_weights():
            logits, features = student_graph(images)
        distances = [
            (ours - theirs).square().mean() / theirs.square().mean()
            for ours, theirs in zip(features, teacher_features, strict=True)
        ]
        distance = torch.stack(distances).mean()
        divergence = student_loss(logits, teacher_logits, labels, config)
        return divergence + config.feature_weight * distance

    return plain_step(parameter_groups(plain, config), loss, lambda: next(batches), execution)
