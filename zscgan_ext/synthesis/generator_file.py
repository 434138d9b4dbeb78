"""The file of a learned generator: its weights, and what it generates.

A file says itself what images and classes it is for, so that no classifier has to be loaded, whose
code may be anybody's, only to generate images.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zscgan_ext.classifiers.heads import HEADS, SINGLE_LABEL, Head
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.weights import fill
from zscgan_ext.config.fields import SIZES
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.images.limits import size_check
from zscgan_ext.images.preprocessing import Preprocessing, preprocessing_from
from zscgan_ext.json_values import integer, list_of, number, one_of, parse_json, record, text
from zscgan_ext.regular_file import regular_file_size
from zscgan_ext.safetensors_content import read_safetensors_file
from zscgan_ext.synthesis.generator import ConditionalGenerator

METADATA = "zscgan_ext"  # the key of the JSON
LONGEST_NAME = 1000  # characters
BYTES_OF_FLOAT = 4
MOST_NUMBERS = 1 << 26  # of an image's channels at full resolution
DESCRIPTION = record(
    {
        "classifier": text(longest=1 << 12),
        "latent_dim": integer(1, SIZES),
        "class_names": list_of(text(longest=LONGEST_NAME), most=SIZES),
        "preprocessing": record(
            {
                "channels": integer(1, SIZES),
                "image_size": size_check(),
                "mean": list_of(number()),
                "std": list_of(number(0)),
            }
        ),
    },
    {"head": one_of(*HEADS)},
    strict=False,
)


@dataclass(frozen=True)
class LearnedGenerator:
    """A generator as a file holds it, on the CPU in evaluation mode."""

    generator: ConditionalGenerator
    classifier: str  # that it was learned from
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


def generator_metadata(
    generator: ConditionalGenerator, classifier: Classifier, more: Mapping[str, Any]
) -> dict[str, str]:
    """Return the metadata of a generator's file, which `load_generator` reads.

    Args:
        generator: of the file.
        classifier: that it was learned from.
        more: entries beside these, as JSON's types.
    """
    description = {
        "classifier": classifier.name,
        "latent_dim": generator.latent_dim,
        "head": generator.head.name,
        "class_names": [name[:LONGEST_NAME] for name in classifier.class_names],
        "preprocessing": classifier.preprocessing.metadata(),
        **more,
    }
    return {METADATA: json.dumps(description)}


def load_generator(file: Path) -> LearnedGenerator:
    """Read the file of a generator, which somebody else may have written.

    Raises:
        InputError: if it cannot be read, is damaged, does not say what it generates, or is too
            small for that.
    """
    try:
        held = regular_file_size(file)
        tensors, metadata = read_safetensors_file(file)
    except Exception as error:  # a damaged file raises nearly anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file}: cannot be read as a generator ({reason})") from None
    if METADATA not in metadata:
        raise InputError(f"{file}: does not say what it generates; train the generator again")
    try:
        description = parse_json(metadata[METADATA], DESCRIPTION)
        preprocessing = preprocessing_from(description["preprocessing"])
    except ValueError as error:
        raise InputError(f"{file}: {first_line(error)}") from None
    class_names = tuple(description["class_names"])
    shape = (len(class_names), description["latent_dim"], preprocessing)
    check_size(file, held, shape)
    head: Head = HEADS[description.get("head", SINGLE_LABEL.name)]
    generator = ConditionalGenerator(*shape, head)
    fill(generator, tensors, file)
    return LearnedGenerator(generator.eval(), description["classifier"], preprocessing, class_names)


def check_size(file: Path, held: int, shape: tuple[int, int, Preprocessing]) -> None:
    """Require that a small file asks for no large generator and no huge images.

    Raises:
        InputError: saying which it does.
    """
    num_classes, _, preprocessing = shape
    if num_classes < 1:
        raise InputError(f"{file}: names no class")
    numbers = math.prod(preprocessing.shape)
    if numbers > MOST_NUMBERS:
        raise InputError(f"{file}: images of {numbers:,} numbers, accepted are {MOST_NUMBERS:,}")
    require_weights(file, held, shape)


def require_weights(file: Path, held: int, shape: tuple[int, int, Preprocessing]) -> None:
    """Require that a file is as large as a generator, which is built without memory for that.

    Args:
        file: for messages.
        held: bytes that it has.
        shape: the arguments of the generator.

    Raises:
        InputError: if it has too few bytes.
    """
    num_classes, latent_dim, _ = shape
    with torch.device("meta"):
        generator = ConditionalGenerator(*shape)
    weights = sum(each.numel() for each in generator.parameters())
    if held < weights * BYTES_OF_FLOAT:
        raise InputError(
            f"{file}: has {held:,} bytes, too few for the {weights:,} weights of a generator with "
            f"latent_dim {latent_dim} and {num_classes:,} classes"
        )
