"""What the functions of the API are given: checked, so that torch need not fail on it later."""

import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.classifiers.heads import MULTI_LABEL
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.config.configs import TARGETS, RunConfig
from zscgan_ext.config.fields import check_type, hints_of
from zscgan_ext.config.values import check_between
from zscgan_ext.errors import InputError, first_line, is_out_of_memory
from zscgan_ext.export.exporter import FileForm
from zscgan_ext.export.quantized_file import LoadedClassifier
from zscgan_ext.images.datasets import Images, IndexedImages, LabelledImages
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.files import EXPORTED
from zscgan_ext.synthesis.generator import ConditionalGenerator

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# A generator, or batches: images [N, C, H, W], or a tuple of them and their labels [N], where
# several may apply [N, num_classes].
ImageSource = ConditionalGenerator | Iterable[Any]


def kind(value: object) -> str:
    """Name the type of what was given."""
    return f"a {type(value).__name__}"


def check_classifier(classifier: object) -> None:
    """Require a classifier that was loaded."""
    if not isinstance(classifier, Classifier):
        raise InputError(f"classifier: expected what load_classifier gave, got {kind(classifier)}")


def check_student(student: object, classifier: Classifier) -> None:
    """Require a student that was made of a classifier, and whose weights can still be changed.

    Raises:
        InputError: if it is something else, of another classifier, or was loaded from a file.
    """
    if isinstance(student, LoadedClassifier):
        raise InputError(
            "student: expected what quantize or fine_tune gave, got one loaded from a file, which "
            "holds only its integers"
        )
    if not isinstance(student, QuantizedClassifier):
        raise InputError(f"student: expected what quantize gave, got {kind(student)}")
    expected = convert(classifier.model, student.scheme, classifier.preprocessing.shape)
    shapes = [{n: t.shape for n, t in m.state_dict().items()} for m in (student, expected)]
    if shapes[0] != shapes[1] or student.image_shape != classifier.preprocessing.shape:
        raise InputError(
            f"student: is of another classifier than {classifier.name}, its layers differ; give "
            "the classifier that quantize was given"
        )
    for name, tensor in student.state_dict().items():
        if tensor.is_meta or not bool(tensor.isfinite().all()):
            raise InputError(f"student: has NaN or infinite values, or none, in {name}")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(f"student: expected torch.float32 in {name}, got {tensor.dtype}")


def check_images(images: object, classifier: Classifier) -> None:
    """Require a generator for a classifier, or something that gives batches.

    Raises:
        InputError: telling what was given. Batches are checked as they come.
    """
    if isinstance(images, ConditionalGenerator):
        check_generator(images, classifier)
        return
    accepted = "expected a generator, or batches such as [images] or a DataLoader"
    if isinstance(images, Tensor | str | bytes | dict):
        raise InputError(f"images: {accepted}, got {kind(images)}")
    try:
        iter(images)  # type: ignore[call-overload]
    except TypeError:
        raise InputError(f"images: {accepted}, got {kind(images)}") from None


def check_generator(generator: ConditionalGenerator, classifier: Classifier) -> None:
    """Require that a generator makes images for a classifier."""
    made = generator.image_shape
    needed = classifier.preprocessing.shape
    if generator.head is not classifier.head:
        raise InputError(
            f"images: the generator is {generator.head.name}, {classifier.name} is "
            f"{classifier.head.name}; give the one that was learned from it"
        )
    if made != needed or generator.num_classes != classifier.num_classes:
        raise InputError(
            f"images: the generator makes {list(made)} of {generator.num_classes} classes, "
            f"{classifier.name} takes {list(needed)} of {classifier.num_classes}; give the one "
            "that was learned from it"
        )
    check_weights(generator)


def check_weights(generator: object) -> None:
    """Require a generator whose weights are numbers."""
    if not isinstance(generator, ConditionalGenerator):
        raise InputError(f"generator: expected what train_generator gave, got {kind(generator)}")
    for name, tensor in generator.state_dict().items():
        if tensor.is_meta or not bool(tensor.isfinite().all()):
            raise InputError(
                f"images: the generator has NaN or infinite values, or none, in {name}"
            )


def checked_batch(batch: Any, classifier: Classifier) -> tuple[Tensor, Tensor | None]:
    """Return the images of a batch, and its labels as int64 if it has any.

    Raises:
        InputError: naming what the classifier cannot take.
    """
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(parts) not in (1, 2):
        raise InputError(
            f"images: expected images, or images and labels in a batch, got {len(parts)} parts"
        )
    pixels, labels = (*parts, None)[:2]
    check_pixels(pixels, classifier)
    pixels = pixels.detach()  # no gradient of ours belongs into a graph of the user's
    if labels is not None:
        labels = labels_of_head("images: labels", labels, len(pixels), classifier)
    return pixels, labels


def check_pixels(pixels: Any, classifier: Classifier) -> None:
    """Require normalized images [N, C, H, W] that a classifier takes."""
    channels, height, width = classifier.preprocessing.shape
    expected = f"expected normalized ones, torch.float32 [N, {channels}, {height}, {width}]"
    if not isinstance(pixels, Tensor):
        raise InputError(f"images: {expected}, got {kind(pixels)} in a batch")
    if pixels.dtype != torch.float32 or not is_plain(pixels):
        found = f"{pixels.dtype}, {pixels.layout}, on {pixels.device.type}"
        raise InputError(f"images: {expected}, got {found}")
    if pixels.dim() == 4 and len(pixels) == 0:
        raise InputError("images: expected one or more images in each batch, got an empty one")
    if pixels.dim() != 4 or pixels.shape[1:] != (channels, height, width):
        raise InputError(f"images: {expected}, got {list(pixels.shape)}")
    if not bool(pixels.isfinite().all()):
        raise InputError("images: expected finite values, got NaN or infinity in a batch")


def is_plain(tensor: Tensor) -> bool:
    """Return True if a tensor is dense and has values."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta


def labels_of_head(name: str, labels: Any, count: int, classifier: Classifier) -> Tensor:
    """Return labels as the head of a classifier takes them, as `checked_labels`."""
    if classifier.head is not MULTI_LABEL:
        return checked_labels(name, labels, count, classifier.num_classes)
    shape = (count, classifier.num_classes)
    expected = f"expected a tensor of 0 and 1, integers {list(shape)}"
    several = integers(name, labels, shape, (*INTEGERS, torch.bool), expected)
    if not bool(((several == 0) | (several == 1)).all()):
        found = f"from {int(several.min())} to {int(several.max())}"
        raise InputError(f"{name}: {expected}, got them {found}")
    return several


def checked_labels(name: str, labels: Any, count: int, num_classes: int) -> Tensor:
    """Return labels as int64 [N].

    Args:
        name: what they are called in a message.
        labels: of as many images.
        count: N.
        num_classes: that there are.

    Raises:
        InputError: if they are something else, or of no class.
    """
    expected = f"expected a tensor of integers [{count}] from 0 to {num_classes - 1}"
    classes = integers(name, labels, (count,), INTEGERS, expected)
    if count and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        found = f"from {int(classes.min())} to {int(classes.max())}"
        raise InputError(f"{name}: {expected}, got them {found}")
    return classes


def integers(
    name: str,
    values: Any,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    expected: str,
) -> Tensor:
    """Return a tensor of a shape and of some types of numbers as int64.

    Raises:
        InputError: saying what was expected, if it is something else.
    """
    if not isinstance(values, Tensor):
        raise InputError(f"{name}: {expected}, got {kind(values)}")
    if values.dtype not in dtypes or values.shape != shape or values.is_meta:
        raise InputError(f"{name}: {expected}, got {values.dtype} {list(values.shape)}")
    return values.to(torch.int64)


def checked_data(data: object, classifier: Classifier) -> Images:
    """Return opened images that a classifier takes.

    Raises:
        InputError: if they are something else; batches of a class of the user's as they come.
    """
    if not all(hasattr(data, name) for name in ("labels", "batches", "__len__")):
        raise InputError(
            "data: expected the name of labelled images, a folder, or opened ones, got "
            f"{kind(data)}"
        )
    images: Images = data  # type: ignore[assignment]
    labels = images.labels
    if classifier.head is MULTI_LABEL and len(images) > 0:
        labels_of_head("data: labels", labels, len(images), classifier)
    elif isinstance(labels, Tensor) and labels.dim() == 1 and labels.numel() == len(images) > 0:
        # One that is too large is named by who knows where the images come from.
        checked_labels("data: labels", labels.clamp(max=0), len(images), classifier.num_classes)
    else:
        found = f", labels {list(labels.shape)}" if isinstance(labels, Tensor) else ""
        raise InputError(
            f"data: expected images with a label for each, got {len(images)} images{found}"
        )
    if isinstance(images, LabelledImages):
        needed = classifier.preprocessing.shape
        pixels = images.images
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != needed:
            raise InputError(
                f"data: expected images torch.uint8 [N, {', '.join(map(str, needed))}], got "
                f"{pixels.dtype} {list(pixels.shape)}"
            )
    return images if isinstance(images, IndexedImages) else CheckedBatches(images, classifier)


class CheckedBatches:
    """Opened images of a user's own class, whose batches are checked as they come.

    Args:
        images: what was given.
        classifier: has to take them.
    """

    def __init__(self, images: Images, classifier: Classifier) -> None:
        self.images = images
        self.classifier = classifier
        self.labels = images.labels

    def __len__(self) -> int:
        return len(self.images)

    def batches(
        self, batch_size: int, preprocessing: Preprocessing
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order: normalized [B, C, H, W] float32 and labels [B].

        Raises:
            InputError: if a batch does not fit, or there are fewer or more images than labels.
        """
        batches: Any = self.images.batches(batch_size, preprocessing)
        if not isinstance(batches, Iterable):
            raise InputError(f"data: expected batches of images and labels, got {kind(batches)}")
        count = 0
        for batch in batches:
            pixels, labels = checked_batch(batch, self.classifier)
            if labels is None:
                raise InputError("data: expected labels too in each batch")
            count += len(labels)
            yield pixels, labels
        if count != len(self):
            raise InputError(f"data: expected {len(self)} images in its batches, got {count}")

    def random_batches(
        self, batch_size: int, preprocessing: Preprocessing, rng: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches drawn uniformly with replacement, forever."""
        return self.images.random_batches(batch_size, preprocessing, rng)

    def subset(self, index: Tensor) -> Images:
        """Return the images at these positions, int64 [M], in this order."""
        return self.images.subset(index)


def checked_answers(model: object, classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """Return a model whose failures and wrong answers raise errors of one line.

    Raises:
        InputError: if it cannot be called, or is a student for other images.
    """
    if not callable(model):
        raise InputError(f"model: expected what maps images to logits, got {kind(model)}")
    shape = classifier.preprocessing.shape
    if isinstance(model, QuantizedClassifier) and model.image_shape != shape:
        raise InputError(
            f"model: takes images {list(model.image_shape)}, {classifier.name} takes "
            f"{list(shape)}; give the student of this classifier"
        )

    def answers(images: Tensor) -> Tensor:
        try:
            logits = model(images)
        except InputError:
            raise
        except Exception as error:  # a model of a user's raises anything
            if is_out_of_memory(error):
                raise
            found = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"model: cannot take images {list(images.shape)} ({found})") from error
        if not isinstance(logits, Tensor):
            raise InputError(f"model: expected logits from it, got {kind(logits)}")
        if logits.shape != (len(images), classifier.num_classes):
            raise InputError(
                f"model: expected logits [{len(images)}, {classifier.num_classes}] from it, got "
                f"{list(logits.shape)}"
            )
        if not logits.is_floating_point() or not is_plain(logits):
            raise InputError(
                "model: expected logits in floating point from it, got "
                f"{logits.dtype}, {logits.layout}, on {logits.device.type}"
            )
        return logits

    return answers


def check_whole_number(name: str, value: object, least: int, most: int) -> int:
    """Return a whole number in a range.

    Raises:
        InputError: if it is something else.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise InputError(f"{name}: expected a whole number, got {kind(value)}")
    number = int(value)
    check_between(name, number, least, most)
    return number


def check_formats(formats: object) -> Sequence[str]:
    """Return names of formats to export.

    Raises:
        InputError: naming the first that is unknown.
    """
    accepted = ", ".join(EXPORTED)
    if isinstance(formats, str):
        raise InputError(
            f'formats: expected a sequence of names, such as ["onnx"], got the text {formats!r}; '
            f"accepted are {accepted}"
        )
    if not isinstance(formats, Iterable):
        raise InputError(f"formats: expected a sequence of {accepted}, got {kind(formats)}")
    names = list(formats)
    unknown = [name for name in names if name not in list(EXPORTED)]
    if unknown:
        raise InputError(f"formats: expected {accepted}, got {unknown[0]!r}")
    return list(dict.fromkeys(names))


def checked_form(target: object, form: object, resizes: object) -> FileForm:
    """Return what files are for and take.

    Raises:
        InputError: naming what is unknown.
    """
    if target is not None and target not in list(TARGETS):
        raise InputError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    hints = hints_of(RunConfig)
    check_type("input", form, hints["input"])
    check_type("resize_input", resizes, hints["resize_input"])
    return FileForm(None if target is None else str(target), str(form), bool(resizes))


def checked_path(name: str, path: object) -> Path:
    """Return a path that was given as one or as text."""
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise InputError(f"{name}: expected a path, got {path!r}")
    return Path(path)
