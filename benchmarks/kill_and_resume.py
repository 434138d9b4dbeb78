"""Kill a run with SIGKILL again and again, and compare its result with an undisturbed one.

Each trial kills the run at a random time, uniform from when its folder is there to when an
undisturbed run ends, and goes on with `--resume` until it ends. Metrics but for times and memory,
the log and all tensors have to be the same bytes. Trials that the results file already has are not
run again.
"""

import argparse
import hashlib
import json
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zscgan_ext.checkpoint_file import checkpoint_files, read_checkpoint
from zscgan_ext.datasets import LabelledImages, open_images
from zscgan_ext.environment import environment
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

SMALL_RUN = [
    *("--synthesis-steps=40", "--fine-tuning-steps=40", "--calibration-batches=2"),
    *("--batch-size=8", "--latent-dim=8", "--log-interval=5", "--checkpoint-every=3"),
    *("--device=cpu", "--export=safetensors", "--no-report"),
]


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
    command = [sys.executable, "-m", "zscgan_ext.train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a program has written a file, or ended."""
    while not file.exists() and process.poll() is None:
        time.sleep(0.005)


def run_to_end(arguments: list[str], config: Path) -> float:
    """Run the main program; return its seconds from when it had written its settings."""
    process = start(arguments)
    wait_for(config, process)
    begin = time.perf_counter()
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed: {errors}")
    return time.perf_counter() - begin


def digest(folder: Path) -> str:
    """Return the SHA-256 of all that two equal runs have in common."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("seconds", "peak_memory_bytes"):
        del metrics[name]
    result = hashlib.sha256(json.dumps(metrics, sort_keys=True).encode())
    for name in ("metrics.jsonl", "generator.safetensors", "quantized.safetensors"):
        result.update((folder / name).read_bytes())
    return result.hexdigest()


def position(folder: Path) -> str:
    """Say where a killed run stands."""
    files = checkpoint_files(folder / "checkpoints")
    if (folder / "metrics.json").exists():
        return "after metrics.json"
    if not files:
        return "before the first checkpoint"
    state = read_checkpoint(files[-1])
    finished = state["finished"][-1] if state["finished"] else "the beginning"
    return f"step {state['steps']}, after {finished}"


def trial(arguments: list[str], seconds: float) -> dict[str, Any]:
    """Kill a run once, and let it go on to its end."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "run")
        process = start([*arguments, f"--output={folder}"])
        wait_for(folder / "config.yaml", process)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        killed_at = position(folder)
        run_to_end([f"--resume={folder}"], folder / "config.yaml")
        return {
            "seconds": round(seconds, 3),
            "killed": process.returncode == -signal.SIGKILL,
            "at": killed_at,
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
            results["seconds"] = run_to_end([*run, f"--output={folder}"], folder / "config.yaml")
            results["digest"] = digest(folder)
            results["made_with"] = {**environment(), "date": time.strftime("%Y-%m-%d")}
            results["arguments"] = SMALL_RUN
    for _ in range(min(arguments.more, arguments.kills - len(results["trials"]))):
        moments = random.Random(arguments.seed + len(results["trials"]))
        done = trial(run, moments.uniform(0, results["seconds"]))
        done["identical"] = done.pop("digest") == results["digest"]
        results["trials"].append(done)
        results["identical"] = sum(trial["identical"] for trial in results["trials"])
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        print(done, flush=True)
    print(f"{results['identical']} of {len(results['trials'])} kills: identical results")


if __name__ == "__main__":
    main()
