"""Classifiers of several labels: what is detected, learned, measured and written."""

import copy
import csv
import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from networks import labels_gray, one_logit_gray, small_gray
from PIL import Image
from runs import TINY
from torch import nn

import zscgan_ext
from zscgan_ext.classifiers.heads import MULTI_LABEL, SINGLE_LABEL
from zscgan_ext.config.configs import FineTuningConfig
from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.__main__ import main as evaluate
from zscgan_ext.generate.__main__ import main as generate
from zscgan_ext.images.datasets import LabelledImages
from zscgan_ext.images.label_table import open_label_table
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.measures import average_precisions, mean_average_precision
from zscgan_ext.quantization.fine_tuning import student_loss
from zscgan_ext.report.__main__ import main as report
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.train import main as train

GRAY = {"image_size": 28, "mean": [0.5], "std": [0.25]}
PREPROCESSING = Preprocessing(1, 28, (0.5,), (0.25,))
NAMES = ("0", "1", "2", "3")
OWN = "--classifier=networks:labels_gray"
IMAGES = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def average_precision_score(truth: torch.Tensor, scores: torch.Tensor) -> float:
    """The area below precision over recall, in steps, threshold by threshold."""
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = float((truth * chosen).sum() / truth.sum())
        area += (recall - before) * float((truth * chosen).sum() / chosen.sum())
        before = recall
    return area


# ---- what logits mean ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "head", "expected"),
    [
        (labels_gray(), "auto", MULTI_LABEL),
        (labels_gray(), "multi-label", MULTI_LABEL),
        (nn.Sequential(labels_gray(), nn.Unflatten(1, (2, 2)), nn.Flatten()), "auto", MULTI_LABEL),
        (small_gray(4), "multi-label", MULTI_LABEL),
        (small_gray(4), "auto", SINGLE_LABEL),
    ],
)
def test_a_sigmoid_at_the_end_is_taken_off_and_says_what_logits_mean(model, head, expected):
    classifier = zscgan_ext.load_classifier(model, head=head, **GRAY)
    assert classifier.head is expected
    assert torch.equal(classifier.model(IMAGES), small_gray(4)(IMAGES))


def test_a_sigmoid_is_kept_where_one_class_applies():
    classifier = zscgan_ext.load_classifier(labels_gray(), head="single-label", **GRAY)
    assert classifier.head is SINGLE_LABEL
    assert torch.equal(classifier.model(IMAGES), labels_gray()(IMAGES))


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(small_gray(1), nn.Sigmoid()), nn.Sequential(one_logit_gray(), nn.Sigmoid())],
)
def test_the_sigmoid_of_one_logit_is_the_probability_of_the_second_class(model):
    classifier = zscgan_ext.load_classifier(model, **GRAY)
    assert classifier.head is SINGLE_LABEL
    probability = classifier.model(IMAGES).softmax(1)[:, 1]
    torch.testing.assert_close(probability, model(IMAGES).reshape(-1))


@pytest.mark.parametrize("head", [SINGLE_LABEL, MULTI_LABEL])
def test_copies_have_the_very_same_head(head):
    assert copy.deepcopy(head) is head
    assert pickle.loads(pickle.dumps(head)) is head


def test_one_logit_is_not_several_labels():
    with pytest.raises(InputError, match="head: expected single-label for the one logit"):
        zscgan_ext.load_classifier(small_gray(1), head="multi-label", **GRAY)


# ---- losses and measures -------------------------------------------------------------------------


def test_losses_are_binary_and_sum_over_labels():
    logits, teacher = random(2, 6, 4)
    labels = torch.tensor([[1, 0, 0, 1]] * 6)
    p = torch.distributions.Bernoulli(logits=teacher / 2)
    q = torch.distributions.Bernoulli(logits=logits / 2)
    divergence = 4 * torch.distributions.kl_divergence(p, q).sum(1).mean()
    entropy = -torch.distributions.Bernoulli(logits=logits).log_prob(labels.double()).sum(1).mean()
    config = FineTuningConfig(temperature=2.0, distillation_weight=3.0, label_weight=0.5)
    found = student_loss(logits, teacher, labels, config, MULTI_LABEL)
    torch.testing.assert_close(found, (3 * divergence + 0.5 * entropy).float())
    summed = MULTI_LABEL.label_loss(logits, labels, reduction="sum")
    torch.testing.assert_close(summed, 6 * entropy.float())
    torch.testing.assert_close(MULTI_LABEL.entropy(teacher / 2), p.entropy().sum(1))


@pytest.mark.parametrize("steps", [0, 4], ids=["all different", "with ties"])
def test_average_precision_is_the_area_below_precision_over_recall(steps):
    logits = random(40, 3)
    logits = (logits * steps).round() if steps else logits
    labels = (random(3, 40).T > 0.4).long()
    expected = [100 * average_precision_score(labels[:, i], logits[:, i]) for i in range(3)]
    torch.testing.assert_close(average_precisions(logits, labels), torch.tensor(expected).double())
    assert mean_average_precision(logits, labels) == pytest.approx(np.mean(expected))
    labels[:, 1] = 0
    assert mean_average_precision(logits, labels) == pytest.approx(np.mean(expected[::2]))
    assert mean_average_precision(logits, labels * 0) is None


# ---- the generator -------------------------------------------------------------------------------


def test_labels_apply_each_by_itself_and_only_those_that_are_learned():
    generator = ConditionalGenerator(40, 4, PREPROCESSING, MULTI_LABEL)
    labels = generator.random_labels(20_000, torch.Generator().manual_seed(0)).double()
    assert not labels[:, 1::2].any()  # of 40 labels, every second one is learned first
    learned = labels[:, ::2]
    assert learned.mean(0).sub(0.1).abs().max() < 0.01  # two of twenty
    assert learned.T.corrcoef().fill_diagonal_(0).abs().max() < 0.05


def test_the_embeddings_of_labels_are_added():
    generator = ConditionalGenerator(4, 3, PREPROCESSING, MULTI_LABEL)
    weight = generator.embedding.weight
    found = generator.embedded(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0]]))
    torch.testing.assert_close(found, torch.stack([weight[1] + weight[3], torch.zeros(3)]))


def sensitive_labels() -> nn.Module:
    """A classifier of two labels whose logits vary by four over images of all contrasts."""
    model, rng = small_gray(2), torch.Generator().manual_seed(0)
    contrast, brightness = 4 * torch.rand(2, 64, 1, 1, 1, generator=rng)
    images = contrast * torch.randn(64, 1, 28, 28, generator=rng) + brightness - 2
    head = model[-1]
    head.weight.mul_(4 / model(images).std(0)[:, None])
    head.bias.sub_(model(images).mean(0))
    return model


def test_a_generator_learns_to_give_the_labels_that_it_is_asked_for():
    classifier = zscgan_ext.load_classifier(sensitive_labels(), head="multi-label", **GRAY)
    options = {"latent_dim": 8, "batch_size": 16, "device": "cpu", "precision": "float32"}
    options |= {"batch_norm_weight": 0.0, "diversity_weight": 0.0}
    generator = zscgan_ext.train_generator(classifier, synthesis_steps=20, **options)
    ((images, labels),) = zscgan_ext.generate_images(generator, 64)
    assert len(labels.unique(dim=0)) == 4  # each of two labels with and without the other
    given = classifier.model(images) > 0
    assert (given == labels.bool()).double().mean() > 0.95


# ---- tables of labels ----------------------------------------------------------------------------


def write_table(folder, rows):
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("L", (28, 28)).save(folder / name)
    text = "\n".join(",".join(row) for row in rows)
    (folder / "labels.csv").write_text(text + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("header", "names", "expected"),
    [
        (["file", "cat", "dog"], ("cat", "dog"), [[1, 0], [0, 0]]),
        (["file", "dog", "cat"], ("cat", "dog"), [[0, 1], [0, 0]]),
        (["file", "cat", "dog"], ("0", "1"), [[1, 0], [0, 0]]),
        (["file", "1", "0"], ("0", "1"), [[0, 1], [0, 0]]),
    ],
)
def test_columns_are_labels_by_their_names(tmp_path, header, names, expected):
    name = write_table(tmp_path, [header, ["b.png", "1", "0"], ["a.png", "0", "0"]])
    data = open_label_table(name, PREPROCESSING, names)
    assert data.labels.tolist() == expected
    assert [file.name for file in data.files] == ["b.png", "a.png"]
    assert len(data) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["name", "cat", "dog"], ["a.png", "1", "0"]], "expected file as its first column"),
        ([["file", "cat"], ["a.png", "1"]], "has columns for 1 labels, the classifier has 2"),
        ([["file", "cat", "dg"], ["a.png", "1", "0"]], "no label 'dg', did you mean dog"),
        ([["file", "cat", "cat"], ["a.png", "1", "0"]], "two columns of one label"),
        ([["file", "cat", "dog"]], "lists no image"),
        ([["file", "cat", "dog"], ["a.png", "1"]], "row 2 has 2 columns, the first 3"),
        ([["file", "cat", "dog"], ["a.png", "1", "2"]], "expected 0 or 1 .* got '2' in row 2"),
        ([["file", "cat", "dog"], ["c.png", "1", "0"]], "its image c.png is missing"),
        ([["file", "cat", "dog"], ["../a.png", "1", "0"]], "paths below its folder"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        open_label_table(write_table(tmp_path, rows), PREPROCESSING, ("cat", "dog"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["file", "1", "cat"], "no label 'cat'"),  # is the first column the second label?
        (["file", "1", "2"], "no label '2'"),
        (["file", "cat", "cat"], "two columns of one label"),
    ],
)
def test_columns_that_may_be_meant_otherwise_are_refused(tmp_path, header, message):
    """Of a classifier that knows no names."""
    table = write_table(tmp_path, [header, ["a.png", "1", "0"]])
    with pytest.raises(InputError, match=message):
        open_label_table(table, PREPROCESSING, ("0", "1"))


@pytest.mark.parametrize("again", ["a.png", "./a.png"])
def test_an_image_is_listed_once(tmp_path, again):
    rows = [["file", "cat", "dog"], ["a.png", "1", "0"], ["b.png", "1", "0"], [again, "0", "1"]]
    with pytest.raises(InputError, match=r"a\.png twice, again in row 4"):
        open_label_table(write_table(tmp_path, rows), PREPROCESSING, ("cat", "dog"))


def test_images_of_one_label_each_are_refused():
    with pytest.raises(InputError, match=r"fashion-mnist: expected a folder with labels\.csv"):
        open_label_table("fashion-mnist", PREPROCESSING, NAMES)


# ---- a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder of images with the labels that the float classifier gives them, but for one."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8)
    pixels[::2] //= 4
    images = PREPROCESSING.normalize(torch.from_numpy(pixels)[:, None])
    labels = (labels_gray()(images) > 0.5).long()
    labels[0, 0] = 1 - labels[0, 0]
    with open(folder / "labels.csv", "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", *NAMES])
        for number, values in enumerate(labels.tolist()):
            Image.fromarray(pixels[number]).save(folder / f"{number}.png")
            rows.writerow([f"{number}.png", *values])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, labelled):
    """A tiny run of a classifier of four labels."""
    folder = tmp_path_factory.mktemp("run") / "run"
    tiny = [word for word in TINY[1:] if "num-classes" not in word and "export" not in word]
    data = f"--evaluation-data={labelled}"
    options = ["--bits=w8a8", "--export=onnx,safetensors", "--label-weight=0.1", data]
    assert train([OWN, *tiny, *options, f"--output={folder}"]) == 0
    return folder


def test_a_run_measures_average_precision_and_agreement_of_labels(run, labelled):
    metrics = json.loads((run / "metrics.json").read_text())
    data = open_label_table(str(labelled), PREPROCESSING, NAMES)
    images, labels = next(data.batches(12, PREPROCESSING))
    scores = labels_gray()(images)
    occur = [i for i in range(4) if labels[:, i].any()]
    expected = [100 * average_precision_score(labels[:, i], scores[:, i]) for i in occur]
    assert metrics["mean_average_precision"]["float"] == pytest.approx(np.mean(expected))
    assert set(metrics["top1"].values()) == {None}
    chosen = safetensors.torch.load_file(run / "predictions.safetensors")
    assert chosen["float"].tolist() == (scores > 0.5).int().tolist()
    row = metrics["choice"]["chosen"]
    same = (chosen[row] == chosen["float"]).double().mean()
    assert metrics["agreement"][row] == pytest.approx(100 * float(same))


@pytest.mark.parametrize("name", ["", "model.onnx", "model.safetensors"])
def test_a_run_and_its_files_are_evaluated(run, labelled, name, tmp_path, capsys):
    results = tmp_path / "results.json"
    arguments = [str(run / name), OWN, f"--data={labelled}", f"--json={results}"]
    assert evaluate(arguments) == 0
    assert "mean average precision %" in capsys.readouterr().out
    found = json.loads(results.read_text())
    assert found["images"] == 12
    assert found["float_mean_average_precision"] > found["mean_average_precision"] - 15 > 50
    # One label of 48 was changed, so the float classifier is wrong about that one only.
    wrong = 100 - found["label_accuracy"]
    assert abs(wrong - (100 - found["agreement"])) <= 100 / 48 + 1e-6


def test_images_without_labels_are_compared(run, labelled, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for file in labelled.glob("*.png"):
        (tmp_path / "images" / file.name).write_bytes(file.read_bytes())
    results = tmp_path / "results.json"
    arguments = [str(run), OWN, f"--data={tmp_path / 'images'}", f"--json={results}"]
    assert evaluate(arguments) == 0
    found = json.loads(results.read_text())
    predictions = safetensors.torch.load_file(run / "predictions.safetensors")
    row = json.loads((run / "metrics.json").read_text())["choice"]["chosen"]
    differ = predictions[row] != predictions["float"]
    assert found["agreement"] == pytest.approx(100 * float((~differ).double().mean()))
    assert len(found["differences"]) == int(differ.any(1).sum())
    counts = predictions[row].sum(0).tolist()
    assert found["chosen"] == {name: n for name, n in zip(NAMES, counts, strict=True) if n}


def test_generated_labels_are_written_and_read_again(run, tmp_path, capsys):
    assert generate([str(run), "--count=20", f"--out={tmp_path / 'arrays'}"]) == 0
    labels = np.load(tmp_path / "arrays" / "labels.npy")
    assert labels.shape == (20, 4)
    assert set(labels.flatten().tolist()) == {0, 1}
    pictures = tmp_path / "pictures"
    assert generate([str(run), "--count=20", "--format=png", f"--out={pictures}"]) == 0
    data = open_label_table(str(pictures), PREPROCESSING, NAMES)
    assert data.labels.tolist() == labels.tolist()
    assert generate([str(run), "--format=imagefolder", f"--out={tmp_path / 'tree'}"]) == 2
    assert "expected npy, torch or png" in capsys.readouterr().err


def test_the_report_shows_labels(run):
    assert report([str(run), OWN]) == 0
    page = (run / "report.html").read_text()
    assert "mAP, float" in page
    assert "% of the labels of the 12 evaluation images" in page


def test_the_instant_preset_takes_labels(tmp_path):
    options = ["--image-size=28", "--mean=0.5", "--std=0.25", "--device=cpu", "--no-report"]
    folder = tmp_path / "run"
    assert train([OWN, "--preset=instant", "--bits=auto", *options, f"--output={folder}"]) == 0
    loaded = zscgan_ext.load_quantized(folder / "model.safetensors", labels_gray())
    assert loaded.head is MULTI_LABEL
    logits = small_gray(4)(IMAGES)
    assert (loaded(IMAGES) - logits).abs().max() < 0.3 * logits.abs().max()


def test_objects_are_evaluated_and_fine_tuned_with_labels():
    classifier = zscgan_ext.load_classifier(labels_gray(), **GRAY)
    pixels = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    normal = PREPROCESSING.normalize(pixels)
    labels = MULTI_LABEL.chosen(classifier.model(normal))
    found = zscgan_ext.evaluate(classifier.model, classifier, LabelledImages(pixels, labels))
    assert (found.label_accuracy, found.agreement, found.images) == (100.0, 100.0, 6)
    with pytest.raises(InputError, match=r"data: labels: expected a tensor of 0 and 1.*\[6, 4\]"):
        zscgan_ext.evaluate(classifier.model, classifier, LabelledImages(pixels, labels[:, 0]))
    student = zscgan_ext.quantize(classifier, [normal], bits="w8a8", device="cpu")
    options = {"label_weight": 1.0, "fine_tuning_steps": 1, "device": "cpu"}
    zscgan_ext.fine_tune(student, classifier, [(normal, labels)], **options)
    with pytest.raises(InputError, match=r"images: labels: .* got them from 1 to 2"):
        zscgan_ext.fine_tune(student, classifier, [(normal, labels + 1)], **options)
