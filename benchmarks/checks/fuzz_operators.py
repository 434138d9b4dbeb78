"""Calls every operator that a `.pt2` file may call, with arguments that do not fit.

    python -m benchmarks.checks.fuzz_operators [--calls N] [--only NAME ...] [--json FILE]

A program decides of the arguments of its operators, and of the shapes of its weights, so none may
end the process. Each operator is called in processes of its own with limited memory; what it was
called with last is told if a process ends by a signal.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.classifiers.pt2.operators import accepted_operator
from zscgan_ext.classifiers.pt2.program_json import UNCHECKED_BATCH_NORM
from zscgan_ext.environment import environment

MOST_MEMORY = 12 << 30  # bytes of addresses
SECONDS = 1  # for one call; those that are longer are cut off, as a program may compute long
INTEGERS = (0, 1, 2, 3, 4, 5, 8, 16, -1, -2, -3, 7, 100, 2**15, 2**31, 2**62, -(2**31), -(2**62))
REALS = (0.0, 1.0, -1.0, 0.5, 1e-5, 1e38, 1e308, float("inf"), -float("inf"), float("nan"))
SHAPES = (
    *(
        (),
        (0,),
        (1,),
        (2,),
        (3,),
        (4,),
        (16,),
        (2, 3),
        (3, 4),
        (4, 3),
        (0, 3),
        (2, 3, 4),
        (1, 4, 4),
    ),
    *(
        (2, 4, 8),
        (2, 4, 8, 8),
        (2, 3, 8, 8),
        (4, 4, 3, 3),
        (4, 1, 3, 3),
        (4, 3, 1, 1),
        (0, 4, 8, 8),
    ),
    *(
        (2, 0, 8, 8),
        (2, 4, 4, 8, 8),
        (4, 4, 3, 3, 3),
        (4, 4, 3),
        (2, 8, 8, 2),
        (2, 2, 3),
        (2, 1, 1, 1),
    ),
    *((2, 2, 4, 8), (8, 4), (4, 8), (1, 1, 1, 1, 1, 1), (2, 0), (0, 0, 0, 0)),
)
DTYPES = (
    *(torch.float32 for _ in range(8)),
    *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn),
)
CHOSEN_TEXT = (
    "ij,jk->ik",
    "constant",
    "reflect",
    "same",
    "valid",
    "none",
    "tanh",
    "floor",
    "",
    "a,b,c->",
)
# What fits, by the names of arguments, so that more calls get past the first check.
FITTING: dict[str, Any] = {
    **{"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "output_padding": [0, 0]},
    **{"kernel_size": [3, 3], "output_size": [2, 2], "groups": 1, "group": 2, "num_groups": 2},
    **{"transposed": False, "training": False, "train": False, "momentum": 0.1, "eps": 1e-5},
    **{"dim": 1, "dim0": 0, "dim1": 1, "N": 2, "C": 4, "HxW": 64, "normalized_shape": [8]},
    **{"use_input_stats": True, "dropout_p": 0.0, "p": 0.0, "k": 2, "upscale_factor": 2},
    **{"downscale_factor": 2, "align_corners": False, "scale_factors": [2.0, 2.0]},
    **{"interpolation_mode": 0, "padding_mode": 0, "size": [2, 4, 8, 8], "pad": [1, 1, 1, 1]},
    **{"shape": [2, 256], "dims": [0, 1, 2, 3], "chunks": 2, "sections": 2, "split_size": 2},
    **{"step": 1, "start": 0, "end": 2, "index": 0, "length": 1, "half_to_float": False},
    **{"ceil_mode": False, "cudnn_enabled": False, "approximate": "none", "mode": "constant"},
}
TENSORS: dict[str, tuple[int, ...]] = {
    **{"input": (2, 4, 8, 8), "self": (2, 4, 8, 8), "weight": (4, 4, 3, 3), "bias": (4,)},
    **{"running_mean": (4,), "running_var": (4,), "grid": (2, 8, 8, 2), "theta": (2, 2, 3)},
    **{"query": (2, 2, 4, 8), "key": (2, 2, 4, 8), "value": (2, 2, 4, 8)},
}
WEIGHTS_OF_NORMS = ("batch_norm", "instance_norm", "native_group_norm", "group_norm", "layer_norm")


def operators() -> list[torch._ops.OpOverload]:
    """Return every operator that torch may be given, and so not the one that is replaced."""
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    aten = sorted(name.removeprefix("aten::") for name in names if name.startswith("aten::"))
    found = []
    for name in aten:
        packet = getattr(torch.ops.aten, name, None)
        for overload in getattr(packet, "overloads", list)():
            operator = accepted_operator(name, overload)
            if operator is not None and f"torch.ops.{operator}" != UNCHECKED_BATCH_NORM:
                found.append(operator)
    return found


class Arguments:
    """Draws arguments for an operator: most that fit, one or some that do not.

    Args:
        operator: whose arguments they are.
        chance: draws them.
    """

    def __init__(self, operator: torch._ops.OpOverload, chance: random.Random) -> None:
        self.operator = operator
        self.chance = chance
        self.name = operator._schema.name.removeprefix("aten::")
        self.rate = chance.choice((0.0, 0.2, 0.2, 0.5, 1.0))  # of arguments that do not fit

    def call(self) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments by position and by keyword."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in self.operator._schema.arguments:
            if argument.has_default_value() and self.chance.random() < 0.3:
                if argument.kwarg_only:
                    continue
                args.append(argument.default_value)
                continue
            value = self.value(argument.name, str(argument.real_type))
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        return args, kwargs

    def value(self, name: str, kind: str) -> Any:
        """Return a value of the kind that an argument has."""
        if kind.startswith("Optional["):
            inner = kind.removeprefix("Optional[")[:-1]
            return None if self.chance.random() < 0.2 else self.value(name, inner)
        fits = self.chance.random() >= self.rate
        if fits and name in FITTING and "Tensor" not in kind:
            return self.fitting(name)
        if kind.startswith("List["):
            inner, count = (
                kind.removeprefix("List[")[:-1],
                self.chance.choice((0, 1, 2, 2, 3, 4, 6)),
            )
            return [self.value(name, inner) for _ in range(count)]
        return self.single(name, kind, fits)

    def fitting(self, name: str) -> Any:
        """Return what fits, of the number of dimensions that the operator's name tells."""
        value = FITTING[name]
        dimensions = next((n for n in (1, 2, 3) if f"{n}d" in self.name), 2)
        return value[:1] * dimensions if isinstance(value, list) and len(value) == 2 else value

    def single(self, name: str, kind: str, fits: bool) -> Any:
        """Return a value that is no list."""
        pick = self.chance.choice
        if kind == "Tensor":
            return self.tensor(name, fits)
        choices: dict[str, Callable[[], Any]] = {
            "int": lambda: pick(INTEGERS[:6] if fits else INTEGERS),
            "bool": lambda: pick((True, False)),
            "float": lambda: pick(REALS),
            "number": lambda: pick((*INTEGERS, *REALS)),
            "str": lambda: pick(CHOSEN_TEXT),
            "ScalarType": lambda: pick(DTYPES),
            "Device": lambda: torch.device("cpu"),
            "Layout": lambda: torch.strided,
            "MemoryFormat": lambda: pick(
                (torch.contiguous_format, torch.preserve_format, torch.channels_last)
            ),
        }
        return choices[kind]() if kind in choices else None

    def tensor(self, name: str, fits: bool) -> Tensor:
        """Return a tensor; values that do not fit are large, negative or not finite."""
        shape = TENSORS.get(name, (2, 4, 8, 8)) if fits else self.chance.choice(SHAPES)
        if fits and name == "weight" and self.name in WEIGHTS_OF_NORMS:
            shape = (4,) if "layer" not in self.name else (8,)
        dimensions = next((n for n in (1, 2, 3) if f"{n}d" in self.name), 2)
        if fits and len(shape) == 4 and dimensions != 2:
            shape = shape[:3] if dimensions == 1 else (*shape, shape[-1])
        dtype = torch.float32 if fits else self.chance.choice(DTYPES)
        if name in ("indices", "index", "repeats") and self.chance.random() < 0.8:
            dtype = torch.int64
        scale = self.chance.choice((1.0, 3.0, 1e10, float("inf"), float("nan")))
        values = (torch.randn(shape) * scale).to(dtype)
        if not fits and self.chance.random() < 0.3:  # strides of nothing, as a file can have
            values = torch.zeros((), dtype=dtype).expand(shape)
        elif not fits and values.dim() > 1 and self.chance.random() < 0.3:
            values = values.transpose(0, -1)
        return values


def call_often(operator: torch._ops.OpOverload, calls: int, seed: int, told: int) -> None:
    """Call an operator, telling through a pipe what it is called with; what a process does."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chance = random.Random(seed)
    torch.manual_seed(seed)
    for number in range(calls):
        args, kwargs = Arguments(operator, chance).call()
        os.pwrite(
            told, f"{number} {described(args)} {described(kwargs)}".encode()[:4000].ljust(4000), 0
        )
        signal.alarm(SECONDS)
        try:
            result = operator(*args, **kwargs)
            for tensor in tensors_of(result):
                tensor.sum() if tensor.numel() < 1 << 24 else None
        except Exception:  # any error is as good as another
            pass
        signal.alarm(0)


def tensors_of(result: Any) -> Iterator[Tensor]:
    """Yield the tensors of a result."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for each in result:
            yield from tensors_of(each)


def described(value: Any) -> str:
    """Write arguments, with shapes and dtypes in the place of tensors."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {described(each)}' for key, each in value.items())}}}"
    return str(value)


def fuzz(operator: torch._ops.OpOverload, calls: int, folder: Path) -> list[str]:
    """Return a line for each signal that ended a process in these calls."""
    ended = []
    for seed in range(3):
        file = folder / "last_call"
        told = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                call_often(operator, calls // 3, seed, told)
            except BaseException as error:
                os.write(1, f"{operator}: {error!r}\n".encode())
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            ended.append("an error of this program")
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGALRM:
            last = os.pread(told, 4000, 0).decode().strip()
            ended.append(f"{signal.Signals(os.WTERMSIG(status)).name} {last}")
        os.close(told)
    return ended


def main() -> int:
    """Fuzz all operators; exit with 1 if any ends a process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=300, help="of each operator")
    parser.add_argument("--only", nargs="+", default=None, help="such as aten.relu.default")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="for scratch files")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args()
    chosen = [o for o in operators() if arguments.only is None or str(o) in arguments.only]
    ended = {}
    for operator in chosen:
        lines = fuzz(operator, arguments.calls, arguments.folder)
        if lines:
            ended[str(operator)] = lines
            print(operator, *lines, sep="\n    ", flush=True)
    print(f"{len(chosen)} operators, {arguments.calls} calls each: {len(ended)} end the process")
    if arguments.json is not None:
        facts = {"command": "python -m benchmarks.checks.fuzz_operators", **environment()}
        content = {**facts, "operators": len(chosen), "calls": arguments.calls, "ended": ended}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if ended else 0


if __name__ == "__main__":
    sys.exit(main())
