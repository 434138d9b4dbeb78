"""The classifiers that coverage is measured on, with random weights but plausible statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

from zscgan_ext.classifiers.loading import Classifier, find_source
from zscgan_ext.classifiers.sources.source import IMAGENET_MEAN, IMAGENET_STD
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.images.preprocessing import Preprocessing

CLASSES = 10
STATISTICS_BATCH = 16  # images that give batch norm its statistics
SMALLEST_IMAGE = 32  # pixels, where the architecture takes it
IMAGE_SIZES = {
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,  # its windows divide no other size
    "timm:bat_resnext26ts": 256,
    "timm:efficientformerv2_s0": 224,
    "timm:ghostnetv2_100": 64,
    "timm:ghostnetv3_050": 64,
    "timm:inception_resnet_v2": 96,
    "timm:inception_v3": 96,
    "timm:inception_v4": 96,
    "timm:levit_conv_128s": 224,
    "timm:nasnetalarge": 96,
    "timm:pnasnet5large": 96,
}
# Checked only where they are named by --only.
LARGE = {"torchvision:regnet_y_128gf": "645 million parameters, a check takes about 20 GB"}
# Convolutional networks of timm, of about as many families.
TIMM_MODELS = (
    *("bat_resnext26ts", "convmixer_768_32", "cs3darknet_focus_s", "cs3darknet_s"),
    *("cspnext_tiny", "cspresnext50", "darknet17", "densenet121", "densenetblur121d", "dla46_c"),
    *("dla60_res2net", "dpn68", "eca_resnext26ts", "eca_vovnet39b", "ecaresnet26t"),
    *("efficientformerv2_s0", "efficientnet_b0", "efficientnet_es", "efficientnet_lite0"),
    *("efficientvit_b0", "ese_vovnet19b_dw", "fasternet_t0", "fastvit_t8", "fbnetc_100"),
    *("gcresnext26ts", "gernet_s", "ghostnet_100", "ghostnetv2_100", "ghostnetv3_050"),
    *("hardcorenas_a", "hgnet_tiny", "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto"),
    *("inception_resnet_v2", "inception_v3", "inception_v4", "lcnet_100", "lcnetv2_small"),
    *("legacy_seresnext26_32x4d", "legacy_xception", "levit_conv_128s", "mixnet_s"),
    *("mnasnet_100", "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_small_100"),
    *("mobilenetv4_conv_small", "mobileone_s1", "mobilevitv2_050", "nasnetalarge"),
    *("pnasnet5large", "regnetx_002", "regnety_002", "regnetz_005", "repghostnet_050"),
    *("repvgg_a0", "repvit_m0_9", "res2net50_26w_4s", "resnest14d", "resnet10t", "resnet18"),
    *("resnet26d", "resnetblur18", "resnetrs50", "resnetv2_18", "rexnet_100", "selecsls42b"),
    *("semnasnet_100", "seresnext26d_32x4d", "skresnet18", "spnasnet_100", "starnet_s1"),
    *("tf_efficientnet_b0", "tf_mobilenetv3_small_100", "tinynet_e", "tresnet_m", "vgg11_bn"),
    *("wide_resnet50_2", "xception41", "xception41p"),
)


def all_names() -> list[str]:
    """Return every classifier of torchvision that has batch norm, and the list of timm's."""
    torchvision = [
        f"torchvision:{name}"
        for name in models.list_models(module=models)
        if not name.startswith(("alexnet", "convnext", "squeezenet", "swin", "vit"))
        and (not name.startswith("vgg") or name.endswith("_bn"))
    ]
    return [*torchvision, *(f"timm:{name}" for name in TIMM_MODELS)]


def image_size_of(name: str) -> int:
    """Return the smallest image size that a classifier takes, pixels."""
    return IMAGE_SIZES.get(name, SMALLEST_IMAGE)


def plausible_classifier(name: str) -> Classifier:
    """Build a classifier with random weights, and batch-norm statistics that images give it.

    Without them values would grow or vanish from layer to layer.
    """
    torch.manual_seed(0)
    model = find_source(name).build(CLASSES, trained=False).eval().requires_grad_(False)
    size = image_size_of(name)
    preprocessing = Preprocessing(3, size, IMAGENET_MEAN, IMAGENET_STD)
    set_statistics(model, plausible_images(STATISTICS_BATCH, size, torch.Generator()))
    model(plausible_images(1, size, torch.Generator()))  # in evaluation mode; some models cache
    names = tuple(str(index) for index in range(CLASSES))
    return Classifier(name, trace(model, preprocessing.shape), CLASSES, preprocessing, names)


def plausible_images(count: int, size: int, random: torch.Generator) -> Tensor:
    """Draw images [count, 3, size, size] that differ from each other, as photographs do.

    Means over white noise are all alike. Here noise of several scales is added up, with a
    contrast and a color of each image.
    """
    images = torch.randn(count, 3, 1, 1, generator=random).expand(-1, -1, size, size)
    for scale in (2, 4, 8, size):
        noise = torch.randn(count, 3, scale, scale, generator=random)
        images = images + F.interpolate(noise, size, mode="bilinear")
    contrast = 0.2 + 0.6 * torch.rand(count, 1, 1, 1, generator=random)
    return contrast * images


@torch.no_grad()
def set_statistics(model: nn.Module, images: Tensor) -> None:
    """Store the statistics that images give every batch norm, and let no branch be zero."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)
    model(images)
    model.eval()
