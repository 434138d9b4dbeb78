"""Loading the classifier to quantize, and trying it out."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from zscgan_ext.classifiers.batch_norm import check_batch_norm
from zscgan_ext.classifiers.heads import SINGLE_LABEL, Head
from zscgan_ext.classifiers.outputs import with_logits
from zscgan_ext.classifiers.proof import check_independence
from zscgan_ext.classifiers.pt2.source import SUFFIX, ProgramSource
from zscgan_ext.classifiers.sources.libraries import (
    TIMM,
    TORCHVISION,
    TimmSource,
    TorchvisionSource,
)
from zscgan_ext.classifiers.sources.local import BundledSource, FunctionSource, ModelSource
from zscgan_ext.classifiers.sources.source import ClassifierSource, usual_preprocessing
from zscgan_ext.classifiers.traced_logits import AUTO, traced_logits
from zscgan_ext.classifiers.trust import check_image_size, is_of_a_library
from zscgan_ext.classifiers.weights import check_finite, load_weights
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.config.values import parse_image_size
from zscgan_ext.errors import InputError, did_you_mean, first_line, is_out_of_memory
from zscgan_ext.images.limits import ImageSize, sides
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS


@dataclass(frozen=True)
class Classifier:
    """A trained float classifier: in eval mode, float32, on the CPU, without gradients."""

    name: str
    model: nn.Module  # [N, C, H, W] to logits [N, num_classes]; the graph that `trace` gives
    num_classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    output_index: int | None = None  # of the logits, where the user said so
    head: Head = SINGLE_LABEL  # what the logits mean


def load_classifier(
    name: str | nn.Module,
    weights: Path | None = None,
    num_classes: int | None = None,
    image_size: ImageSize | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    output_index: int | None = None,
    size_from: Path | None = None,
    head: str = AUTO,
) -> Classifier:
    """Load a trained classifier and try it on two blank images.

    Args:
        name: a bundled classifier, `torchvision:NAME`, `timm:NAME`, `module:function` for a
            function that returns a model and takes nothing, or `num_classes` (the current folder
            is importable), or a `.pt2` file of `torch.export`. Or a model object, which is copied.
        weights: safetensors or state-dict file; None for the weights that come with the model,
            which torchvision and timm download.
        num_classes: what the model must give; None to take what it gives.
        image_size: pixels, height and width where they differ; None for what the source knows,
            or 224.
        mean: for each channel, pixels from 0 to 1; None for what the source knows, ImageNet's for
            three channels, or 0.5.
        std: like `mean`.
        output_index: of the logits among the model's outputs; None for the first that fits.
        size_from: the file that gives the image size, if that is not to be trusted: images that
            fill the memory are refused.
        head: what the logits mean, as `traced_logits` takes it.

    Raises:
        InputError: if the model cannot be built, the weights do not fit, there is no batch norm,
            or the model does not turn such images into logits.
    """
    source = find_source(name, output_index)
    if isinstance(name, nn.Module):
        require_plain_weights(name)
    name = source.name
    model = unwrapped(source.build(num_classes, trained=weights is None))
    require_plain_weights(model)
    guess = source.preprocessing(model)
    if weights is not None:
        load_weights(model, weights)
    freeze(model)
    origin = name if weights is None else str(weights)
    check_finite(origin, model)
    if size_from is not None and image_size is not None and not is_of_a_library(name):
        check_image_size(size_from, name, model, (guess.channels, *sides(image_size)))
    preprocessing, count, model = fitting(name, model, guess, image_size, mean, std, output_index)
    if num_classes not in (None, count):
        raise InputError(f"num_classes: {num_classes}, but {name} gives {count} logits")
    traced = traced_logits(name, model, preprocessing.shape, head)
    check_batch_norm(origin, traced.graph)
    check_independence(traced.graph, preprocessing.shape)
    names = class_names(source, weights, count)
    return Classifier(name, traced.graph, count, preprocessing, names, output_index, traced.head)


def classifier_of(config: RunConfig, size_from: Path | None = None) -> Classifier:
    """Load the classifier that a configuration names.

    Args:
        config: that names it.
        size_from: as `load_classifier` takes it.

    Raises:
        InputError: as `load_classifier`.
    """
    return load_classifier(
        config.classifier,
        config.weights,
        config.num_classes,
        parse_image_size(config.image_size),
        config.mean,
        config.std,
        config.output_index,
        size_from,
        config.head,
    )


def require_plain_weights(model: nn.Module) -> None:
    """Require weights that torch computes with as with any others.

    Raises:
        InputError: naming the first that is something else.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            found = "is not initialized; run a batch of images through the model first"
        elif tensor.is_meta:
            found = "is on the meta device and has no value"
        elif type(tensor) not in (Tensor, nn.Parameter):
            found = f"is of the class {type(tensor).__name__}, expected a plain tensor"
        elif tensor.layout != torch.strided or tensor.is_quantized:
            found = f"is {tensor.layout}, {tensor.dtype}, expected a dense tensor of numbers"
        else:
            continue
        raise InputError(f"classifier: its weight {name} {found}")


def find_source(name: str | nn.Module, output_index: int | None = None) -> ClassifierSource:
    """Return where the classifier of a name comes from; a model object is its own source.

    Args:
        name: as `load_classifier` takes it.
        output_index: for a program, of the logits among its outputs.

    Raises:
        InputError: if there is no such classifier, as far as the name shows.
    """
    if isinstance(name, nn.Module):
        return ModelSource(name)
    if name in BUNDLED_CLASSIFIERS:
        return BundledSource(name)
    if name.startswith(TORCHVISION):
        return TorchvisionSource(name)
    if name.startswith(TIMM):
        return TimmSource(name)
    if name.endswith(SUFFIX):
        return ProgramSource(name, output_index)
    if ":" in name:
        return FunctionSource(name)
    hint = did_you_mean(name, BUNDLED_CLASSIFIERS)
    accepted = (
        f"{', '.join(BUNDLED_CLASSIFIERS)}, torchvision:NAME, timm:NAME, module:function and "
        "a .pt2 file"
    )
    raise InputError(f"classifier: unknown {name!r}{hint or ','} accepted are {accepted}")


def class_names(source: ClassifierSource, weights: Path | None, count: int) -> tuple[str, ...]:
    """Return the source's names if there is one for each logit, else numbers.

    A file of weights for a bundled classifier may be of any data; one for a model of a library is
    nearly always the library's own if it has as many classes.
    """
    known = source.class_names
    if isinstance(source, BundledSource) and weights is not None:
        known = ()
    return known if len(known) == count else tuple(str(index) for index in range(count))


def fitting(
    name: str,
    model: nn.Module,
    guess: Preprocessing,
    image_size: ImageSize | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    output_index: int | None,
) -> tuple[Preprocessing, int, nn.Module]:
    """Return the preprocessing that fits a model, how many logits it gives, and what gives them.

    A guess has the channels of the first convolution. Images have as many as means were given, or
    three or one, where something rearranges them before that (`PixelUnshuffle`, coordinates as
    further channels, and the like).

    Raises:
        InputError: if none fits; it is that of the guess.
    """
    given = len(mean or std or ()) or 3
    others = [usual_preprocessing(channels, guess.image_size) for channels in (given, 3, 1)]
    errors = []
    for candidate in (guess, *others):
        try:
            preprocessing = override(candidate, image_size, mean, std)
            return preprocessing, *logits_of(name, model, preprocessing, output_index)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def override(
    preprocessing: Preprocessing,
    image_size: ImageSize | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Preprocessing:
    """Replace what was given."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != preprocessing.channels:
            raise InputError(
                f"{name}: {len(values)} value(s), the classifier has {preprocessing.channels} "
                "input channel(s)"
            )
    return replace(
        preprocessing,
        image_size=image_size or preprocessing.image_size,
        mean=mean or preprocessing.mean,
        std=std or preprocessing.std,
        is_assumed=preprocessing.is_assumed and mean is None and std is None,
    )


def freeze(model: nn.Module) -> None:
    """Put a model in evaluation mode, in float32, on the CPU, without gradients."""
    model.to("cpu", torch.float32).eval()
    compute_parametrizations(model)
    model.requires_grad_(False)


def unwrapped(model: nn.Module) -> nn.Module:
    """Take off, also within a model, what runs a module on several devices or compiles it.

    Raises:
        InputError: if what is left is TorchScript.
    """
    while (inner := wrapped_module(model)) is not None:
        model = inner
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "classifier: is a TorchScript program, whose layers cannot be taken apart; give the "
            "module that it was made from, or a .pt2 file of torch.export"
        )
    for module in list(model.modules()):
        module._compiled_call_impl = None  # `module.compile()` sets it
        for name, child in list(module.named_children()):
            if wrapped_module(child) is not None:
                setattr(module, name, unwrapped(child))
    return model


def wrapped_module(model: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper of torch runs; None for any other module."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        inner: nn.Module = model.module
        return inner
    compiled = getattr(model, "_orig_mod", None)  # `torch.compile` keeps it there
    return compiled if isinstance(compiled, nn.Module) else None


def compute_parametrizations(model: nn.Module) -> None:
    """Put the weights that parametrizations compute, such as weight norm, in their place.

    `remove_parametrizations` changes the class, which a copy shares with the model it is of.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            names = list(module.parametrizations)  # type: ignore[arg-type]
            values = {name: getattr(module, name).detach().clone() for name in names}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                setattr(module, name, nn.Parameter(value))


@torch.no_grad()
def logits_of(
    name: str, model: nn.Module, preprocessing: Preprocessing, output_index: int | None
) -> tuple[int, nn.Module]:
    """Run two blank images through a model; count the logits of one, and return what gives them."""
    try:
        model = with_logits(name, model, preprocessing.shape, output_index)
        logits = model(torch.zeros(2, *preprocessing.shape))
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if isinstance(error, TypeError) and "required positional argument" in str(error):
            raise InputError(
                f"classifier: {name} takes more than images ({first_line(error)}); give the "
                "others defaults, or wrap it in a module whose forward takes images only"
            ) from error
        height, width = sides(preprocessing.image_size)
        raise InputError(
            f"image_size: {name} cannot take {height}x{width} images with "
            f"{preprocessing.channels} channel(s) ({first_line(error)})"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"classifier: {name}: expected logits [2, num_classes] of 2 images, got {shape}"
        )
    if logits.layout != torch.strided or logits.is_meta or logits.is_complex():
        found = f"{logits.dtype}, {logits.layout}, on {logits.device.type}"
        raise InputError(f"classifier: {name}: expected logits of real numbers, got {found}")
    return logits.shape[1], model
