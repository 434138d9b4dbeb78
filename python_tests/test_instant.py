"""Quantizing without a generator: samples from batch norm, ranges, and the preset `instant`."""

import json

import pytest
import torch
from networks import RGB8, as_trained, small_gray, small_residual
from runs import OWN, write_fashion_mnist
from safetensors.torch import load_file
from torch import Tensor, nn

import zscgan_ext
from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.__main__ import main as evaluate_main
from zscgan_ext.export.__main__ import main as export_main
from zscgan_ext.images.datasets import open_images
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.measures import agreement
from zscgan_ext.quantization import batch_norm_samples, output_error_ranges
from zscgan_ext.quantization.batch_norm_samples import (
    BatchNormSampler,
    Statistics,
    drawn_input,
    known_statistics,
)
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.fine_tuning import logit_divergence
from zscgan_ext.quantization.instant import quantize_from_batch_norm
from zscgan_ext.quantization.output_error_ranges import (
    ActivationRecorder,
    choose_range_by_importance,
    importance,
    set_ranges_by_output_error,
)
from zscgan_ext.quantization.quantizers import ActivationQuantizer
from zscgan_ext.quantization.scheme import Scheme, unsigned_range
from zscgan_ext.report.__main__ import main as report_main
from zscgan_ext.train import main
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

DEPLOY8, PAPER8 = Scheme("deploy", 8, 8), Scheme("paper", 8, 8)
INSTANT = [
    *(OWN, "--num-classes=10", "--image-size=28", "--mean=0.5", "--std=0.25"),
    *("--preset=instant", "--device=cpu"),
]


class ManyKinds(nn.Module):
    """Sums, concatenations, pooling and squeeze-excite, none of which a batch norm follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.norm3 = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, 3, 8, 8] to [N, 5]."""
        x = torch.relu(self.norm1(self.first(images)))
        y = x + self.norm2(self.second(x))
        gates = torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))
        y = y * torch.sigmoid(self.excite(gates))
        joined = torch.cat([y, torch.max_pool2d(x, 3, 1, 1)], 1)
        joined = torch.nn.functional.avg_pool2d(self.norm3(joined), 2)
        return self.fc(joined.mean((2, 3)))


def smooth_images(count: int, seed: int = 0) -> Tensor:
    """Return images [N, 3, 8, 8] whose neighbouring pixels are alike, as those of photographs."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=random)
    pixels = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    return RGB8.normalize((255 * pixels).to(torch.uint8))


def trained_statistics(model: nn.Module) -> nn.Module:
    """Let batch norms store the statistics of smooth images, and freeze the model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    model.train()
    with torch.no_grad():
        for seed in range(8):
            model(smooth_images(128, seed + 1))
    return model.eval().requires_grad_(False)


def many_kinds() -> nn.Module:
    """A frozen `ManyKinds`, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained_statistics(ManyKinds())


def sampled_results(student, statistics, images) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}

    class Recorder(BatchNormSampler):
        def run_node(self, n):
            results[n.name] = super().run_node(n)
            return results[n.name]

    with torch.no_grad():
        Recorder(student, statistics, torch.Generator().manual_seed(0)).run(images)
    return results


@pytest.mark.parametrize("scheme", [DEPLOY8, PAPER8], ids=["deploy", "paper"])
def test_samples_have_the_moments_that_batch_norm_gives(scheme):
    model = small_residual()
    model.stem_bn.weight[1] *= -1
    student = convert(model, scheme, RGB8.shape)
    images = drawn_input(RGB8, torch.Generator().manual_seed(0))
    results = sampled_results(student, known_statistics(model, student), images)
    for name, norm in (("stem", model.stem_bn), ("depthwise", model.depthwise_bn)):
        behind = results[name] if scheme.folds_batch_norm else norm(results[name])
        variance = norm.weight**2 * norm.running_var / (norm.running_var + norm.eps)
        torch.testing.assert_close(behind.mean((0, 2, 3)), norm.bias, rtol=0, atol=2e-3)
        torch.testing.assert_close(behind.var((0, 2, 3)), variance, rtol=0.02, atol=0)


def test_a_folded_norm_behind_a_tensor_tells_the_statistics_of_that_tensor():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Flatten()),
        nn.Linear(256, 5),
    )
    model[2].running_mean.copy_(torch.tensor([0.5, 1.0, 2.0, 0.1]))
    model[2].running_var.copy_(torch.tensor([0.2, 1.0, 3.0, 0.1]))
    model.eval().requires_grad_(False)
    student = convert(model, DEPLOY8, RGB8.shape)
    ((name, known),) = known_statistics(model, student).items()
    (node,) = (node for node in student.graph.graph.nodes if node.name == name)
    assert node.target is torch.nn.functional.relu
    torch.testing.assert_close(known.mean, model[2].running_mean)
    torch.testing.assert_close(known.variance, model[2].running_var)


def test_channels_that_the_input_leaves_constant_vary_as_stored():
    student = convert(small_residual(), DEPLOY8, RGB8.shape)
    sampler = BatchNormSampler(student, {}, torch.Generator().manual_seed(0))
    x = torch.ones(64, 3, 8, 8) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    x[:, 2] = torch.randn(64, 8, 8)
    known = Statistics(torch.tensor([4.0, 5.0, 6.0]), torch.tensor([9.0, 0.0, 0.25]))
    y = sampler.standardized(x, known)
    torch.testing.assert_close(y.mean((0, 2, 3)), known.mean, rtol=0, atol=0.2)
    torch.testing.assert_close(y.var((0, 2, 3)), known.variance, rtol=0.05, atol=1e-6)


def test_the_drawn_input_lies_within_what_pixels_are():
    images = drawn_input(RGB8, torch.Generator().manual_seed(0))
    low, high = RGB8.black_and_white(images.device)
    assert bool((images >= low).all())
    assert bool((images <= high).all())
    black_of_red = (0 - 0.4) / 0.2
    assert float(images[:, 0].amin()) == pytest.approx(black_of_red)


def test_drawn_images_differ_in_contrast(monkeypatch):
    wide = Preprocessing(1, 28, (0.5,), (0.02,))  # whose pixels nothing cuts off
    kurtosis = []
    for contrasts in (0.0, batch_norm_samples.CONTRASTS):
        monkeypatch.setattr(batch_norm_samples, "CONTRASTS", contrasts)
        images = drawn_input(wide, torch.Generator().manual_seed(0))
        assert float(images.std()) == pytest.approx(1, abs=0.02)
        kurtosis.append(float(images.pow(4).mean() / images.square().mean().square()))
    # exp(4 * 0.3^2) = 1.43 for very many images.
    assert 1.2 < kurtosis[1] / kurtosis[0] < 1.8


@pytest.mark.parametrize("scheme", [DEPLOY8, PAPER8], ids=["deploy", "paper"])
def test_every_range_covers_the_activations_of_real_images_and_little_more(scheme):
    model = many_kinds()
    student = convert(model, scheme, RGB8.shape)
    images = smooth_images(256)
    observed: dict[ActivationQuantizer, Tensor] = {}

    def observe(quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
        observed[quantizer] = x
        return x

    with torch.no_grad():
        student.forward_with(observe, images)  # of float activations, nothing is rounded yet
    names = {quantizer: name for name, quantizer in student.named_activation_quantizers().items()}
    classifier = load_classifier(model, image_size=8, mean=RGB8.mean, std=RGB8.std)
    quantize_from_batch_norm(student, classifier, torch.Generator().manual_seed(0))
    assert len(observed) == len(student.activation_quantizers) >= 2
    for quantizer, x in observed.items():
        scale, zero_point = (float(value.detach()) for value in quantizer.qparams())
        low, high = -zero_point * scale, (255 - zero_point) * scale
        clipped = float(((x < low - scale) | (x > high + scale)).float().mean())
        assert clipped < 0.025, names[quantizer]
        real = float(x.amax() - x.amin())
        assert high - low < 4 * real, names[quantizer]


def test_answers_are_nearer_to_the_float_ones_than_with_plain_rounding_and_noise():
    classifier = load_classifier("resnet20")
    data = open_images("fashion-mnist", "test", FASHION_MNIST_PREPROCESSING)
    images, _ = next(data.batches(300, FASHION_MNIST_PREPROCESSING))
    noise = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier.model(images)
        instant = zscgan_ext.quantize(classifier, bits="w4a4")(images)
        plain = zscgan_ext.quantize(
            classifier, [noise], bits="w4a4", rounding="nearest", ranges="images"
        )(images)
    assert agreement(instant, expected) > 95
    divergence = logit_divergence(instant, expected, 1)
    assert float(divergence) < 0.5 * float(logit_divergence(plain, expected, 1))


def test_quantize_without_images_is_the_preset_and_draws_the_same_again():
    classifier = load_classifier(small_gray(), image_size=28)
    states = [
        zscgan_ext.quantize(classifier, bits="w4a8", **more).state_dict()
        for more in ({}, {"preset": "instant"})
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    other = zscgan_ext.quantize(classifier, bits="w4a8", seed=1).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fine_tuning_steps": 3}, "fine_tuning_steps: 3 needs generated images"),
        ({"synthesis_steps": 3}, "synthesis_steps: 3 needs generated images"),
        ({"ranges": "images"}, "ranges: images needs generated images"),
        ({"ranges": "narrower"}, "ranges: narrower needs generated images"),
        ({"training": "alternating"}, "training: alternating needs generated images"),
        ({"stop_after": "synthesis"}, "stop_after: synthesis needs generated images"),
    ],
)
def test_what_needs_generated_images_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        RunConfig.of_options({"preset": "instant", **arguments})


def test_a_student_is_exported_without_images(tmp_path):
    classifier = load_classifier(small_gray(), image_size=28)
    student = zscgan_ext.quantize(classifier)
    zscgan_ext.export(classifier, student, None, tmp_path)
    loaded = zscgan_ext.load_quantized(tmp_path / "model.safetensors", classifier.model)
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(loaded(images), student(images))


def test_channels_that_nothing_depends_on_do_not_widen_a_range():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, 8, 8, generator=random)
    x[:, 1] *= 100
    highest = []
    for weight in (1.0, 0.0):
        quantizer = ActivationQuantizer(unsigned_range(4))
        choose_range_by_importance(quantizer, x, torch.tensor([1.0, weight]), random)
        highest.append(float(quantizer.log_scale.detach().exp()))
    assert highest[1] < 0.3 * highest[0]


@pytest.mark.parametrize(("farthest", "expected"), [(10, 1.3), (1.2, 1.2)])
def test_a_margin_widens_a_range_up_to_the_whole_one(farthest, expected):
    # Nothing depends on the second channel, and all values of the first are below 1.
    x = torch.stack([torch.linspace(0, 1, 5000), torch.linspace(0, farthest, 5000)], 1)
    highest = []
    for margin in (1.0, 1.3):
        quantizer = ActivationQuantizer(unsigned_range(8))
        random = torch.Generator().manual_seed(0)
        choose_range_by_importance(quantizer, x, torch.tensor([1.0, 0.0]), random, margin)
        highest.append(float(quantizer.qparams().scale.detach()) * 255)
    assert highest == pytest.approx([1, expected], rel=0.04)


@pytest.mark.parametrize(("bits", "has_margin"), [(4, False), (8, True)])
def test_only_eight_bits_have_a_margin(monkeypatch, bits, has_margin):
    model = many_kinds()
    ends = []
    for margin in (1.0, 1.1):
        monkeypatch.setattr(output_error_ranges, "MARGIN", margin)
        student = convert(model, Scheme("paper", bits, bits), RGB8.shape)
        statistics, random = known_statistics(model, student), torch.Generator().manual_seed(0)
        recorder = ActivationRecorder(student, statistics, random)
        set_ranges_by_output_error(student, recorder, drawn_input(RGB8, random))
        quantizers = student.named_activation_quantizers()
        ends.append([float(each.log_scale.detach()) for each in quantizers.values()])
    narrow, wide = torch.tensor(ends).exp()
    assert bool((wide > narrow).any()) is has_margin
    assert bool((wide <= 1.1001 * narrow).all())


def test_hardly_an_average_of_integers_lies_in_the_middle_between_two():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 6, 3, padding=1, bias=False)
    rectified = nn.Sequential(convolution, nn.BatchNorm2d(6), nn.ReLU())
    model = nn.Sequential(rectified, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    classifier = load_classifier(as_trained(model), image_size=2, mean=[0.4] * 3, std=[0.2] * 3)
    student = convert(classifier.model, Scheme("deploy", 8, 8), classifier.preprocessing.shape)
    quantize_from_batch_norm(student, classifier, torch.Generator().manual_seed(0))
    _, averaged, average, *_ = student.activation_quantizers
    integers = torch.arange(1, 4 * 255) / 4  # averages of four places
    values = integers * averaged.log_scale.exp()
    nudge = 1e-4 * averaged.log_scale.exp()
    is_in_the_middle = average(values - nudge) != average(values + nudge)
    assert is_in_the_middle.float().mean() < 0.01  # with the same scale for both a quarter is


def test_importance_is_what_an_error_costs_in_divergence():
    gradient = torch.tensor([[[1.0, 3.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 0.0]]])  # [N, C, places]
    torch.testing.assert_close(importance(gradient), torch.tensor([3.0, 1.0]))


def test_functions_that_need_images_refuse_the_preset():
    classifier = load_classifier(small_gray(), image_size=28)
    with pytest.raises(InputError, match="preset: instant learns no generator"):
        zscgan_ext.train_generator(classifier, preset="instant")
    with pytest.raises(InputError, match="preset: instant takes no images"):
        zscgan_ext.quantize(classifier, [torch.zeros(2, 1, 28, 28)], preset="instant")


def files_in(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_run_with_labelled_images(tmp_path, capsys):
    data = write_fashion_mnist(tmp_path / "data")
    run = tmp_path / "run"
    command = [*INSTANT, f"--evaluation-data={data}", f"--output={run}", "--export=safetensors"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert output.index("the quantized classifier is in") < output.index("top-1 %")
    made = files_in(run)
    assert {"quantized.safetensors", "model.safetensors", "report.html", "metrics.json"} <= made
    assert "generator.safetensors" not in made
    assert not any(name.startswith("samples") for name in made)
    metrics = json.loads((run / "metrics.json").read_text())
    measured = {key for key, value in metrics["top1"].items() if value is not None}
    assert measured == {"float", "instant"}
    assert metrics["diversity"] == {}
    assert metrics["seconds"]["synthesis"] == metrics["seconds"]["fine_tuning"] == 0
    assert set(load_file(run / "predictions.safetensors")) == {"float", "instant"}
    page = (run / "report.html").read_text()
    assert "instant, from batch-norm statistics" in page
    assert "60 evaluation images" in page
    assert "Generated images" not in page
    assert "<h2>Losses</h2>" not in page


def test_a_run_without_labelled_images_and_all_that_is_done_with_it_later(tmp_path, capsys):
    run, data = tmp_path / "run", write_fashion_mnist(tmp_path / "data")
    assert main([*INSTANT, f"--output={run}", "--export=none", "--no-report"]) == 0
    before = (run / "quantized.safetensors").read_bytes()
    assert report_main([str(run), OWN]) == 0
    page = (run / "report.html").read_text()
    assert "No images were used" in page
    assert "same class as float" not in page
    assert export_main([str(run), OWN, "--formats=safetensors"]) == 0
    assert (run / "model.safetensors").exists()
    assert evaluate_main([str(run), OWN, f"--data={data}"]) == 0
    assert "top-1 %" in capsys.readouterr().out
    assert main([*INSTANT, f"--resume={run}"]) == 0  # from the beginning
    assert (run / "quantized.safetensors").read_bytes() == before


def test_the_same_run_again_gives_the_same_bits(tmp_path):
    for name in ("a", "b"):
        arguments = [f"--output={tmp_path / name}", "--no-report", "--bits=w3a4"]
        assert main([*INSTANT, *arguments]) == 0
    for file in ("quantized.safetensors", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
