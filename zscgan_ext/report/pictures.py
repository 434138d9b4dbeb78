"""Generated images for a page: each one inlined, with what the classifier makes of it."""

import base64
import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.run_folder.files import to_image
from zscgan_ext.synthesis.diversity import chosen_classes, images_of_class
from zscgan_ext.synthesis.generator import ConditionalGenerator

IMAGES_PER_CLASS = 8
LARGEST_LOSSLESS = 64  # pixels: larger images are inlined as JPEG
LARGEST_SHOWN = 160  # pixels
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """One generated image."""

    source: str  # a data: address
    confidence: float  # of the classifier in the wanted class, percent
    chosen: str  # what the classifier chooses
    is_right: bool


@dataclass(frozen=True)
class ClassPictures:
    """Generated images of one class."""

    name: str
    pictures: list[Picture]


@torch.no_grad()
def pictures_by_class(
    classifier: Classifier, generator: ConditionalGenerator, rng: torch.Generator
) -> list[ClassPictures]:
    """Generate images of some classes and ask the classifier about them."""
    rows, head = [], classifier.head
    for label in chosen_classes(generator.learned_classes()):
        images = images_of_class(generator, label, IMAGES_PER_CLASS, rng)
        logits = classifier.model(images).float()  # [N, num_classes]
        probabilities = head.probabilities(logits)
        is_right = head.has(head.chosen(logits), label).tolist()
        described = head.described(logits, classifier.class_names)
        pixels = classifier.preprocessing.denormalize(images)
        pictures = [
            Picture(
                data_address(pixels[index]),
                100 * float(each[label]),
                described[index],
                is_right[index],
            )
            for index, each in enumerate(probabilities)
        ]
        rows.append(ClassPictures(classifier.class_names[label], pictures))
    return rows


def data_address(pixels: Tensor) -> str:
    """Turn pixels [C, H, W] from 0 to 1 into an address that holds the image itself."""
    image = to_image(pixels, 1)
    stream, options = io.BytesIO(), {}
    kind = "png"
    if max(image.size) > LARGEST_LOSSLESS:
        image.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN), Image.Resampling.LANCZOS)
        kind, options = "jpeg", {"quality": JPEG_QUALITY}
    image.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
