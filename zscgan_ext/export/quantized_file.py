"""A quantized classifier as one safetensors file of packed integers.

Its layout is in docs/reference/file_formats.md. Nothing in a file is ever run: it holds
tensors, and JSON that names the classifier.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from zscgan_ext.classifiers.heads import HEADS, SINGLE_LABEL, Head
from zscgan_ext.classifiers.loading import (
    Classifier,
    find_source,
    freeze,
    logits_of,
    require_plain_weights,
    unwrapped,
)
from zscgan_ext.classifiers.traced_logits import traced_logits
from zscgan_ext.classifiers.trust import (
    check_image_size,
    check_model_size,
    is_of_a_library,
)
from zscgan_ext.config.values import parse_layer_bits
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.export.integers import IntegerWeight, integer_weight, pack, unpack
from zscgan_ext.images.limits import size_check
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.images.preprocessing import Preprocessing, preprocessing_from
from zscgan_ext.json_values import (
    integer,
    list_of,
    mapping_of,
    nullable,
    number,
    one_of,
    parse_json,
    record,
    text,
)
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer
from zscgan_ext.quantization.scheme import QuantRange, Scheme
from zscgan_ext.safetensors_content import read_safetensors_file
from zscgan_ext.torch_settings import alone, usual_torch

METADATA = "zscgan_ext"  # the key of the JSON
BITS_OF_BYTE = 8
LONGEST_NAME = 1000  # characters
LONGEST_BITS = 10  # characters of the widths of a layer
MOST_CLASSES = 1 << 20
DESCRIPTION = record(
    {
        "classifier": text(longest=LONGEST_NAME),
        "num_classes": integer(1, MOST_CLASSES),
        "class_names": list_of(text(longest=LONGEST_NAME), most=MOST_CLASSES),
        "preprocessing": record(
            {
                "channels": integer(1, 1 << 16),
                "image_size": size_check(),
                "mean": list_of(number()),
                "std": list_of(number(0)),
            }
        ),
        "scheme": record(
            {
                "name": one_of("deploy", "paper", "symmetric"),
                "weight_bits": integer(2, 8),
                "activation_bits": integer(2, 8),
            },
            {"layers": mapping_of(text(longest=LONGEST_BITS), text(longest=LONGEST_NAME))},
        ),
        "packed_shapes": mapping_of(list_of(integer(0))),
    },
    {"output_index": nullable(integer(0, MOST_CLASSES)), "head": one_of(*HEADS)},
    strict=False,
)


@dataclass(frozen=True)
class FileContent:
    """What a file holds."""

    classifier: str
    num_classes: int
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    scheme: Scheme
    tensors: Mapping[str, Tensor]
    output_index: int | None = None  # of the logits in what the classifier gives
    head: Head = SINGLE_LABEL


class LoadedClassifier(QuantizedClassifier):
    """A quantized classifier from a file, whose weights are those of the file.

    Maps normalized images [N, C, H, W] to logits [N, num_classes]; `preprocessing` normalizes.
    Several threads may call it at once.
    """

    def __init__(self, student: QuantizedClassifier, content: FileContent) -> None:
        super().__init__(student.graph, student.scheme, student.image_shape)
        self.classifier = content.classifier
        self.num_classes = content.num_classes
        self.class_names = content.class_names
        self.preprocessing = content.preprocessing
        self.head = content.head

    def quantized_weights(self) -> AbstractContextManager[None]:
        """Leave the weights as they are, since the file has quantized ones."""
        return nullcontext()


def quantized_file(student: QuantizedClassifier, classifier: Classifier) -> bytes:
    """Pack a calibrated student into the bytes of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, module in student.graph.named_modules():
        if isinstance(module, QuantizedLayer):
            weight = integer_weight(module)
            shapes[f"{name}.weight"] = list(weight.integers.shape)
            tensors |= {f"{name}.{key}": value for key, value in layer_tensors(weight).items()}
            if module.layer.bias is not None:
                tensors[f"{name}.bias"] = module.layer.bias
        elif isinstance(module, ActivationQuantizer):
            scale, zero_point = module.qparams()
            tensors |= {f"{name}.scale": scale, f"{name}.zero_point": zero_point.byte()}
    tensors |= other_tensors(student)
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    metadata = {METADATA: json.dumps(description(student, classifier, shapes))}
    return safetensors.torch.save(plain, metadata)


def layer_tensors(weight: IntegerWeight) -> dict[str, Tensor]:
    """Return the tensors of one weight: integers, scales, and zero points where they are not 0."""
    bits, signed = weight.range.bits, weight.range.signed
    whole = torch.int8 if signed else torch.uint8
    packed = weight.integers.to(whole) if bits == BITS_OF_BYTE else pack(weight.integers, bits)
    tensors = {"weight": packed, "weight_scale": weight.scale}
    if not signed:
        tensors["weight_zero_point"] = weight.zero_point.byte()
    return tensors


def other_tensors(student: QuantizedClassifier) -> dict[str, Tensor]:
    """Return what neither quantized layers nor activation quantizers hold: batch norm, mostly."""
    quantized = tuple(
        f"{name}."
        for name, module in student.graph.named_modules()
        if isinstance(module, QuantizedLayer | ActivationQuantizer)
    )
    state = student.graph.state_dict()
    return {name: value for name, value in state.items() if not name.startswith(quantized)}


def description(
    student: QuantizedClassifier, classifier: Classifier, shapes: dict[str, list[int]]
) -> dict[str, Any]:
    """Return the metadata of the file, as JSON's types."""
    return {
        "classifier": classifier.name,
        "num_classes": classifier.num_classes,
        "class_names": list(classifier.class_names),
        "preprocessing": classifier.preprocessing.metadata(),
        "scheme": scheme_metadata(student.scheme),
        "packed_shapes": shapes,
        "output_index": classifier.output_index,
        "head": classifier.head.name,
    }


def scheme_metadata(scheme: Scheme) -> dict[str, Any]:
    """Return a scheme as JSON's types."""
    layers = {name: str(bits) for name, bits in scheme.layers.items()}
    return {
        "name": scheme.name,
        "weight_bits": scheme.weight_bits,
        "activation_bits": scheme.activation_bits,
        "layers": layers,
    }


def scheme_from(metadata: Mapping[str, Any]) -> Scheme:
    """Undo `scheme_metadata`; files may lack widths of single layers.

    Raises:
        InputError: if such widths have another form.
    """
    texts = metadata.get("layers", {}).items()
    layers = {name: parse_layer_bits(text, "layers") for name, text in texts}
    return Scheme(metadata["name"], metadata["weight_bits"], metadata["activation_bits"], layers)


# ---- reading ------------------------------------------------------------------------------------


@alone()
@usual_torch()
def load_quantized(file: str | Path, classifier: str | nn.Module | None = None) -> LoadedClassifier:
    """Load a quantized classifier that `python -m zscgan_ext.export` wrote as safetensors.

    It gives the logits of the exported one, bit for bit, on the kind of processor that made it.

    Args:
        file: such as `runs/NAME/model.safetensors`.
        classifier: required where the file names a `module:function` or a program of your own, so
            that no file decides which code runs: the same name, or a model object, whose weights
            are not looked at. None for a bundled classifier and for those of torchvision and timm.

    Raises:
        InputError: if the file cannot be read, is damaged, or does not fit the classifier.
    """
    if not isinstance(file, str | Path):
        raise InputError(f"file: expected a path, got a {type(file).__name__}")
    if not isinstance(classifier, str | nn.Module | None):
        raise InputError(
            f"classifier: expected a name or a torch.nn.Module, got a {type(classifier).__name__}"
        )
    if isinstance(classifier, nn.Module):
        require_plain_weights(classifier)
    content = read_file(Path(file))
    name = content.classifier if classifier is None else classifier
    if classifier is None and not is_of_a_library(name):
        raise InputError(
            f"classifier: {file} names {content.classifier!r}, which is of no library; "
            "give the name of the classifier yourself to have its code run"
        )
    source = find_source(name)
    if is_of_a_library(name):
        held = sum(tensor.nbytes for tensor in content.tensors.values())
        shape = content.num_classes, content.preprocessing.image_size
        check_model_size(Path(file), held, content.scheme.fewest_weight_bits, source, *shape)
    model = unwrapped(source.build(content.num_classes, trained=False))
    freeze(model)
    if isinstance(name, str) and not is_of_a_library(name):
        check_image_size(Path(file), name, model, content.preprocessing.shape)
    index = content.output_index
    count, model = logits_of(source.name, model, content.preprocessing, index)
    if count != content.num_classes:
        classes = content.num_classes
        raise InputError(f"{file}: is of {classes} classes, but {source.name} gives {count} logits")
    traced = traced_logits(source.name, model, content.preprocessing.shape, content.head.name)
    student = convert(traced.graph, content.scheme, content.preprocessing.shape)
    fill(student, content, Path(file))
    student.quantize_activations()
    lay_out_weights(lay_out(student, torch.channels_last))
    return LoadedClassifier(student, content).eval().requires_grad_(False)


def read_file(file: Path) -> FileContent:
    """Read a file's tensors and metadata.

    Raises:
        InputError: if it cannot be read or was not written by `quantized_file`.
    """
    try:
        tensors, metadata_texts = read_safetensors_file(file)
        description_text = metadata_texts.get(METADATA)
    except Exception as error:  # a damaged file raises nearly anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file}: cannot be read as safetensors ({reason})") from None
    if description_text is None:
        raise InputError(f"{file}: holds no quantized classifier, expected what export wrote")
    try:
        metadata = parse_json(description_text, DESCRIPTION)
        class_names = tuple(metadata["class_names"])
        if metadata["num_classes"] != len(class_names):
            raise ValueError(f"{metadata['num_classes']} classes with {len(class_names)} names")
        return FileContent(
            metadata["classifier"],
            len(class_names),
            class_names,
            preprocessing_from(metadata["preprocessing"]),
            scheme_from(metadata["scheme"]),
            tensors,
            metadata.get("output_index"),
            HEADS[metadata.get("head", SINGLE_LABEL.name)],
        )
    except Exception as error:  # JSON may hold anything, nested without end
        raise InputError(f"{file}: its description is damaged ({first_line(error)})") from None


@torch.no_grad()
def fill(student: QuantizedClassifier, content: FileContent, file: Path) -> None:
    """Put a file's tensors into a converted classifier; every one of them must find its place."""
    left = dict(content.tensors)

    def take(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        tensor = left.pop(name, None)
        if tensor is None:
            raise InputError(f"{file}: lacks {name}, which the classifier {content.classifier} has")
        if tensor.shape != shape or tensor.dtype != dtype:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            expected = f"{dtype} {tuple(shape)}"
            raise InputError(f"{file}: expected {name} as {expected}, got {found}")
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{file}: has NaN or infinite values in {name}")
        if name.endswith("scale") and not bool((tensor > 0).all()):
            raise InputError(f"{file}: has scales in {name} that are not above 0")
        return tensor

    for name, module in student.graph.named_modules():
        if isinstance(module, QuantizedLayer):
            fill_layer(module, name, take)
            check_zero_point(module.zero_point, module.quant_range, f"{file}: {name}")
        elif isinstance(module, ActivationQuantizer):
            scale = take(f"{name}.scale", module.log_scale.shape, torch.float32)
            module.log_scale.copy_(logarithm_of(scale))
            zero_point = take(f"{name}.zero_point", module.zero_point.shape, torch.uint8)
            check_zero_point(zero_point, module.quant_range, f"{file}: {name}")
            module.zero_point.copy_(zero_point)
    for name, value in other_tensors(student).items():
        value.copy_(take(name, value.shape, value.dtype))
    if left:
        raise InputError(
            f"{file}: has {next(iter(left))}, which the classifier {content.classifier} lacks"
        )


def check_zero_point(zero_point: Tensor, quant_range: QuantRange, place: str) -> None:
    """Require integers of a width as zero points."""
    low, high = quant_range.quant_min, quant_range.quant_max
    integers = zero_point.float()  # bounds of other types would not fit into theirs
    if not bool(((low <= integers) & (integers <= high)).all()):
        raise InputError(f"{place} has zero points beyond its integers, {low} to {high}")


def fill_layer(
    layer: QuantizedLayer, name: str, take: Callable[[str, torch.Size, torch.dtype], Tensor]
) -> None:
    """Put a file's integers, scales and bias into a layer."""
    shape = layer.layer.weight.shape
    bits, signed = layer.quant_range.bits, layer.quant_range.signed
    if bits == BITS_OF_BYTE:
        whole = torch.int8 if signed else torch.uint8
        integers = take(f"{name}.weight", shape, whole).short()
    else:
        size = torch.Size([math.ceil(shape.numel() * bits / BITS_OF_BYTE)])
        packed = take(f"{name}.weight", size, torch.uint8)
        integers = unpack(packed, shape.numel(), bits, signed).view(shape)
    channels = layer.zero_point.shape
    scale = take(f"{name}.weight_scale", channels, torch.float32)
    zero_point = torch.zeros_like(scale, dtype=torch.int16)
    if not signed:
        zero_point = take(f"{name}.weight_zero_point", channels, torch.uint8).short()
    weight = IntegerWeight(integers, scale, zero_point, layer.quant_range)
    layer.layer.weight.copy_(weight.dequantize())
    layer.zero_point.copy_(zero_point)
    if layer.symmetric:
        layer.log_scale.copy_(scale.log())
    if layer.layer.bias is not None:
        layer.layer.bias.copy_(take(f"{name}.bias", channels, torch.float32))


@torch.no_grad()
def lay_out_weights(student: QuantizedClassifier) -> None:
    """Give weights the memory layout that quantizing gives; another changes the order of sums."""
    for layer, quantized in zip(student.layers, student.quantize_weights(), strict=True):
        laid_out = torch.empty_like(quantized).copy_(layer.layer.weight)
        layer.layer.weight = nn.Parameter(laid_out)


def logarithm_of(scale: Tensor) -> Tensor:
    """Return the logarithm [1] whose exponential has the very bits of a scale [1].

    Scales are stored as logarithms, and `scale.log()` can be off by its last bits. A scale that was
    an exponential has such a logarithm among the neighbours; without one, the nearest is returned.
    """
    logarithm = scale.log()
    above = below = logarithm
    for _ in range(8):
        for candidate in (above, below):
            if torch.equal(candidate.exp(), scale):
                return candidate
        above = torch.nextafter(above, torch.full_like(above, torch.inf))
        below = torch.nextafter(below, torch.full_like(below, -torch.inf))
    return logarithm
