"""All settings, each once: default, unit, range.

Each part of the package takes the configuration that it needs. `RunConfig` holds them all; the
command line, YAML and the keywords of the Python API see it as one flat list of options.
"""

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zscgan_ext.config.fields import SIZES, STEPS, Configuration, option_of, setting
from zscgan_ext.config.values import (
    parse_bits,
    parse_formats,
    parse_image_size,
    parse_interval,
    parse_layer_pattern,
    resolve_device,
)
from zscgan_ext.errors import InputError, did_you_mean
from zscgan_ext.images.limits import LARGEST_IMAGE_SIZE

if TYPE_CHECKING:
    import torch

# What a preset sets, by option, where nothing else was said.
PRESETS = {
    "instant": {"fine_tuning_steps": 0},
    "quick": {"synthesis_steps": 100, "fine_tuning_steps": 200},
    "default": {"synthesis_steps": 1000, "fine_tuning_steps": 400},
    "thorough": {"synthesis_steps": 3000, "fine_tuning_steps": 4000},
}
# What a target sets, by option, where nothing else was said.
TARGETS = {
    "onnxruntime": {},
    "openvino": {"export": "onnx"},
    "tensorrt": {"export": "onnx", "bits": "w8a8"},
    "pt2e": {"export": "pt2", "bits": "w8a8"},
}
ACTIVATION_BITS_OF_TENSORRT = 8
WITH_GENERATOR = tuple(preset for preset in PRESETS if preset != "instant")


@dataclass(frozen=True)
class GeneratorConfig(Configuration):
    """How the generator is learned from the classifier."""

    distance: Literal["gaussian_kl", "mse", "std_mse", "l2"] = setting("gaussian_kl")
    """distance between the batch-norm statistics of generated images and the stored ones"""
    latent_dim: int = setting(64, "N", above=0, at_most=SIZES)
    """length of the generator's latent vector"""
    batch_size: int = setting(64, "N", above=0, at_most=SIZES)
    """images in a batch of generator learning and of calibration"""
    steps: int = setting(
        PRESETS["default"]["synthesis_steps"],
        "N",
        option="synthesis_steps",
        above=0,
        at_most=STEPS,
    )
    """steps of generator learning"""
    learning_rate: float = setting(1e-2, "X", option="synthesis_learning_rate", above=0)
    """Adam's learning rate for the generator"""
    cross_entropy_weight: float = setting(1.0, "X", at_least=0)
    """weight of the teacher's cross-entropy in the generator's loss"""
    batch_norm_weight: float = setting(10.0, "X", at_least=0)
    """weight of the batch-norm distance in the generator's loss"""
    diversity_weight: float = setting(0.1, "X", at_least=0)
    """weight of the distance between images of one class in the generator's loss (0: as in
    ZS-CGAN)"""


@dataclass(frozen=True)
class QuantizationConfig(Configuration):
    """How the classifier is quantized, up to the ranges that fine-tuning starts from."""

    bits: str = setting("w4a4", "wNaN")
    """width of weights and activations, bits, 2 to 8 each; auto: the weights of each layer have
    the width that loses the least for --average-weight-bits, activations 8 bits (wautoa4: 4)"""
    average_weight_bits: float = setting(4.0, "X", above=0, at_most=8)
    """bits of all quantized weights on average, at most, with --bits auto"""
    layer_bits: tuple[str, ...] | None = setting(None, "PATTERN=BITS")
    """layers with widths of their own, as 'features.0.*=w8a8': names of layers or of modules that
    hold them, with * and ?; bits of the weights and of what the layers read (w8: of the weights
    only; float: neither is quantized); of several that match a layer, the last one counts (None: no
    layer)"""
    keep_float: tuple[str, ...] | None = setting(None, "PATTERN")
    """layers that are not quantized, named like those of --layer-bits, over which this wins (None:
    no layer)"""
    scheme: Literal["deploy", "paper"] = setting("deploy")
    """deploy: what an int8 runtime executes; paper: comparable with published tables"""
    rounding: Literal["squant", "nearest"] = setting("squant", renamed={"balanced": "squant"})
    """where weights start from; squant: rounding errors cancel in each kernel and output channel
    (SQuant), which needs no image either"""
    ranges: Literal["min_kl", "narrower", "batch_norm", "images"] = setting(
        "min_kl", renamed={"least_divergence": "min_kl"}
    )
    """initial ranges of activations, before fine-tuning; batch_norm: from batch-norm statistics,
    where an activation follows one; images: from generated images; narrower: the narrower of both;
    min_kl: whichever of the three brings the logits clearly nearest to the classifier's, by their
    KL divergence, or the narrower"""
    calibration_batches: int = setting(8, "N", above=0, at_most=STEPS)
    """batches of images that ranges are taken from"""
    target: Literal["onnxruntime", "openvino", "tensorrt", "pt2e"] = setting("onnxruntime")
    """runtime that is to execute the quantized classifier; tensorrt: symmetric int8 activations,
    quantized where layers read them, of 8 bits; pt2e: PyTorch, by a program that its backends
    lower; for both bits w8a8 where none are given"""

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        _, activation_bits = parse_bits(self.bits)
        for text in self.layer_bits or ():
            parse_layer_pattern(text)
        if self.target == "tensorrt":
            self._check_fits_tensorrt(activation_bits)

    def _check_fits_tensorrt(self, activation_bits: int) -> None:
        if self.scheme != "deploy":
            raise InputError(f"target: tensorrt needs the scheme deploy, got {self.scheme}")
        if activation_bits != ACTIVATION_BITS_OF_TENSORRT:
            raise InputError(
                f"target: tensorrt executes activations of 8 bits, got {self.bits}; give bits "
                "w8a8, or w4a8 for narrower weights"
            )

    @property
    def chooses_layer_bits(self) -> bool:
        """Whether a budget decides about the widths of weights."""
        return parse_bits(self.bits)[0] is None


@dataclass(frozen=True)
class FineTuningConfig(Configuration):
    """How the quantized classifier is fine-tuned to answer as the float one does."""

    batch_size: int = setting(32, "N", option="fine_tuning_batch_size", above=0, at_most=SIZES)
    """images in a batch of fine-tuning"""
    steps: int = setting(
        PRESETS["default"]["fine_tuning_steps"],
        "N",
        option="fine_tuning_steps",
        at_least=0,
        at_most=STEPS,
    )
    """steps of fine-tuning the quantized classifier (0: only calibrate)"""
    learning_rate: float = setting(5e-4, "X", option="fine_tuning_learning_rate", above=0)
    """Adam's learning rate for the quantized classifier, divided by its number of quantization
    steps: by 3 for 2 bits, by 15 for 4 bits; for weights it is 100 times as high, and counts
    quantization steps of their layer"""
    distillation_weight: float = setting(1.0, "X", at_least=0)
    """weight of the distillation from the float classifier in fine-tuning"""
    feature_weight: float = setting(100.0, "X", at_least=0)
    """weight of the distance between the feature maps of both in fine-tuning"""
    label_weight: float = setting(0.0, "X", at_least=0)
    """weight of the cross-entropy with the generator's labels in fine-tuning"""
    temperature: float = setting(4.0, "X", above=0)
    """temperature of the distillation's softmax"""
    mirror: bool = setting(True)
    """mirror half of the images of fine-tuning, left to right, at random"""


@dataclass(frozen=True)
class ExecutionConfig(Configuration):
    """On what, and how, training steps are executed."""

    device: str = setting("auto", "DEVICE")
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting("auto")
    """dtype of the forward and backward passes (auto: bfloat16 on a GPU that computes in it, and on
    a CPU that multiplies it where the first steps are clearly faster in it, otherwise float32);
    float16 on CUDA only"""
    memory_format: Literal["auto", "channels_last", "contiguous"] = setting("auto")
    """layout of images and feature maps in memory (auto: channels_last)"""
    keep_freed_memory: bool = setting(True)
    """on a CPU with glibc, keep freed memory for the next step instead of returning it"""
    cuda_graphs: Literal["auto", "on", "off"] = setting("auto")
    """launch a training step as one CUDA graph (auto: on CUDA, except in float16)"""
    compile: bool = setting(False)
    """compile the training steps with torch.compile"""

    def __post_init__(self) -> None:
        """Check every setting, as far as that needs no device."""
        super().__post_init__()
        if self.cuda_graphs == "on" and self.precision == "float16":
            raise InputError("cuda_graphs: expected auto or off with float16, got on")

    def resolved_device(self) -> "torch.device":
        """Return the device, which exists.

        Raises:
            InputError: if it does not, or cannot execute steps as the other settings say.
        """
        device = resolve_device(self.device)
        if self.precision == "float16" and device.type != "cuda":
            raise InputError(f"precision: expected float32 or bfloat16 on {device}, got float16")
        if self.cuda_graphs == "on" and device.type != "cuda":
            raise InputError(f"cuda_graphs: expected auto or off on {device}, got on")
        return device


@dataclass(frozen=True)
class RunConfig(Configuration):
    """What to quantize, how, and where the results go."""

    classifier: str = setting("resnet20", "NAME")
    """bundled classifier (resnet20, mobilenet_v2_small), torchvision:NAME, timm:NAME,
    module:function that returns a model, or a .pt2 file of torch.export"""
    weights: Path | None = setting(None, "FILE")
    """safetensors or state-dict file with the classifier's weights (None: those it comes with,
    which torchvision and timm download)"""
    num_classes: int | None = setting(None, "N", above=0, at_most=SIZES)
    """number of classes (None: what the classifier gives)"""
    image_size: int | str | None = setting(None, "PIXELS", above=0, at_most=LARGEST_IMAGE_SIZE)
    """height and width of the classifier's input, pixels, such as 224 or 96x192 (None: what a
    bundled classifier, torchvision or timm knows, or 224)"""
    mean: tuple[float, ...] | None = setting(None, "MEAN")
    """mean that the classifier's input is normalized with, one for each channel, pixels from 0 to
    1 (None: what a bundled classifier, torchvision or timm knows, or ImageNet's)"""
    std: tuple[float, ...] | None = setting(None, "STD")
    """standard deviation that the classifier's input is normalized with, one for each channel,
    pixels from 0 to 1 (None: as for the mean)"""

    output_index: int | None = setting(None, "N", at_least=0, at_most=SIZES)
    """which of a classifier's several outputs are the logits, counted from 0 (None: the first that
    can be)"""
    head: Literal["auto", "single-label", "multi-label"] = setting("auto")
    """what the logits mean; single-label: one class applies to each image; multi-label: each label
    applies or not, by a sigmoid of its own; auto: multi-label for a classifier of several outputs
    that ends in a sigmoid, otherwise single-label"""

    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    preset: Literal["instant", "quick", "default", "thorough"] = setting("default")
    """how much to spend: seconds, or about 1, 4 or 15 minutes for resnet20 on two cores; sets the
    steps of both trainings where they are not given; instant: no generator, no images, no
    fine-tuning, the batch-norm statistics tell everything"""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    training: Literal["staged", "alternating"] = setting("staged")
    """staged: the generator is learned before fine-tuning; alternating: its training is continued,
    one step before each step of fine-tuning, at a tenth of its learning rate"""
    fine_tuning: FineTuningConfig = field(default_factory=FineTuningConfig)

    seed: int = setting(0, "N", at_least=0, at_most=2**50)
    """seed of every random number"""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    output: Path | None = setting(None, "DIR")
    """folder of the run (None: runs/<classifier>-<bits>-<scheme>-seed<seed>, of the target
    tensorrt with its name in place of the scheme's)"""
    overwrite: bool = setting(False)
    """replace the run that the output folder holds"""
    resume: Path | None = setting(None, "RUN")
    """folder of a run to resume, from its newest checkpoint and with its settings (None: a new
    run)"""
    checkpoint_every: str = setting("10min", "INTERVAL")
    """steps (500) or minutes (10min) between two checkpoints; none: only when a signal stops the
    run"""
    keep_checkpoints: int = setting(2, "N", above=0)
    """checkpoints that are kept, the newest ones"""
    evaluation_data: str | None = setting(None, "DATA")
    """labelled images that measure accuracy: fashion-mnist, a folder of idx files or an ImageFolder
    tree; where several labels apply, a folder with labels.csv (None: the bundled test images for a
    bundled classifier, otherwise no accuracy)"""
    calibration_data: str | None = setting(None, "DATA")
    """images like those of the classifier's training, without labels, many or five: a folder with
    image files anywhere below, fashion-mnist or a folder of idx files (None: generated ones only);
    up to half of each batch that ranges and fine-tuning take is theirs"""
    reference_data: str | None = setting(None, "DATA")
    """labelled training images for the comparison with fine-tuning on real images, given like
    --evaluation-data (None: no comparison)"""
    stop_after: Literal["synthesis"] | None = setting(None)
    """stage to stop after (None: run them all)"""
    export: str = setting("safetensors", "FORMATS")
    """files to deploy: safetensors, onnx (proved and timed in ONNX Runtime), pt2 (a program of
    torch.export with quantized_decomposed operators), several with a comma between them, or none"""
    input: Literal["float32", "uint8", "uint8-nchw"] = setting("float32")
    """what an ONNX file takes; float32: normalized images [N, C, H, W]; uint8: pixels [N, H, W, C]
    as decoders give them, which the file normalizes; uint8-nchw: pixels [N, C, H, W]"""
    resize_input: bool = setting(False)
    """let an ONNX file of pixels take pictures of any size, which it resizes and crops"""
    report: bool = setting(True)
    """write report.html at the end: accuracy, losses, images, errors by layer"""
    tensorboard: bool = setting(False)
    """log losses and generated images for TensorBoard too"""
    log_interval: int = setting(50, "N", above=0, at_most=STEPS)
    """steps between two entries in the log"""
    profile: bool = setting(False)
    """profile some steps of each training: trace.json for Chrome, profile.txt by op"""

    def __post_init__(self) -> None:
        """Check every setting of the run itself."""
        super().__post_init__()
        parse_formats(self.export)
        parse_image_size(self.image_size)
        parse_interval(self.checkpoint_every)
        check_normalization(self.mean, self.std)
        check_input(self.input, self.resize_input)
        if not self.learns_generator:
            self._check_needs_no_images()

    @property
    def learns_generator(self) -> bool:
        """Whether a generator is learned. Without one there are no images, for whatever use."""
        return self.preset in WITH_GENERATOR

    def _check_needs_no_images(self) -> None:
        """Require that nothing is asked for that would take generated images."""
        generator, expected = self.generator.steps, PRESETS["default"]["synthesis_steps"]
        refused = {
            "fine_tuning_steps": self.fine_tuning.steps > 0,
            "synthesis_steps": generator != expected,
            "ranges": self.quantization.ranges in ("images", "narrower"),
            "training": self.training != "staged",
            "stop_after": self.stop_after is not None,
            "calibration_data": self.calibration_data is not None,
        }
        for name, is_refused in refused.items():
            if is_refused:
                value = OPTIONS[name].value_in(self)
                raise InputError(
                    f"{name}: {value} needs generated images, and the preset instant has none; "
                    "leave it out, or take another preset"
                )

    @classmethod
    def of_options(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Return a configuration from options by name.

        A preset and a target set what is not among them.

        Raises:
            InputError: if one is unknown, of another type or out of range.
        """
        return cls().changed(**{**defaults_of(values), **values})

    def changed(self, **values: Any) -> "RunConfig":
        """Return a configuration in which some options have other values.

        Raises:
            InputError: if one is unknown, of another type or out of range.
        """
        by_section: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in OPTIONS:
                raise InputError(f"unknown setting {name}{did_you_mean(name, list(OPTIONS))}")
            by_section.setdefault(OPTIONS[name].section, {})[OPTIONS[name].field.name] = value
        own = by_section.pop("", {})
        sections = {name: replace(getattr(self, name), **v) for name, v in by_section.items()}
        return replace(self, **own, **sections)

    def options(self) -> dict[str, Any]:
        """Return the values of all options by name."""
        return {name: option.value_in(self) for name, option in OPTIONS.items()}

    def output_folder(self) -> Path:
        """Return the folder of the run: `output`, or a name made of the main settings."""
        if self.output is not None:
            return self.output
        classifier = re.sub(r"[^\w.]+", "-", self.classifier)
        bits, kind = self.quantization.bits.lower(), str(self.quantization.scheme)
        if self.quantization.target == "tensorrt":
            kind = "tensorrt"
        return Path("runs", f"{classifier}-{bits}-{kind}-seed{self.seed}")


def defaults_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the preset and the target among these options set; nothing without them."""
    preset = PRESETS.get(str(options.get("preset")), {})
    return {**preset, **TARGETS.get(str(options.get("target")), {})}


SECTIONS: dict[str, type[Configuration]] = {
    "quantization": QuantizationConfig,
    "generator": GeneratorConfig,
    "fine_tuning": FineTuningConfig,
    "execution": ExecutionConfig,
}


@dataclass(frozen=True)
class Option:
    """One setting as the command line and YAML see it."""

    configuration: type[Configuration]
    section: str  # the field of `RunConfig` that holds the configuration; empty for its own
    field: Field[Any]

    def value_in(self, config: RunConfig) -> Any:
        """Return its value."""
        return getattr(getattr(config, self.section) if self.section else config, self.field.name)


def all_options() -> dict[str, Option]:
    """Return all options by name, those of a section where it stands in `RunConfig`."""
    found: dict[str, Option] = {}
    for own in fields(RunConfig):
        section = SECTIONS.get(own.name)
        if section is None:
            found[option_of(own)] = Option(RunConfig, "", own)
            continue
        for each in fields(section):  # type: ignore[arg-type]
            found[option_of(each)] = Option(section, own.name, each)
    return found


OPTIONS = all_options()


def check_input(form: str, resizes: bool) -> None:
    """Require pixels where pictures are to be resized."""
    if resizes and form == "float32":
        raise InputError("resize_input: needs input uint8 or uint8-nchw, got float32")


def check_normalization(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Require a mean and a positive standard deviation for the same number of channels."""
    if mean is not None and std is not None and len(mean) != len(std):
        raise InputError(f"mean, std: expected as many values, got {len(mean)} and {len(std)}")
    if mean == () or std == ():
        raise InputError("mean, std: expected a number for each channel, got none")
    if std is not None and min(std) <= 0:
        raise InputError(f"std: expected numbers above 0, got {min(std)}")
