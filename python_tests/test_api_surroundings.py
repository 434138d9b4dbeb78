"""The API where a caller changed settings of torch, or gives unusual tensors and models."""

import copy
import multiprocessing
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock

import pytest
import torch
from networks import small_residual
from torch import nn
from torch.nn.utils import prune

import zscgan_ext
from zscgan_ext.errors import InputError
from zscgan_ext.torch_settings import alone

IMAGES = torch.linspace(-2, 2, 4 * 3 * 8 * 8).view(4, 3, 8, 8)
PIXELS = {"image_size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def load(model, **settings):
    return zscgan_ext.load_classifier(model, **{**PIXELS, **settings})


@contextmanager
def float64_as_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


SETTINGS = {
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "float64": float64_as_default,
    "meta device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def outcome(folder, model):
    """What all stages of the API give."""
    classifier = load(model)
    small = {"synthesis_steps": 2, "batch_size": 10, "latent_dim": 4}
    generator = zscgan_ext.train_generator(classifier, **small)
    student = zscgan_ext.quantize(classifier, [IMAGES], calibration_batches=1)
    zscgan_ext.fine_tune(student, classifier, [IMAGES], fine_tuning_steps=2)
    zscgan_ext.export(classifier, student, [IMAGES], folder)
    loaded = zscgan_ext.load_quantized(folder / "model.safetensors", model)
    return [*generator.state_dict().values(), *loaded.state_dict().values()]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_torch_change_nothing(tmp_path, settings):
    model = small_residual()
    expected = outcome(tmp_path / "plain", model)
    dtype = torch.get_default_dtype()
    with settings():
        found = outcome(tmp_path / "changed", model)
    assert all(map(torch.equal, found, expected))
    assert torch.get_default_dtype() == dtype


def test_threads_change_no_results_of_each_other():
    classifier = load(small_residual())
    torch.manual_seed(5)
    own = torch.get_rng_state()

    def learned(seed):
        small = {"synthesis_steps": 2, "batch_size": 10, "latent_dim": 4}
        generator = zscgan_ext.train_generator(copy.deepcopy(classifier), seed=seed, **small)
        return generator.state_dict()

    expected = [learned(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for found, alone in zip(threads.map(learned, range(4)), expected, strict=True):
                torch.testing.assert_close(found, alone, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), own)


def generated(generator):
    return [images for images, _ in zscgan_ext.generate_images(generator, 3, seed=1)]


CALLS = {
    "generate_images": lambda generator, file: generated(generator),
    "load_classifier": lambda generator, file: load(small_residual()).model(IMAGES),
    "load_quantized": lambda generator, file: zscgan_ext.load_quantized(file, small_residual()),
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A classifier, its generator, and the file of its student."""
    folder, classifier = tmp_path_factory.mktemp("learned"), load(small_residual())
    generator = zscgan_ext.train_generator(classifier, synthesis_steps=1, batch_size=10)
    zscgan_ext.export(classifier, zscgan_ext.quantize(classifier), None, folder)
    return classifier, generator, folder / "model.safetensors"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_waits_for_that_of_another_thread(call, learned):
    classifier, generator, file = learned
    threads, started = ThreadPoolExecutor(1), []

    def images():
        while True:
            if not started:
                started.append(threads.submit(call, generator, file))
                done, _ = wait(started, timeout=0.5)
                started.append(bool(done))
            yield IMAGES

    zscgan_ext.quantize(classifier, images(), calibration_batches=1)
    began, was_done = started
    began.result(timeout=60)
    assert not was_done


def test_a_forked_process_waits_for_no_thread_of_its_parent():
    """As a worker of a DataLoader does: the thread that held the lock is not there any longer."""
    held, ends = Event(), Event()

    def hold():
        with alone():
            held.set()
            ends.wait()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(hold)
        held.wait()
        worker = multiprocessing.get_context("fork").Process(target=alone().__enter__)
        worker.start()
        worker.join(20)
        worker.kill()
        ends.set()
    assert worker.exitcode == 0


class Subclass(torch.Tensor):
    """A class of tensors that computes as it likes."""


def with_weight(change):
    model = small_residual()
    model.stem.weight = nn.Parameter(change(model.stem.weight.detach()))
    return model


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))


class Gives(nn.Module):
    """Gives what a function makes of a classifier's logits."""

    def __init__(self, change):
        super().__init__()
        self.model = small_residual()
        self.change = change

    def forward(self, x):
        return self.change(self.model(x))


MODELS = {
    "subclass": (
        lambda: with_weight(lambda w: w.as_subclass(Subclass)),
        "weight stem.weight is of the class .*, expected a plain tensor",
    ),
    "sparse": (lambda: with_weight(torch.Tensor.to_sparse), "is torch.sparse_coo, torch.float32"),
    "lazy": (lazy, "its weight 0.weight is not initialized"),
    "sparse logits": (lambda: Gives(torch.Tensor.to_sparse), "expected logits of real numbers"),
    "meta logits": (lambda: Gives(lambda y: y.to("meta")), "logits of real numbers.* on meta"),
    "complex logits": (
        lambda: Gives(lambda y: y.to(torch.complex64)),
        "expected logits of real numbers, got torch.complex64",
    ),
}


@pytest.mark.parametrize(
    "compute",
    [
        lambda layer: nn.utils.weight_norm(layer),
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight norm", "pruning"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weights_that_hooks_compute_are_copied(compute):
    model = small_residual()
    compute(model.stem)
    expected, kept = model(IMAGES).detach(), model.stem.weight
    classifier = load(model)
    assert torch.allclose(classifier.model(IMAGES), expected, atol=1e-5)
    assert model.stem.weight is kept


def test_a_model_that_cannot_be_copied_is_refused():
    model = small_residual()
    model.lock = Lock()
    with pytest.raises(InputError, match=r"classifier: .* cannot be copied .*lock"):
        load(model)


def test_a_model_that_goes_another_way_with_more_images_is_refused():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small_residual()

        def forward(self, x):
            logits = self.model(x)
            return logits if x.shape[0] < 100 else -logits

    with pytest.raises(InputError, match="goes another way with more than 99 images"):
        load(Branching().eval())


@pytest.mark.parametrize(("make", "message"), MODELS.values(), ids=MODELS)
def test_models_of_unusual_tensors_are_refused(make, message):
    with pytest.raises(InputError, match=message) as refused:
        load(make())
    assert "\n" not in str(refused.value)


class Opened:
    """Opened images of a caller's own class, with batches of any kind."""

    labels = torch.zeros(4, dtype=torch.int64)

    def __init__(self, given):
        self.given = given

    def __len__(self):
        return 4

    def batches(self, batch_size, preprocessing):
        return self.given


OPENED = {
    "no labels": ([IMAGES], "expected labels too"),
    "too few": ([(IMAGES[:3], Opened.labels[:3])], "expected 4 images in its batches, got 3"),
    "none": ([], "expected 4 images in its batches, got 0"),
    "no batches": (5, "expected batches of images and labels, got a int"),
    "arrays": ([(IMAGES.numpy(), Opened.labels)], "got a ndarray in a batch"),
    "other labels": ([(IMAGES, Opened.labels + 5)], "from 0 to 4, got them from 5 to 5"),
}


@pytest.mark.parametrize(("given", "message"), OPENED.values(), ids=OPENED)
def test_batches_of_a_callers_own_class_are_checked(given, message):
    classifier = load(small_residual())
    assert zscgan_ext.evaluate(classifier.model, classifier, Opened([(IMAGES, Opened.labels)]))
    with pytest.raises(InputError, match=message):
        zscgan_ext.evaluate(classifier.model, classifier, Opened(given))


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda y: y.to("meta")])
def test_logits_of_unusual_kinds_are_refused(change):
    classifier = load(small_residual())
    images = Opened([(IMAGES, Opened.labels)])
    with pytest.raises(InputError, match="expected logits in floating point from it, got"):
        zscgan_ext.evaluate(lambda x: change(classifier.model(x)), classifier, images)


@pytest.mark.parametrize(
    "settings", [{"num_classes": 10**400}, {"image_size": 10**400}, {"mean": (10**400,) * 3}]
)
def test_integers_without_end_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))) as refused:
        load(small_residual(), **settings)
    assert len(str(refused.value)) < 2000


def test_no_gradient_reaches_the_images_of_a_caller():
    """They may come from a graph that is backpropagated once only."""
    scale = torch.ones((), requires_grad=True)
    classifier = load(small_residual())
    batches = [IMAGES * scale]
    student = zscgan_ext.quantize(classifier, batches, calibration_batches=1)
    zscgan_ext.fine_tune(student, classifier, batches, fine_tuning_steps=2)
    assert scale.grad is None
