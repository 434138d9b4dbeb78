"""Kill a run with SIGKILL again and again, and compare its result with an undisturbed one.

Each trial waits until the run enters a stage, kills it after a random part of the time that this
stage took in an undisturbed run, and goes on with `--resume` until the end. A third of the kills is
meant for synthesis, a third for fine-tuning, a third for the stages between and behind them, each
in turn. Where a kill fell is what the run itself said last. A run that ended before it was killed
is no trial. Metrics but for times and memory, the log and all tensors have to be the same bytes.
Trials that the results file already has are not run again.
"""

import argparse
import hashlib
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zscgan_ext.environment import environment
from zscgan_ext.images.datasets import LabelledImages, open_images
from zscgan_ext.run_folder.checkpoint_file import checkpoint_files, read_checkpoint
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

SMALL_RUN = [
    *("--synthesis-steps=60", "--fine-tuning-steps=60", "--calibration-batches=2"),
    *("--batch-size=8", "--latent-dim=8", "--log-interval=5", "--checkpoint-every=3"),
    *("--device=cpu", "--export=none", "--no-report"),
]
LONG_STAGES = ("synthesis", "fine_tuned")
TENSORS = ("generator", "quantized", "predictions")
TOLD = "stage: "  # begins the lines in which a run says where it stands
# The main program, which says when it enters and leaves a stage.
PROGRAM = f"""
import sys
from contextlib import contextmanager
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.train import main

stage = Checkpoints.stage

@contextmanager
def told(self, name):
    print("{TOLD}in", name, flush=True)
    with stage(self, name):
        yield
    print("{TOLD}after", name, flush=True)

Checkpoints.stage = told
sys.exit(main(sys.argv[1:]))
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="how many trials there are in all")
    parser.add_argument("--more", type=int, default=30, help="at most so many trials this time")
    parser.add_argument("--seed", type=int, default=0, help="of the times to kill at")
    parser.add_argument("--json", type=Path, required=True, help="results, to read and to extend")
    return parser.parse_args()


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start the main program."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_to_end(arguments: list[str]) -> dict[str, float]:
    """Run the main program; return the seconds that it was in each stage."""
    process = start(arguments)
    assert process.stdout is not None
    seconds: dict[str, float] = {}
    place, begin, line = "", time.perf_counter(), ""
    for line in process.stdout:
        if line.startswith(TOLD):
            now = time.perf_counter()
            if place.startswith("in "):
                seconds[place.removeprefix("in ")] = round(now - begin, 3)
            place, begin = line.removeprefix(TOLD).strip(), now
    if process.wait():
        raise SystemExit(f"the run failed: {line}")
    return seconds


def digest(folder: Path) -> str:
    """Return the SHA-256 of all that two equal runs have in common."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("seconds", "peak_memory_bytes"):
        del metrics[name]
    result = hashlib.sha256(json.dumps(metrics, sort_keys=True).encode())
    for name in ("metrics.jsonl", *(f"{name}.safetensors" for name in TENSORS)):
        result.update((folder / name).read_bytes())
    return result.hexdigest()


def killed_run(arguments: list[str], stage: str, seconds: float) -> str | None:
    """Kill a run so long after it entered a stage; return where it was, None if it had ended."""
    process = start(arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == f"{TOLD}in {stage}":
            break
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    rest = process.stdout.read().splitlines()
    process.wait()
    said = [line.removeprefix(TOLD) for line in rest if line.startswith(TOLD)]
    return [f"in {stage}", *said][-1] if process.returncode < 0 else None


def trial(arguments: list[str], stage: str, seconds: float) -> dict[str, Any] | None:
    """Kill a run once, and let it go on to its end; None if it could not be killed."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "run")
        place = killed_run([*arguments, f"--output={folder}"], stage, seconds)
        if place is None:
            return None
        files = checkpoint_files(folder / "checkpoints")
        step = read_checkpoint(files[-1])["steps"] if files else None
        run_to_end([f"--resume={folder}"])
        return {
            "meant_for": stage,
            "seconds_after_its_begin": round(seconds, 3),
            "killed": place,
            "step_of_newest_checkpoint": step,
            "digest": digest(folder),
        }


def write_images(folder: Path, count: int = 100) -> None:
    """Write the first of the bundled test images as idx files."""
    data = open_images("fashion-mnist", "test", FASHION_MNIST_PREPROCESSING)
    assert isinstance(data, LabelledImages)
    arrays = {
        "images-idx3": data.images[:count, 0].numpy(),
        "labels-idx1": data.labels[:count].numpy().astype("uint8"),
    }
    for name, array in arrays.items():
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / f"t10k-{name}-ubyte").write_bytes(header + array.tobytes())


def main() -> None:
    """Run the trials that are missing, and write the results down after each."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as data:
        write_images(Path(data))
        run_trials(arguments, [*SMALL_RUN, f"--evaluation-data={data}"])


def run_trials(arguments: argparse.Namespace, run: list[str]) -> None:
    """Run the trials that are missing of a run with these arguments."""
    results: dict[str, Any] = {"trials": []}
    if arguments.json.exists():
        results = json.loads(arguments.json.read_text())
    else:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, "run")
            results["seconds"] = run_to_end([*run, f"--output={folder}"])
            results["digest"] = digest(folder)
            results["made_with"] = {**environment(), "date": time.strftime("%Y-%m-%d")}
            results["arguments"] = SMALL_RUN
            results["ended_before_the_kill"] = 0
    trials = results["trials"]
    for _ in range(min(arguments.more, arguments.kills - len(trials))):
        done = None
        while done is None:
            attempt = len(trials) + results["ended_before_the_kill"]
            chance = random.Random(arguments.seed + attempt)
            stage = stage_to_kill(len(trials), results["seconds"])
            done = trial(run, stage, chance.uniform(0, results["seconds"][stage]))
            results["ended_before_the_kill"] += int(done is None)
        done["identical"] = done.pop("digest") == results["digest"]
        trials.append(done)
        results["kills"] = dict(Counter(trial["killed"] for trial in trials))
        results["identical"] = sum(trial["identical"] for trial in trials)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        print(done, flush=True)
    print(f"{results['identical']} of {len(trials)} kills: identical results, {results['kills']}")


def stage_to_kill(trial: int, stages: Iterable[str]) -> str:
    """Choose the stage of a trial, from 0: synthesis, fine-tuning and one of the others in turn."""
    short = [stage for stage in stages if stage not in LONG_STAGES]
    return (*LONG_STAGES, short[trial // 3 % len(short)])[trial % 3]


if __name__ == "__main__":
    main()
