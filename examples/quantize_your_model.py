"""Quantizes torchvision's MobileNetV2 to 8 bits without any image, and writes it for deployment."""

import argparse
from pathlib import Path

from torchvision.models import mobilenet_v2

import zscgan_ext

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--weights", type=Path, help="state dict or safetensors file (default: random)")
parser.add_argument("--image-size", type=int, default=224, help="height and width, pixels")
parser.add_argument("--steps", type=int, default=200, help="of learning and of fine-tuning")
parser.add_argument("--output", type=Path, default=Path("mobilenet_v2_w8a8"), help="folder")
options = parser.parse_args()

classifier = zscgan_ext.load_classifier(
    mobilenet_v2(), weights=options.weights, image_size=options.image_size
)
generator = zscgan_ext.train_generator(classifier, synthesis_steps=options.steps, batch_size=32)
student = zscgan_ext.quantize(classifier, generator, bits="w8a8", batch_size=32)
zscgan_ext.fine_tune(student, classifier, generator, fine_tuning_steps=options.steps)
files = zscgan_ext.export(classifier, student, generator, options.output)
print(f"{files['bytes']['safetensors'] / 1e6:.1f} MB in {options.output}")
