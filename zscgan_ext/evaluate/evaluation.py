"""What was measured of a classifier, and how it is told."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from zscgan_ext.errors import one_line
from zscgan_ext.measures import ClassResult
from zscgan_ext.run_folder.whole_file import json_bytes


@dataclass(frozen=True)
class Evaluation:
    """What was measured; percentages are of all images."""

    images: int
    top1: float
    top5: float
    calibration_error: float  # expected calibration error, 15 bins, percent
    float_top1: float | None  # of the float classifier; None where it is not at hand
    agreement: float | None  # images that both classifiers put in the same class
    latency_ms: dict[int, float]  # median time of one call by the images in it, milliseconds
    classes: list[ClassResult]  # of those that occur
    class_names: tuple[str, ...]  # of all

    def __str__(self) -> str:
        """Lay out everything as lines."""
        lines = [
            f"{'images':34} {self.images:10,}",
            f"{'top-1 %':34} {self.top1:10.2f}",
            f"{'top-5 %':34} {self.top5:10.2f}",
            f"{'expected calibration error %':34} {self.calibration_error:10.2f}",
        ]
        if self.float_top1 is not None:
            lines += [
                f"{'top-1 % of the float classifier':34} {self.float_top1:10.2f}",
                f"{'agreement with float %':34} {self.agreement:10.2f}",
            ]
        for size, milliseconds in self.latency_ms.items():
            name = "latency of one image, ms" if size == 1 else f"latency of {size} images, ms"
            lines.append(f"{name:34} {milliseconds:10.3f}")
        table = class_table(self.classes, self.class_names)
        return "\n".join([*lines, "", table])


def class_table(rows: Sequence[ClassResult], class_names: Sequence[str]) -> str:
    """Lay out, for each class that occurs: images, recall and precision in percent."""
    names = [one_line(class_names[row.label]) for row in rows]
    width = max(map(len, [*names, "class"]))
    lines = [f"{'class':{width}} {'images':>8} {'recall %':>9} {'precision %':>12}"]
    for name, row in zip(names, rows, strict=True):
        precision = "-" if row.precision is None else f"{row.precision:.2f}"
        lines.append(f"{name:{width}} {row.images:8,} {row.recall:9.2f} {precision:>12}")
    return "\n".join(lines)


def as_json(evaluation: Evaluation) -> bytes:
    """Write what was measured as JSON."""
    entries = asdict(evaluation)
    names = entries.pop("class_names")
    for entry in entries["classes"]:
        entry["name"] = names[entry["label"]]
    return json_bytes(entries)
