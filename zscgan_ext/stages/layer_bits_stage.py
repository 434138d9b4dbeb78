"""The stage that gives each layer its width, where a budget of bits decides."""

from zscgan_ext import distributed
from zscgan_ext.quantization.conversion import student_of
from zscgan_ext.quantization.layer_sensitivity import layer_sensitivity
from zscgan_ext.quantization.layer_widths import (
    average_width,
    budget_of,
    described_widths,
    widths_described,
)
from zscgan_ext.run_folder.files import LAYER_BITS
from zscgan_ext.stages.run import RandomStream, Run

STAGE = "layer bits"


def choose_layer_bits(run: Run) -> None:
    """Measure what each width of each layer loses, choose widths, and write both down.

    It is done once in a run, and not at all where no budget decides.
    """
    checkpoints, config = run.checkpoints, run.config.quantization
    if not config.chooses_layer_bits or checkpoints.is_finished(STAGE):
        return
    with checkpoints.stage(STAGE):
        with checkpoints.interruptible(), run.results.timed("calibration"):
            student = student_of(config, run.classifier)
            rng = run.shared_rng(RandomStream.LAYER_SENSITIVITY)
            losses = layer_sensitivity(student, run.classifier, rng)
            chosen = budget_of(config, student).widths(losses)
            student = student_of(config, run.classifier, chosen)
            described = described_widths(student, losses)
        # One process decides for all.
        run.results.layer_bits = distributed.all_gather(described)[0]
        run.folder.write_json(LAYER_BITS, {"layers": run.results.layer_bits})
    widths = [bits.weights for bits in widths_described(described).values() if bits.weights]
    average = average_width(described)
    print(
        f"widths of layers: {min(widths)} to {max(widths)} bits, {average:.3f} on average",
        flush=True,
    )
