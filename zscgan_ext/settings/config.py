"""Every setting of the main program, once: default, unit, range."""

import math
import numbers
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import simple_parsing

from zscgan_ext.errors import InputError, did_you_mean
from zscgan_ext.images.preprocessing import LARGEST_IMAGE_SIZE
from zscgan_ext.settings.values import parse_bits, parse_formats, parse_interval, resolve_device

# What a preset sets, where nothing else was said.
PRESETS = {
    "quick": {"synthesis_steps": 100, "fine_tuning_steps": 200},
    "default": {"synthesis_steps": 1000, "fine_tuning_steps": 400},
    "thorough": {"synthesis_steps": 3000, "fine_tuning_steps": 4000},
}


def setting(default: Any, metavar: str, nargs: str | None = None) -> Any:
    """Declare a setting whose value `--help` shows as `metavar`."""
    return simple_parsing.field(default=default, metavar=metavar, nargs=nargs)


def choice_or_none(*choices: str) -> Any:
    """Declare a setting that is one of `choices`, or None."""
    return simple_parsing.field(default=None, choices=choices, type=str, nargs=None)


@dataclass(frozen=True)
class Settings:
    """What to quantize, how, and where the results go."""

    classifier: str = setting("resnet20", "NAME")
    """bundled classifier (resnet20, mobilenet_v2_small), torchvision:NAME, timm:NAME,
    module:function that returns a model, or a .pt2 file of torch.export"""
    weights: Path | None = setting(None, "FILE")
    """safetensors or state-dict file with the classifier's weights (None: those it comes with,
    which torchvision and timm download)"""
    num_classes: int | None = setting(None, "N")
    """number of classes (None: what the classifier gives)"""
    image_size: int | None = setting(None, "PIXELS")
    """height and width of the classifier's input, pixels (None: what a bundled classifier,
    torchvision or timm knows, or 224)"""
    mean: tuple[float, ...] | None = setting(None, "MEAN", "+")
    """mean that the classifier's input is normalized with, one for each channel, pixels from 0 to
    1 (None: what a bundled classifier, torchvision or timm knows, or ImageNet's)"""
    std: tuple[float, ...] | None = setting(None, "STD", "+")
    """standard deviation that the classifier's input is normalized with, one for each channel,
    pixels from 0 to 1 (None: as for the mean)"""

    bits: str = setting("w4a4", "wNaN")
    """width of weights and activations, bits, 2 to 8 each"""
    scheme: Literal["deploy", "paper"] = "deploy"
    """deploy: what an int8 runtime executes; paper: comparable with published tables"""

    preset: Literal["quick", "default", "thorough"] = "default"
    """how much to spend: about 1, 5 or 20 minutes for resnet20 on two cores; sets the steps of both
    trainings where they are not given"""
    distance: Literal["gaussian_kl", "mse", "std_mse", "l2"] = "gaussian_kl"
    """distance between the batch-norm statistics of generated images and the stored ones"""
    latent_dim: int = setting(64, "N")
    """length of the generator's latent vector"""
    batch_size: int = setting(128, "N")
    """images in a batch of generator learning and of calibration"""
    fine_tuning_batch_size: int = setting(32, "N")
    """images in a batch of fine-tuning"""
    synthesis_steps: int = setting(PRESETS["default"]["synthesis_steps"], "N")
    """steps of generator learning"""
    training: Literal["staged", "alternating"] = "staged"
    """staged: the generator is learned before fine-tuning; alternating: it goes on learning, one
    step before each step of fine-tuning, at a tenth of its rate"""
    rounding: Literal["balanced", "nearest"] = "balanced"
    """where weights start from; balanced: rounding errors cancel in each kernel and output channel
    (SQuant), which needs no image either"""
    ranges: Literal["least_divergence", "narrower", "batch_norm", "images"] = "least_divergence"
    """ranges of activations that fine-tuning starts from; batch_norm: those that the classifier's
    batch norm tells, where an activation follows one; images: those of generated images; narrower:
    the narrower of both; least_divergence: whichever of the three brings the logits clearly nearest
    to the classifier's, or the narrower"""
    calibration_batches: int = setting(8, "N")
    """batches of images that ranges are taken from"""
    fine_tuning_steps: int = setting(PRESETS["default"]["fine_tuning_steps"], "N")
    """steps of fine-tuning the quantized classifier (0: only calibrate)"""
    synthesis_learning_rate: float = setting(1e-2, "X")
    """Adam's learning rate for the generator"""
    fine_tuning_learning_rate: float = setting(5e-4, "X")
    """Adam's learning rate for the quantized classifier, divided by its number of quantization
    steps: by 3 for 2 bits, by 15 for 4 bits"""
    cross_entropy_weight: float = setting(1.0, "X")
    """weight of the teacher's cross-entropy in the generator's loss"""
    batch_norm_weight: float = setting(10.0, "X")
    """weight of the batch-norm distance in the generator's loss"""
    diversity_weight: float = setting(0.1, "X")
    """weight of the distance between images of one class in the generator's loss (0: as in
    ZS-CGAN)"""
    distillation_weight: float = setting(1.0, "X")
    """weight of the distillation from the float classifier in fine-tuning"""
    feature_weight: float = setting(100.0, "X")
    """weight of the distance between the feature maps of both in fine-tuning"""
    label_weight: float = setting(0.0, "X")
    """weight of the cross-entropy with the generator's labels in fine-tuning"""
    temperature: float = setting(4.0, "X")
    """temperature of the distillation's softmax"""

    seed: int = setting(0, "N")
    """seed of every random number"""
    device: str = setting("auto", "DEVICE")
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the forward and backward passes (auto: bfloat16 on a GPU that computes in it,
    otherwise float32); float16 on CUDA only"""
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    """layout of images and feature maps in memory (auto: channels_last)"""
    keep_freed_memory: bool = simple_parsing.flag(default=True, negative_prefix="--no-")
    """on a CPU with glibc, keep freed memory for the next step instead of returning it"""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """launch a training step as one CUDA graph (auto: on CUDA, except in float16)"""
    compile: bool = simple_parsing.flag(default=False, negative_prefix="--no-")
    """compile the training steps with torch.compile"""
    output: Path | None = setting(None, "DIR")
    """folder of the run (None: runs/<classifier>-<bits>-<scheme>-seed<seed>)"""
    overwrite: bool = simple_parsing.flag(default=False, negative_prefix="--no-")
    """replace the run that the output folder holds"""
    resume: Path | None = setting(None, "RUN")
    """folder of a run to go on with, from its newest checkpoint and with its settings (None: a new
    run)"""
    checkpoint_every: str = setting("10min", "INTERVAL")
    """steps (500) or minutes (10min) between two checkpoints; none: only when a signal stops the
    run"""
    keep_checkpoints: int = setting(2, "N")
    """checkpoints that are kept, the newest ones"""
    evaluation_data: str | None = setting(None, "DATA")
    """labelled images that measure accuracy: fashion-mnist, a folder of idx files or an ImageFolder
    tree (None: the bundled test images for a bundled classifier, otherwise no accuracy)"""
    reference_data: str | None = setting(None, "DATA")
    """labelled training images for the comparison with fine-tuning on real images, given like
    --evaluation-data (None: no comparison)"""
    stop_after: Literal["synthesis"] | None = choice_or_none("synthesis")
    """stage to stop after (None: run them all)"""
    export: str = setting("safetensors", "FORMATS")
    """files to deploy: safetensors, onnx (proved and timed in ONNX Runtime), both with a comma
    between them, or none"""
    report: bool = simple_parsing.flag(default=True, negative_prefix="--no-")
    """write report.html at the end: accuracy, losses, images, errors by layer"""
    tensorboard: bool = simple_parsing.flag(default=False, negative_prefix="--no-")
    """log losses and generated images for TensorBoard too"""
    log_interval: int = setting(50, "N")
    """steps between two entries in the log"""
    profile: bool = simple_parsing.flag(default=False, negative_prefix="--no-")
    """profile some steps of each training: trace.json for Chrome, profile.txt by op"""

    def output_folder(self) -> Path:
        """Return the folder of the run: `output`, or a name made of the main settings."""
        if self.output is not None:
            return self.output
        classifier = re.sub(r"[^\w.]+", "-", self.classifier)
        return Path("runs", f"{classifier}-{self.bits.lower()}-{self.scheme}-seed{self.seed}")


ABOVE_ZERO = (
    *("num_classes", "image_size", "latent_dim", "batch_size", "fine_tuning_batch_size"),
    "synthesis_steps",
    *("calibration_batches", "synthesis_learning_rate", "fine_tuning_learning_rate"),
    *("temperature", "log_interval", "keep_checkpoints"),
)
ZERO_OR_ABOVE = (
    *("fine_tuning_steps", "cross_entropy_weight", "batch_norm_weight", "diversity_weight"),
    *("distillation_weight", "feature_weight", "label_weight", "seed"),
)

# Far more than is of use; beyond, counters and sizes would overflow.
AT_MOST = {
    **{
        "num_classes": 2**20,
        "image_size": LARGEST_IMAGE_SIZE,
        "latent_dim": 2**20,
        "batch_size": 2**20,
        "fine_tuning_batch_size": 2**20,
    },
    **dict.fromkeys(("synthesis_steps", "calibration_batches", "fine_tuning_steps"), 2**40),
    **{"seed": 2**50, "log_interval": 2**40},
}


def check_types(settings: Settings) -> None:
    """Check the types and choices of all settings, which may come from a program.

    Raises:
        InputError: naming the first setting that is something else.
    """
    for name, hint in get_type_hints(Settings).items():
        value = getattr(settings, name)
        if not fits(value, hint):
            close = did_you_mean(value, choices_of(hint)) if isinstance(value, str) else ""
            raise InputError(f"{name}: {value!r}{close or ','} needed is {described(hint)}")


def fits(value: object, hint: Any) -> bool:
    """Tell whether a value is of the type that a setting is annotated with."""
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple | list) and all(fits(each, float) for each in value)
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, str | Path if hint is Path else hint)


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the choices in an annotation."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for each in get_args(hint) for choice in choices_of(each))


def described(hint: Any) -> str:
    """Say what a setting with an annotation takes."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(described(each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        return "a number for each channel"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    return {**names, Path: "a path", type(None): "None"}[hint]


def check_settings(settings: Settings) -> None:
    """Check the ranges of all settings.

    Raises:
        InputError: naming the first setting that is of another type or out of range.
    """
    check_types(settings)
    for name, value in asdict(settings).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{name}: {number}, needed is a finite number")
        if name in ABOVE_ZERO and value is not None and value <= 0:
            raise InputError(f"{name}: {value}, needed is a number above 0")
        if name in ZERO_OR_ABOVE and value < 0:
            raise InputError(f"{name}: {value}, needed is 0 or above")
        if name in AT_MOST and value is not None and value > AT_MOST[name]:
            raise InputError(f"{name}: {value}, needed is {AT_MOST[name]:,} or below")
    parse_bits(settings.bits)
    parse_formats(settings.export)
    parse_interval(settings.checkpoint_every)
    check_normalization(settings.mean, settings.std)
    device = resolve_device(settings.device)
    if settings.precision == "float16" and device.type != "cuda":
        raise InputError(f"precision: float16 on {device}, accepted are float32 and bfloat16 there")
    if settings.cuda_graphs == "on" and device.type != "cuda":
        raise InputError(f"cuda_graphs: on, but the device is {device}, accepted is auto or off")
    if settings.cuda_graphs == "on" and settings.precision == "float16":
        raise InputError("cuda_graphs: on with float16, accepted is auto or off there")


def check_normalization(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Require a mean and a positive standard deviation for the same number of channels."""
    if mean is not None and std is not None and len(mean) != len(std):
        raise InputError(f"mean, std: {len(mean)} and {len(std)} values, needed is the same number")
    if mean == () or std == ():
        raise InputError("mean, std: no values, needed is one for each channel")
    if std is not None and min(std) <= 0:
        raise InputError(f"std: {min(std)}, needed are numbers above 0")
