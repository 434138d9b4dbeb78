"""Bad and hostile input for the programs, and what their one line says of it."""

import os
import pickle
from pathlib import Path

import hostile_files as make
import torch
from torch import nn

HOLES = r"cannot be read \(1,099,511,627,776 bytes, only \S+ of which were written"
NO_TORCH_FILE = "is truncated or not a torch file"
NO_SAFETENSORS = "is truncated or not a safetensors file"
CODE = "holds pickled code, which is never run"
PLAIN = "expected real numbers in a plain tensor"

# What is given as --weights: (name of the file, what writes it, what the line says).
WEIGHTS = {
    "truncated safetensors": ("w.safetensors", make.cut(make.safetensors_of(), 9), NO_SAFETENSORS),
    "truncated torch file": ("w.pt", make.cut(make.saved(make.state), 300), NO_TORCH_FILE),
    "truncated old torch file": (
        *("w.pt", make.cut(make.saved(make.state, _use_new_zipfile_serialization=False), 300)),
        NO_TORCH_FILE,
    ),
    "0 bytes": ("w.pt", make.data(b""), "w.pt is empty"),
    "1 byte": ("w.pt", make.data(b"\x80"), "w.pt (holds|is)"),
    "text": ("w.pt", make.data(b"no weights"), "w.pt (holds|is)"),
    "text as safetensors": ("w.safetensors", make.data(b"no weights"), NO_SAFETENSORS),
    "wrong shape": (
        *("w.safetensors", make.safetensors_of(fc__bias=torch.zeros(7))),
        r"expected fc.bias of shape \(10,\), got \(7,\)",
    ),
    "missing key": ("w.safetensors", make.safetensors_of(fc__bias=None), "lacks fc.bias"),
    "extra key": ("w.safetensors", make.safetensors_of(more=torch.zeros(1)), "has more, which"),
    "name with escape sequences": (
        *("w.safetensors", make.safetensors_of(**{"\x1b[2J\n": torch.zeros(1)})),
        r"has \\x1b\[2J\\n, which the model lacks",
    ),
    "NaN": (
        *("w.safetensors", make.safetensors_of(fc__bias=torch.full((10,), torch.nan))),
        "has NaN or infinite values in fc.bias",
    ),
    "beyond float32": (
        *(
            "w.pt",
            make.saved(lambda: make.state(fc__bias=torch.full((10,), 1e300, dtype=torch.float64))),
        ),
        "has NaN or infinite values in fc.bias",
    ),
    "negative variance": (
        *("w.pt", make.saved(lambda: make.state(bn1__running_var=torch.full((16,), -1.0)))),
        "has variances below 0 in bn1.running_var",
    ),
    "pickled code": ("w.pt", make.data(pickle.dumps(make.RunsCode())), CODE),
    "pickled code in a state dict": (
        *("w.pt", make.saved(lambda: make.state() | {"conv1.weight": make.RunsCode()})),
        CODE,
    ),
    "pickled code in an old torch file": (
        *("w.pt", make.saved([make.RunsCode()], _use_new_zipfile_serialization=False)),
        CODE,
    ),
    "pickled eval": (
        "w.pt",
        make.saved({"a": make.RunsCode(eval, "__import__('os').mkdir('code_ran')")}),
        CODE,
    ),
    "pickled shell": ("w.pt", make.saved({"a": make.RunsCode(os.system, "mkdir code_ran")}), CODE),
    "pickled code in a tar": ("w.pt", make.tar, "w.pt (holds|is)"),
    "pickled module": ("w.pt", make.saved(lambda: nn.Conv2d(1, 1, 1)), CODE),
    "torchscript": ("w.pt", make.torchscript, "w.pt is a TorchScript archive"),
    "zip bomb": ("w.pt", make.rewritten_zip(make.bomb, 8), "would unpack to 1,07"),
    "zip without a pickle": ("w.pt", make.rewritten_zip(make.without_pickle), NO_TORCH_FILE),
    "tensor larger than its file": (
        *("w.pt", make.rewritten_zip(make.more_than_stored)),
        f"(but announces tensors of|{NO_TORCH_FILE})",  # newer torch refuses by itself
    ),
    "sparse tensor": ("w.pt", make.saved(lambda: {"a": torch.eye(3).to_sparse()}), PLAIN),
    "complex tensor": ("w.pt", make.saved(lambda: {"a": torch.zeros(1) * 1j}), PLAIN),
    "tensor without values": ("w.pt", make.saved({"a": torch.empty(3, device="meta")}), PLAIN),
    "quantized tensor": (
        *(
            "w.pt",
            make.saved(lambda: {"a": torch.quantize_per_tensor(torch.eye(3), 1, 0, torch.qint8)}),
        ),
        PLAIN,
    ),
    "tensor alone": ("w.pt", make.saved(torch.zeros(3)), "holds a Tensor, not a state dict"),
    "list": ("w.pt", make.saved([torch.zeros(3)]), "holds a list, not a state dict"),
    "empty dict": ("w.pt", make.saved({}), "holds a dict, not a state dict"),
    "names that are numbers": ("w.pt", make.saved({3: torch.zeros(3)}), "is not a state dict"),
    "nested": (
        "w.pt",
        make.saved({"model": {"model": {"a": [1]}}}),
        "'model' is a dict, not a tensor",
    ),
    "header longer than the file": ("w.safetensors", make.header({}, 1 << 62), NO_SAFETENSORS),
    "header of a gigabyte": ("w.safetensors", make.header({}, 1 << 30), NO_SAFETENSORS),
    "header that is no JSON": ("w.safetensors", make.header(b"{]"), NO_SAFETENSORS),
    "header nested without end": ("w.safetensors", make.header(b"[" * 10**6), NO_SAFETENSORS),
    "offsets beyond the file": (
        "w.safetensors",
        make.header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, body=b"1234"),
        NO_SAFETENSORS,
    ),
    "shape that overflows": (
        "w.safetensors",
        make.header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}),
        NO_SAFETENSORS,
    ),
    "unknown dtype": (
        "w.safetensors",
        make.header({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, body=b"1234"),
        NO_SAFETENSORS,
    ),
    "a terabyte": ("w.safetensors", make.sparse_file(1 << 40), HOLES),
    "a terabyte as a torch file": (
        "w.pt",
        make.sparse_file(1 << 40, b"PK\x03\x04"),
        HOLES,
    ),
    "folder": ("w.pt", Path.mkdir, r"cannot be read \(Is a directory\)"),
    "link to nowhere": ("w.pt", make.link_to("gone"), r"cannot be read \(No such file"),
    "link to itself": ("w.pt", make.link_to("w.pt"), "cannot be read .Too many levels"),
    "endless device": ("w.pt", make.link_to("/dev/zero"), r"cannot be read \(Not a regular file"),
    "device as safetensors": (
        *("w.safetensors", make.link_to("/dev/zero")),
        r"cannot be read \(Not a regular file",
    ),
    "pipe": ("w.pt", os.mkfifo, r"cannot be read \(Not a regular file"),
    "socket": ("w.pt", make.bind_socket, r"cannot be read \(Not a regular file"),
}

NO_IMAGE = "x.png: cannot be read as an image"
# Image files among good ones, of what is given as --data.
IMAGES = {
    "not an image": (make.data(b"no picture"), NO_IMAGE),
    "0 bytes": (make.data(b""), NO_IMAGE),
    "truncated PNG": (make.data(make.picture((64, 64))[:-300]), NO_IMAGE),
    "truncated JPEG": (make.data(make.picture((64, 64), form="JPEG")[:300]), NO_IMAGE),
    "damaged PNG": (make.data(make.picture().replace(b"IDAT", b"IDAX")), NO_IMAGE),
    "huge by its header": (make.data(make.png_of(60000, 60000)), NO_IMAGE),
    "large by its header": (
        make.data(make.png_of(12000, 12000)),
        "12000x12000 pixels are too many",
    ),
    "thin by its header": (make.data(make.png_of(1, 100_000_000)), "or too narrow"),
    "without pixels": (make.data(make.png_of(0, 0)), NO_IMAGE),
    "PostScript, which is a program": (make.data(make.EPS), NO_IMAGE),
    "floating point": (
        make.data(make.picture(mode="F", form="TIFF")),
        "pixels of mode F, accepted",
    ),
    "link to nowhere": (make.link_to("gone"), "is a link that leads nowhere"),
    "link to itself": (make.link_to("x.png"), "is a link that leads nowhere"),
    "endless device": (make.link_to("/dev/zero"), f"{NO_IMAGE} .Not a regular file"),
    "pipe": (os.mkfifo, f"{NO_IMAGE} .Not a regular file"),
}

GIGABYTE_OF_ZEROS = make.zipped(make.idx_header(3, 28, 28) + bytes(make.GIGABYTE))
# Folders that are given as --evaluation-data.
IDX = {
    "truncated": (make.idx(make.idx_header(3, 28, 28) + bytes(99)), "truncated, its header"),
    "too long": (make.idx(make.idx_header(3, 28, 28) + bytes(9999)), "longer, its header"),
    "gzip bomb": (make.idx(GIGABYTE_OF_ZEROS, suffix=".gz"), "longer, its header announces"),
    "huge by its header": (
        make.idx(make.idx_header(2**32 - 1, 2**32 - 1, 2**32 - 1)),
        "accepted are up to 4,294,967,296 bytes",
    ),
    "large by its header": (make.idx(make.idx_header(2**20, 28, 28)), "truncated, its header"),
    "huge and empty": (
        make.idx(make.idx_header(2**32 - 1, 0, 2**32 - 1)),
        "accepted are up to 4,294,967,296 bytes",
    ),
    "255 dimensions": (make.idx(make.idx_header(*[1] * 255) + b"1"), "not an idx file"),
    "no dimension": (make.idx(make.idx_header() + b"1"), "not an idx file"),
    "other type": (make.idx(make.idx_header(3, 28, 28, code=13)), "not an idx file"),
    "0 bytes": (make.idx(b""), "not an idx file"),
    "truncated gzip": (make.idx(make.zipped(bytes(9999))[:-9], suffix=".gz"), "idx"),
    "no gzip": (make.idx(b"no gzip", suffix=".gz"), "cannot be read as an idx file"),
    "fewer labels": (make.idx(labels=make.idx_header(2) + b"12"), "do not match"),
    "unknown label": (make.idx(labels=make.idx_header(3) + b"\0\1\xff"), "labels up to 255"),
    "link to nowhere": (
        lambda folder: (folder.mkdir(), (folder / "t10k-images-idx3-ubyte").symlink_to("gone")),
        "cannot be read as an idx file .*No such file",
    ),
    "folder for a file": (
        lambda folder: (folder / "t10k-images-idx3-ubyte").mkdir(parents=True),
        "cannot be read as an idx file .*Is a directory",
    ),
    "endless device": (
        lambda folder: (
            folder.mkdir(),
            (folder / "t10k-images-idx3-ubyte").symlink_to("/dev/zero"),
        ),
        "cannot be read as an idx file .*Not a regular file",
    ),
}

INVALID_YAML = "is not valid YAML"
LAUGHS = b"a: &a [x]\n" + b"".join(
    b"%c: &%c [*%c,*%c]\n" % (i, i, i - 1, i - 1) for i in range(98, 122)
)
# Files that are given as --config.
YAML = {
    "unknown key": (make.data(b"latent_dims: 3"), "unknown setting 'latent_dims', did you mean"),
    "key with a line feed": (make.data(b'"a\\nb": 3'), r"unknown setting 'a\\nb'"),
    "number for a name": (make.data(b"3: 4"), "unknown setting 3"),
    "list for a number": (make.data(b"seed: [1]"), "gives seed a list"),
    "text for a number": (make.data(b"seed: many"), "invalid int value: 'many'"),
    "mapping for a number": (make.data(b"seed: {a: 1}"), "gives seed a dict"),
    "date for a number": (make.data(b"seed: 2024-01-01"), "gives seed a date"),
    "date that is none": (make.data(b"seed: 2024-13-99"), INVALID_YAML),
    "infinity": (make.data(b"temperature: .inf"), "temperature: expected a finite number, got inf"),
    "number without end": (make.data(b"seed: " + b"9" * 5000), "config"),
    "key that is a list": (make.data(b"? [a]\n: 1"), INVALID_YAML),
    "aliases that expand without end": (make.data(LAUGHS), "aliases .* are not accepted"),
    "nested without end": (make.data(b"seed: " + b"[" * 9999), INVALID_YAML),
    "large": (make.data(b"#" * (1 << 20)), "is larger than 65536 bytes"),
    "endless device": (make.link_to("/dev/zero"), "cannot be read .Not a regular file"),
    "code": (make.data(b"seed: !!python/object/apply:os.mkdir [code_ran]"), INVALID_YAML),
    "code in Python's newer tag": (
        make.data(b"!!python/object/new:os.system [exit]"),
        INVALID_YAML,
    ),
    "integer without digits": (make.data(b'seed: !!int ""'), INVALID_YAML),
    "boolean that is none": (make.data(b"overwrite: !!bool perhaps"), INVALID_YAML),
    "time that is none": (make.data(b"seed: !!timestamp never"), INVALID_YAML),
    "not text": (make.data(bytes(range(256))), "is not UTF-8 text"),
    "null bytes": (make.data(b"seed: \0"), INVALID_YAML),
    "list": (make.data(b"- seed"), "holds a list, expected a mapping"),
    "0 bytes": (make.data(b""), "holds a NoneType, expected a mapping"),
    "folder": (Path.mkdir, r"cannot be read \(Is a directory\)"),
    "link to itself": (make.link_to("c.yaml"), "cannot be read .Too many levels"),
}

NO_METADATA = "its metadata lack what export writes"
OTHER_FILES = "keeps tensors in other files, which are never opened"
# ONNX files that are given to evaluate.
ONNX = {
    "truncated": (make.cut(make.onnx_model(), 40), "m.onnx: "),
    "text": (make.data(b"no model"), "cannot be read as an ONNX model"),
    "0 bytes": (make.data(b""), "ONNX Runtime cannot load the model"),
    "no metadata": (make.onnx_model(dict.fromkeys(("mean", "classifier"))), NO_METADATA),
    "metadata that are no JSON": (make.onnx_model({"mean": "["}), NO_METADATA),
    "metadata nested without end": (make.onnx_model({"mean": "[" * 10**5}), NO_METADATA),
    "image size of text": (make.onnx_model({"image_size": '"8"'}), NO_METADATA),
    "huge image size": (make.onnx_model({"image_size": "1000000000"}), NO_METADATA),
    "infinite image size": (make.onnx_model({"image_size": "1e999"}), NO_METADATA),
    "deviation of zero": (make.onnx_model({"std": "[1, 0, 1]"}), NO_METADATA),
    "deviation of zero in float32": (make.onnx_model({"std": "[1, 1e-300, 1]"}), NO_METADATA),
    "fewer means": (make.onnx_model({"mean": "[1, 1]"}), NO_METADATA),
    "means that are text": (make.onnx_model({"mean": '"123"'}), NO_METADATA),
    "means that are a mapping": (
        make.onnx_model({"mean": '{"1": 1, "2": 2, "3": 3}'}),
        NO_METADATA,
    ),
    "image size of true": (make.onnx_model({"image_size": "true"}), NO_METADATA),
    "classes that are text": (make.onnx_model({"class_names": '"abc"'}), NO_METADATA),
    "classes that are numbers": (make.onnx_model({"class_names": "[1, null, []]"}), NO_METADATA),
    "millions of classes": (
        make.onnx_model({"class_names": f"[{'0,' * (1 << 22)}0]"}),
        NO_METADATA,
    ),
    "fewer classes": (make.onnx_model({"class_names": '["a"]'}), "the classifier has 1 classes"),
    "more classes": (
        make.onnx_model({"class_names": '["a", "b", "c", "d"]'}),
        "gives 3 logits for 4",
    ),
    "other image size": (make.onnx_model(shape=(None, 3, 9, 9)), "cannot run the model on images"),
    "other shape of logits": (
        make.onnx_model(axes=0),
        r"expected logits, float32 \(\d+, N\), got float32 \(1, 21\)",
    ),
    "other input": (make.onnx_model(name="pixels"), r"got one from \['pixels'\]"),
    "tensor in another file": (make.onnx_model(external="weights.bin"), OTHER_FILES),
    "tensor in a file above": (make.onnx_model(external="../../../etc/passwd"), OTHER_FILES),
    "tensor in a file anywhere": (make.onnx_model(external="/etc/passwd"), OTHER_FILES),
    "link to itself": (make.link_to("m.onnx"), "m.onnx: no such file"),
    "endless device": (make.link_to("/dev/zero"), "m.onnx: no such file"),
    "pipe": (os.mkfifo, "m.onnx: no such file"),
}

DAMAGED = "its description is damaged"
SCALE = "activation_quantizers.relu.scale"
# Quantized classifiers as safetensors that are given to evaluate.
QUANTIZED = {
    "truncated": (make.cut(make.quantized(), 9), "cannot be read as safetensors"),
    "text": (make.data(b"no tensors"), "cannot be read as safetensors"),
    "0 bytes": (make.data(b""), "cannot be read as safetensors"),
    "header longer than the file": (make.header({}, 1 << 62), "cannot be read as safetensors"),
    "no description": (make.safetensors_of(), "holds no quantized classifier"),
    "description that is no JSON": (make.quantized(text="{"), DAMAGED),
    "description nested without end": (make.quantized(text="[" * 10**5), DAMAGED),
    "description that is a list": (make.quantized(text="[]"), DAMAGED),
    "huge image size": (make.with_facts(preprocessing={"image_size": 10**9}), DAMAGED),
    "other channels": (make.with_facts(preprocessing={"channels": 7}), DAMAGED),
    "deviation of zero": (make.with_facts(preprocessing={"std": [0, 1, 1]}), DAMAGED),
    "mean that is none": (make.with_facts(preprocessing={"mean": [1, 1, float("nan")]}), DAMAGED),
    "fewer classes": (make.with_facts(class_names=["a"]), DAMAGED),
    "infinitely many classes": (make.with_facts(num_classes=float("inf")), DAMAGED),
    "unknown scheme": (make.with_facts(scheme={"name": "x"}), DAMAGED),
    "images that do not fit": (
        make.with_facts(preprocessing={"channels": 1, "mean": [0.5], "std": [0.5]}),
        "image_size: networks:small_residual cannot take 8x8 images with 1",
    ),
    "scale of zero": (make.with_tensor(SCALE, torch.zeros_like), f"has scales in {SCALE} that"),
    "negative scale": (make.with_tensor(SCALE, torch.neg), f"has scales in {SCALE} that"),
    "infinite scale": (make.with_tensor(SCALE, lambda x: x / 0), "has NaN or infinite values in"),
    "zero point beyond the width": (
        make.with_tensor(SCALE.replace("scale", "zero_point"), lambda x: x * 0 + 16),
        "has zero points beyond its integers, 0 to 15",
    ),
    "deviation of zero in float32": (
        make.with_facts(preprocessing={"std": [1e-300, 1, 1]}),
        "its description is damaged .mean, std: .*beyond float32",
    ),
    "mean beyond float32": (make.with_facts(preprocessing={"mean": [1e308, 1, 1]}), DAMAGED),
    "wrong dtype": (make.with_tensor(SCALE, torch.Tensor.double), "scale as torch.float32"),
    "wrong shape": (make.with_tensor(SCALE, lambda x: x.repeat(2)), "scale as torch.float32"),
    "endless device": (make.link_to("/dev/zero"), "m.safetensors: no such file"),
}

NUL, LONG = "a\0b", "x" * 5000
# (program, arguments, what the line says)
ARGUMENTS = {
    "unknown": ("train", ["--bit", "w4a4"], "unknown argument --bit, did you mean"),
    "unknown with a line feed": ("train", ["--a\nb"], r"unknown argument --a\\nb"),
    "without a value": ("train", ["--bits"], "argument --bits: expected one argument"),
    "position": ("train", ["resnet20"], "unknown argument resnet20"),
    "empty classifier": ("train", ["--classifier", ""], "classifier: unknown ''"),
    "colon": ("train", ["--classifier", ":"], "classifier: importing '' raised"),
    "relative module": ("train", ["--classifier", ".:a"], "classifier: importing '.' raised"),
    "function that exits": ("train", ["--classifier", "sys:exit"], "raised SystemExit"),
    "bits": (
        "train",
        ["--bits", "w9a4"],
        "bits: expected w2a2 to w8a8, such as w4a4 or w4a8, got 'w9a4'",
    ),
    "bits in other digits": ("train", ["--bits", "w\u0664a\u0664"], "bits: "),
    "NaN": ("train", ["--temperature", "nan"], "temperature: expected a finite number, got nan"),
    "negative": (
        "train",
        ["--fine-tuning-steps", "-1"],
        "fine_tuning_steps: expected 0 or above, got -1",
    ),
    "zero": ("train", ["--batch-size", "0"], "batch_size: expected a number above 0, got 0"),
    "huge batch": (
        "train",
        ["--batch-size", "9" * 30],
        "batch_size: expected 1,048,576 or below, got 9*",
    ),
    "huge image": (
        "train",
        ["--image-size", "100000"],
        "image_size: expected 4,096 or below, got 100000",
    ),
    "huge seed": ("train", ["--seed", str(2**70)], "seed: expected 1,125,899,906,842,624 or below"),
    "number without end": ("train", ["--seed", "9" * 5000], "argument --seed: invalid int value"),
    "number of text": ("train", ["--seed", "1.5"], "argument --seed: invalid int value: '1.5'"),
    "no mean": ("train", ["--mean"], "argument --mean: expected at least one argument"),
    "choice": ("train", ["--scheme", LONG], "argument --scheme: invalid choice: 'xxx"),
    "device": (
        "train",
        ["--device", "cuda:-1"],
        "device: expected auto, cpu, cuda or cuda:N, got 'cuda:-1'",
    ),
    "null byte in weights": ("train", ["--weights", NUL], r"weights: a\\x00b cannot be read"),
    "null byte in output": ("train", ["--output", NUL], r"output: a\\x00b cannot be written"),
    "null byte in config": ("train", ["--config", NUL], r"config: a\\x00b is not valid"),
    "null byte in data": ("train", ["--evaluation-data", NUL], r"a\\x00b: no such folder"),
    "long name of weights": ("train", ["--weights", LONG], r"weights: x* \.\.\. x* cannot be read"),
    "long name of output": ("train", ["--output", LONG], "output: x*"),
    "long name of a run": ("evaluate", [LONG], "x*: no such file|x*"),
    "long name to export": ("export", [LONG], "x*: lacks config.yaml|x*"),
    "no file": ("evaluate", ["gone"], "gone: no such file or folder"),
    "null byte to evaluate": ("evaluate", [NUL], r"a\\x00b: no such file"),
    "other ending": ("evaluate", [__file__], ".*: accepted are the folder of a run"),
    "nothing to evaluate": ("evaluate", [], "the following arguments are required: RUN|FILE"),
    "unknown to evaluate": ("evaluate", ["a", "--dta", "b"], "unrecognized arguments: --dta b"),
    "nothing to export": ("export", [], "the following arguments are required: RUN"),
    "nothing to report": ("report", [], "the following arguments are required: RUN"),
    "no run to report": (
        "report",
        ["."],
        ".: expected the folder of a finished run, it lacks config.yaml",
    ),
    "unknown format": (
        "export",
        [".", "--formats", "tflite"],
        "export: expected onnx, pt2, safetensors, several with a comma between them, or none, got "
        "'tflite'",
    ),
    "no run": ("export", ["."], ".: expected the folder of a finished run, it lacks config.yaml"),
}


def table():
    """Every case: how to make its file, the program, its arguments, what the line says."""
    for case, (name, write, message) in WEIGHTS.items():
        yield f"weights: {case}", write, name, "train", ["--weights", name], message
    for case, (write, message) in YAML.items():
        yield f"YAML: {case}", write, "c.yaml", "train", ["--config", "c.yaml"], message
    for case, (write, message) in IDX.items():
        yield f"idx: {case}", write, "d", "train", ["--evaluation-data", "d"], message
    for case, (write, message) in IMAGES.items():
        tree = ["good.onnx", "--data", "tree"]
        yield f"image: {case}", make.tree_with(write), "tree", "evaluate", tree, message
    for case, (write, message) in ONNX.items():
        tree = ["m.onnx", "--data", "good"]
        yield f"ONNX: {case}", write, "m.onnx", "evaluate", tree, message
    for case, (write, message) in QUANTIZED.items():
        arguments = ["m.safetensors", "--data", "good", "--classifier", "networks:small_residual"]
        yield f"safetensors: {case}", write, "m.safetensors", "evaluate", arguments, message
    for case, (program, arguments, message) in ARGUMENTS.items():
        yield f"argument: {case}", None, "", program, arguments, message
