"""ONNX files that take pictures: uint8 pixels in, resized and normalized inside."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor

from zscgan_ext.errors import InputError
from zscgan_ext.export.onnx.graph import OnnxGraph
from zscgan_ext.export.onnx.runtime import INPUT, OnnxClassifier
from zscgan_ext.images.preprocessing import Preprocessing, size_before_cropping

NORMALIZED = "preprocessing/normalized"
WHITE = 255
CHECKED_PICTURES = 8


def takes_pixels(
    model: ModelProto, preprocessing: Preprocessing, form: str, resizes: bool
) -> ModelProto:
    """Return a model that does by itself what comes before a classifier.

    Args:
        model: from normalized images.
        preprocessing: what the classifier expects.
        form: `uint8` for pixels [N, H, W, C], `uint8-nchw` for [N, C, H, W].
        resizes: whether to take pictures of any size, of which those of another size than the
            classifier's are resized, and their centre cropped, as `evaluate` does.
    """
    graph = OnnxGraph()
    x = graph.node("Cast", [INPUT], "preprocessing/cast", to=TensorProto.FLOAT)
    if form == "uint8":
        x = graph.node("Transpose", [x], "preprocessing/channels_first", perm=[0, 3, 1, 2])
    if resizes:
        x = resized(graph, x, preprocessing)
    steps: tuple[tuple[str, str, Sequence[float]], ...] = (
        ("Div", "white", (WHITE,)),
        ("Sub", "mean", preprocessing.mean),
        ("Div", "std", preprocessing.std),
    )
    for op, name, values in steps:
        constant = np.array(values, np.float32).reshape(1, -1, 1, 1)
        inputs = [x, graph.initializer(f"preprocessing/{name}", constant)]
        x = graph.node(op, inputs, NORMALIZED if name == "std" else f"preprocessing/by_{name}")
    taking = ModelProto()
    taking.CopyFrom(model)
    for node in taking.graph.node:
        node.input[:] = [NORMALIZED if name == INPUT else name for name in node.input]
    nodes = [*graph.nodes, *taking.graph.node]
    del taking.graph.node[:]
    taking.graph.node.extend(nodes)
    taking.graph.initializer.extend(graph.initializers)
    channels, *size = preprocessing.shape
    sides = ["H", "W"] if resizes else size
    shape = ["N", *sides, channels] if form == "uint8" else ["N", channels, *sides]
    taking.graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    property_ = taking.metadata_props.add()
    property_.key, property_.value = "input", form
    onnx.checker.check_model(taking, full_check=True)
    return taking


def resized(graph: OnnxGraph, x: str, preprocessing: Preprocessing) -> str:
    """Add nodes that resize pictures and crop their centre, as Pillow does it for `evaluate`.

    Pictures of the classifier's size keep it, and their values with it. Pillow resizes rows, then
    columns, each time a product with weights that depend on the sizes only, and rounds to whole
    pixels both times. The operator Resize does neither in this order nor rounds in between.
    """

    def constant(name: str, *values: int) -> str:
        return graph.initializer(f"preprocessing/{name}", np.array(values, np.int64))

    def node(op: str, name: str, *inputs: str, **attributes: object) -> str:
        return graph.node(op, inputs, f"preprocessing/{name}", **attributes)

    def whole(name: str, value: str) -> str:
        half = node("Add", f"{name}_and_half", value, half_pixel)
        return node("Floor", name, half)

    _, *size = preprocessing.shape
    height, width = map(size_before_cropping, size)
    own, least = constant("size", *size), constant("least", height, width)
    zero, two, four = (constant(f"at_{index}", index) for index in (0, 2, 4))
    half_pixel = graph.initializer("preprocessing/half", np.float32(0.5))
    sides = node("Slice", "sides", node("Shape", "shape", x), two, four)
    differ = node("Cast", "differ", node("Sub", "by", sides, own), to=TensorProto.BOOL)
    either = node("ReduceMax", "either", node("Cast", "0_or_1", differ, to=TensorProto.INT64), zero)
    # One side has its least size, the other is rounded down, as torchvision does.
    scaled = node("Mul", "times", sides, constant("least_of_other", width, height))
    other = node("Gather", "other", sides, constant("other_side", 1, 0))
    larger = node("Max", "larger", node("Div", "scaled", scaled, other), least)
    is_resized = node("Cast", "is_resized", either, to=TensorProto.BOOL)
    wanted = node("Where", "wanted", is_resized, larger, own)
    # As torchvision crops: half of what is too much goes first, rounded to even numbers.
    excess = node("Cast", "excess", node("Sub", "too_much", wanted, own), to=TensorProto.FLOAT)
    before = node("Round", "before", node("Mul", "halved", excess, half_pixel))
    begin = node("Cast", "begin", before, to=TensorProto.INT64)
    rows, columns = (weights_of_side(graph, i, size[i], (sides, wanted, begin)) for i in (0, 1))
    x = whole("rows", node("MatMul", "by_columns", x, node("Transpose", "columns", columns)))
    return whole("cropped", node("MatMul", "by_rows", rows, x))


def weights_of_side(graph: OnnxGraph, side: int, size: int, numbers: tuple[str, str, str]) -> str:
    """Add nodes that give the weights [size, pixels of the side] of each pixel that is kept.

    A pixel's weight falls linearly with its distance from the centre of the resized one, and is 0
    from as many pixels on as one of them is made of, or from one on.

    Args:
        graph: to add them to.
        side: 0 for heights, 1 for widths.
        size: pixels that are kept.
        numbers: names of pixels before, pixels after, and the first of these that is kept, each of
            both sides, int64 [2].
    """
    place_of = f"preprocessing/{('height', 'width')[side]}"

    def node(op: str, name: str, *inputs: str, **attributes: object) -> str:
        return graph.node(op, inputs, f"{place_of}/{name}", **attributes)

    def constant(name: str, values: Any) -> str:
        return graph.initializer(f"{place_of}/{name}", np.array(values, np.int64))

    place, none, one, two = (constant(f"number_{i}", i) for i in (side, 0, 1, 2))
    given, resized_to, begin = (
        node("Gather", name, number, place)
        for name, number in zip(("given", "resized", "begin"), numbers, strict=True)
    )
    # Centres are at odd multiples of a half, so that twice the distances are whole numbers.
    kept = node("Add", "kept", constant("counted", np.arange(size)[:, None]), begin)
    centre = node("Add", "centre", node("Mul", "twice", kept, two), one)
    pixels = node("Range", "pixels", none, given, one)
    own_centre = node("Add", "own_centre", node("Mul", "twice_own", pixels, two), one)
    distance = node(
        "Sub",
        "distance",
        node("Mul", "own_places", own_centre, resized_to),
        node("Mul", "places", centre, given),
    )
    reach = node("Mul", "reach", node("Max", "larger", given, resized_to), two)
    floats = (
        node("Cast", f"{name}_as_float", value, to=TensorProto.FLOAT)
        for name, value in (
            ("distance", node("Abs", "absolute", distance)),
            ("reach", reach),
            ("one", one),
        )
    )
    far, most, whole = floats
    near = node("Relu", "near", node("Sub", "falling", whole, node("Div", "share", far, most)))
    total = node("ReduceSum", "total", near, constant("axis", [1]))
    return node("Div", "weights", near, total)


def pixels_of(images: Tensor, preprocessing: Preprocessing, form: str) -> Tensor:
    """Turn normalized images [N, C, H, W] back into the pixels that a file takes."""
    pixels = preprocessing.denormalize(images).mul(WHITE).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1) if form == "uint8" else pixels


def verify_pixels(
    taking: ModelProto, model: ModelProto, preprocessing: Preprocessing, form: str
) -> None:
    """Require that a file gives for pixels the very logits of the one for normalized images.

    Raises:
        InputError: if it does not.
    """
    rng = torch.Generator().manual_seed(0)
    shape = (CHECKED_PICTURES, *preprocessing.shape)
    pixels = torch.randint(WHITE + 1, shape, generator=rng).to(torch.uint8)
    expected = OnnxClassifier(model.SerializeToString())(preprocessing.normalize(pixels))
    given = pixels.permute(0, 2, 3, 1) if form == "uint8" else pixels
    found = OnnxClassifier(taking.SerializeToString())(given)
    if not torch.equal(found, expected):
        difference = float((found - expected).abs().max())
        raise InputError(
            f"export: the file gives other logits for pixels than for what is made of them, they "
            f"differ by up to {difference:.3g}"
        )
