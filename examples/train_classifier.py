"""Train a bundled classifier on Fashion-MNIST.

    python examples/train_classifier.py --classifier resnet20 --output resnet20.safetensors

The training images come from Debian's package dataset-fashion-mnist or any folder with the four
idx files. With `--held-out 5000` the last 5,000 training images are kept back and measured every
epoch: every choice in this file was made that way. The test images are touched once, at the end of
a run on all 60,000.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from zscgan_ext.images.datasets import DEBIAN_FASHION_MNIST, LabelledImages, read_idx_folder
from zscgan_ext.images.memory_format import to_channels_last
from zscgan_ext.measures import predict, top1
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS, FASHION_MNIST_PREPROCESSING


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", choices=BUNDLED_CLASSIFIERS, required=True)
    parser.add_argument("--data", type=Path, default=DEBIAN_FASHION_MNIST, help="idx folder")
    parser.add_argument("--held-out", type=int, default=0, help="images kept back from training")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1, help="peak, SGD with momentum")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="autocast the forward pass")
    parser.add_argument("--output", type=Path, help="safetensors file to write")
    return parser.parse_args()


def augment(images: Tensor) -> Tensor:
    """Shift by up to two pixels, flip half of them, erase one 8x8 square: [N, C, H, W]."""
    count, _, height, width = images.shape
    padded = F.pad(images, (2, 2, 2, 2))
    rows = torch.randint(5, (count, 1)) + torch.arange(height)  # [N, H]
    columns = torch.randint(5, (count, 1)) + torch.arange(width)  # [N, W]
    mirrored = torch.rand(count, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    sample = torch.arange(count)[:, None, None]
    shifted = padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    top, left = torch.randint(-4, height - 4, (2, count, 1))
    erased_rows = (torch.arange(height) >= top) & (torch.arange(height) < top + 8)
    erased_columns = (torch.arange(width) >= left) & (torch.arange(width) < left + 8)
    erased = erased_rows[:, None, :, None] & erased_columns[:, None, None, :]
    return shifted.masked_fill(erased, 0)


def measure(model: nn.Module, data: LabelledImages) -> float:
    """Measure top-1, percent."""
    logits = predict(model.eval(), data, FASHION_MNIST_PREPROCESSING, 500, torch.device("cpu"))
    return top1(logits, data.labels)


def train_epoch(
    model: nn.Module,
    data: LabelledImages,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    arguments: argparse.Namespace,
) -> None:
    """See every training image once, in random order."""
    model.train()
    for index in torch.randperm(len(data)).split(arguments.batch_size):
        images = to_channels_last(
            augment(FASHION_MNIST_PREPROCESSING.normalize(data.images[index]))
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), data.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    """Train, print the accuracy, write the weights."""
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    training = read_idx_folder(arguments.data, "train")
    held_out = None
    if arguments.held_out:
        kept = len(training) - arguments.held_out
        held_out = LabelledImages(training.images[kept:], training.labels[kept:])
        training = LabelledImages(training.images[:kept], training.labels[:kept])
    model = BUNDLED_CLASSIFIERS[arguments.classifier].build()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=arguments.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=arguments.weight_decay,
    )
    steps = arguments.epochs * -(-len(training) // arguments.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.learning_rate, total_steps=steps, pct_start=0.15, div_factor=10
    )
    for epoch in range(arguments.epochs):
        start = time.perf_counter()
        train_epoch(model, training, optimizer, schedule, arguments)
        measured = f", held-out top-1 {measure(model, held_out):.2f} %" if held_out else ""
        print(f"epoch {epoch + 1}: {time.perf_counter() - start:.0f} s{measured}", flush=True)
    if held_out is None:
        print(f"test top-1 {measure(model, read_idx_folder(arguments.data, 'test')):.2f} %")
    if arguments.output:
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, arguments.output)


if __name__ == "__main__":
    main()
