"""What `python -m zscgan_ext.evaluate` measures: a run, an ONNX file or a safetensors file."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from zscgan_ext.classifiers.loading import classifier_of
from zscgan_ext.config.command_line import CONFIG
from zscgan_ext.errors import InputError
from zscgan_ext.export.onnx_runtime import OnnxClassifier, require_onnx
from zscgan_ext.export.quantized_file import load_quantized
from zscgan_ext.images.preprocessing import Preprocessing, preprocessing_from
from zscgan_ext.run_folder.finished_run import open_run, read_run_config
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated: a quantized classifier and, where it is at hand, the float one."""

    model: Callable[[Tensor], Tensor]  # [N, C, H, W] to logits [N, num_classes]
    float_model: Callable[[Tensor], Tensor] | None
    classifier: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


def open_evaluated(path: Path, classifier: str | None) -> Evaluated:
    """Open a run's folder, an ONNX file or a safetensors file.

    Args:
        path: the folder or the file.
        classifier: for a run or a file of a classifier that is of no library: its name.

    Raises:
        InputError: if it is something else or cannot be read.
    """
    if os.path.isdir(path):  # Path raises where a name is too long
        run = open_run(path, classifier)
        facts = run.classifier.name, run.classifier.preprocessing, run.classifier.class_names
        return Evaluated(run.student, run.classifier.model, *facts)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file or folder, needed is a run or an exported file")
    if path.suffix == ".onnx":
        require_onnx()
        model = OnnxClassifier(path)
        name, preprocessing, class_names = described(path, model.metadata())
        float_model = float_model_of(path, name, classifier)
        return Evaluated(model, float_model, name, preprocessing, class_names)
    if path.suffix == ".safetensors":
        loaded = load_quantized(path, classifier)
        name = loaded.classifier
        facts = name, loaded.preprocessing, loaded.class_names
        return Evaluated(loaded, float_model_of(path, name, classifier), *facts)
    raise InputError(f"{path}: accepted are the folder of a run, .onnx and .safetensors files")


def described(file: Path, metadata: dict[str, str]) -> tuple[str, Preprocessing, tuple[str, ...]]:
    """Return what an ONNX file's metadata say: classifier, preprocessing, class names."""
    try:
        keys = ("image_size", "mean", "std", "class_names")
        facts = {key: json.loads(metadata[key]) for key in keys}
        preprocessing = preprocessing_from(facts | {"channels": len(facts["mean"])})
        return metadata["classifier"], preprocessing, tuple(map(str, facts["class_names"]))
    except Exception:  # JSON may hold anything, nested without end
        raise InputError(
            f"{file}: its metadata lack what export writes (classifier, image_size, mean, std, "
            "class_names)"
        ) from None


def float_model_of(
    file: Path, classifier: str, trusted: str | None
) -> Callable[[Tensor], Tensor] | None:
    """Load the float classifier of the run in whose folder an exported file lies, if it does.

    Args:
        file: that lies there.
        classifier: that the file names.
        trusted: a `module:function` whose code the user has run; a file alone cannot decide that.
    """
    if classifier not in (*BUNDLED_CLASSIFIERS, trusted):
        return None
    if not os.path.isfile(file.parent / CONFIG):
        return None
    config = read_run_config(file.parent)
    return classifier_of(config).model if config.classifier == classifier else None
