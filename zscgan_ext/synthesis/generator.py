"""The conditional generator: from a latent vector and a class, or a set of labels, to an image."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zscgan_ext.classifiers.heads import MULTI_LABEL, SINGLE_LABEL, Head
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.config.configs import GeneratorConfig
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.synthesis.doubling_convolution import DoublingConv2d
from zscgan_ext.synthesis.synchronized_batch_norm import SynchronizedBatchNorm

SMALLEST_MAP = 7  # pixels of the first feature map, about
WIDEST = 128  # channels of the first feature maps
# Standard deviation of the noise in every block, whose features have one: without it the images of
# a class come out nearly alike, since the class alone satisfies the loss.
NOISE = 0.5
NEGATIVE_SLOPE = 0.2  # of every LeakyReLU
LARGEST_OF_BLOCKS = 64  # pixels up to which the last doubling has a block too
FEWEST_CLASSES = 32  # that learning begins with, where the classifier has more
IMAGES_PER_CLASS = 100  # to learn a class, before others join
LABELS_PER_IMAGE = 2  # that an image of several labels is asked for, on average


class UpsampleBlock(nn.Module):
    """Double the resolution, then convolve, normalize, add noise and activate."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DoublingConv2d(in_channels, out_channels, bias=False)
        self.bn = SynchronizedBatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, 2H, 2W]."""
        return self.bn.noisy_leaky_relu(self.conv(x), NOISE, NEGATIVE_SLOPE)


def first_stride(num_classes: int) -> int:
    """Return the distance of the classes that are learned first, a power of two."""
    return 1 << math.ceil(math.log2(max(1.0, num_classes / FEWEST_CLASSES)))


def stride_of_classes(num_classes: int, images: int, images_in_all: int) -> int:
    """Return the distance of the classes that are learned after so many images.

    A generator that starts with a thousand classes sees each too rarely to tell them apart before
    many thousand images. So it starts with a few, spread evenly, and the number doubles when each
    has had its images, as long as there are enough for those that join.

    Args:
        num_classes: of the classifier.
        images: that were generated so far.
        images_in_all: that generator learning will have generated at its end.
    """
    stride = first_stride(num_classes)
    learned = IMAGES_PER_CLASS * math.ceil(num_classes / stride)
    while stride > 1:
        joined = learned + IMAGES_PER_CLASS * math.ceil(2 * num_classes / stride)
        if images < learned or images_in_all < joined:
            break
        stride, learned = stride // 2, joined
    return stride


class ConditionalGenerator(nn.Module):
    """Images of a wanted class or of wanted labels, in the classifier's own input units.

    A class embedding, or the sum of those of all labels, is joined to the latent vector; a linear
    layer makes a small feature map of it, which blocks of nearest upsampling and 3x3 convolution
    bring to the image size (the shape of GDFQ's generator, Xu et al., 2020). A sigmoid gives
    pixels, which are normalized as the classifier's preprocessing would. The last doubling of large
    images has no block: at full resolution, one would take more time than all other layers
    together.

    Of many classes, those that are multiples of `class_stride` are learned; the others are not
    drawn.

    Args:
        num_classes: classes of the classifier.
        latent_dim: length of the latent vector, and of the class embedding.
        preprocessing: image shape and normalization of the classifier.
        head: of the classifier, which says what labels are.
    """

    def __init__(
        self,
        num_classes: int,
        latent_dim: int,
        preprocessing: Preprocessing,
        head: Head = SINGLE_LABEL,
    ) -> None:
        super().__init__()
        self.head = head
        self.num_classes = num_classes
        self.latent_dim = latent_dim
        self.image_shape = preprocessing.shape
        _, height, width = preprocessing.shape
        size = math.sqrt(height * width)
        doublings = max(1, round(math.log2(size / SMALLEST_MAP)))
        self.map_size = [math.ceil(side / 2**doublings) for side in (height, width)]
        finest = 32
        doubles_last = size > LARGEST_OF_BLOCKS
        if doubles_last:
            finest, doublings = 16, doublings - 1
        widths = [min(WIDEST, finest * 2 ** (doublings - level)) for level in range(doublings + 1)]
        self.embedding = nn.Embedding(num_classes, latent_dim)
        self.linear = nn.Linear(2 * latent_dim, widths[0] * math.prod(self.map_size))
        self.bn = SynchronizedBatchNorm(widths[0])
        self.blocks = nn.Sequential(
            *(UpsampleBlock(widths[i], widths[i + 1]) for i in range(doublings))
        )
        self.to_pixels: nn.Conv2d = (
            DoublingConv2d(widths[-1], preprocessing.channels, bias=True)
            if doubles_last
            else nn.Conv2d(widths[-1], preprocessing.channels, 3, padding=1)
        )
        self.pixel_bn = SynchronizedBatchNorm(preprocessing.channels)
        mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)  # [C, 1, 1]
        std = torch.tensor(preprocessing.std).view(-1, 1, 1)  # [C, 1, 1]
        self.register_buffer("class_stride", torch.tensor(first_stride(num_classes)))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Generate images; torch's default generator draws the seeds of the noise.

        Args:
            latent: [N, latent_dim], standard normal.
            labels: int64 [N]; of several labels [N, num_classes], 1 for each that applies.

        Returns:
            Normalized images [N, C, H, W].
        """
        joined = torch.cat([latent, self.embedded(labels)], dim=1)  # [N, 2 * latent_dim]
        x = self.linear(joined).view(len(latent), -1, *self.map_size)
        x = self.blocks(self.bn.noisy_leaky_relu(x, 0.0, NEGATIVE_SLOPE))  # [N, finest, h, w]
        _, height, width = self.image_shape
        x = self.to_pixels(x)[:, :, :height, :width]
        pixels = torch.sigmoid(2 * self.pixel_bn(x))
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return torch.addcmul(-mean / std, pixels, 1 / std)

    def embedded(self, labels: Tensor) -> Tensor:
        """Return the embedding of a class, or the sum of those of labels, [N, latent_dim]."""
        if self.head is MULTI_LABEL:
            weight = self.embedding.weight
            return labels.to(weight.dtype) @ weight
        embedding: Tensor = self.embedding(labels)
        return embedding

    def random_inputs(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw latent vectors [count, latent_dim] and `random_labels` on its device."""
        device = self.embedding.weight.device
        latent = torch.randn((count, self.latent_dim), generator=random, device=device)
        return latent, self.random_labels(count, random)

    def random_labels(self, count: int, random: torch.Generator) -> Tensor:
        """Draw labels of images on the device of the random numbers.

        Classes [count] are uniform over those that are learned, but for the last one, which is
        drawn more seldom where the number of classes is no multiple of their distance.

        Of several labels [count, num_classes] each that is learned applies by itself, to as many
        images as the others, and about `LABELS_PER_IMAGE` apply to an image, or none.
        """
        device = random.device
        stride = self.get_buffer("class_stride").to(device)
        if self.head is not MULTI_LABEL:
            labels = torch.randint(self.num_classes, (count,), generator=random, device=device)
            return labels - labels % stride
        is_learned = torch.arange(self.num_classes, device=device) % stride == 0
        probability = (LABELS_PER_IMAGE / is_learned.sum()).clamp(max=0.5)
        drawn = torch.rand((count, self.num_classes), generator=random, device=device)
        return ((drawn < probability) & is_learned).long()

    def learned_classes(self) -> list[int]:
        """Return the labels that are drawn; waits for the device."""
        return list(range(0, self.num_classes, int(self.get_buffer("class_stride"))))


def generator_of(config: GeneratorConfig, classifier: Classifier) -> ConditionalGenerator:
    """Return a generator for a classifier that has learned nothing."""
    return ConditionalGenerator(
        classifier.num_classes, config.latent_dim, classifier.preprocessing, classifier.head
    )


@contextmanager
def default_random_seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's default random numbers, which the noise in a generator hangs on, for a while.

    Afterwards they are as they were.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
