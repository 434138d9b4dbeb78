"""Gather photographs that anybody can have, and crops of them, for a look at ImageNet classifiers.

    python -m benchmarks.accuracy.gather_pictures FOLDER

They come with Python packages, fetched with pip, and with packages of Debian, fetched with apt-get.
None belongs to this repository: choose a folder outside of it. The twenty photographs of foolbox
have labels of ImageNet, which the names of their files end in; all others have none.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

SIZE = 256  # pixels of a side
FRACTIONS = (0.8, 0.6)  # of the shorter side, in the four corners of a picture

# What each package has that is a colour photograph.
WHEELS = {
    "foolbox==3.3.4": "foolbox/data/imagenet_*.jpg",
    "scikit-image==0.25.2": (
        "skimage/data/astronaut.png skimage/data/chelsea.png skimage/data/coffee.png "
        "skimage/data/rocket.jpg skimage/data/motorcycle_left.png"
    ),
}
OPENCV = (
    "aloeL.jpg apple.jpg baboon.jpg butterfly.jpg "
    "chicky_512.png ela_original.jpg fruits.jpg home.jpg leuvenA.jpg messi5.jpg orange.jpg"
)
PLASMA = (
    "Autumn BytheWater ColdRipple ColorfulCups EveningGlow FallenLeaf Kite OneStandsOut Path "
    "summer_1am"
)
LOMIRI = (
    "Bridge* Dragonfly* Picture_0B* Picture_1A* Wine* aitzgorri* free_* friends* greentock* life* "
    "picosdeeuropa* seeding* sunset*"
)
DEBIAN = {
    "opencv-doc": [f"usr/share/doc/opencv-doc/examples/data/{name}" for name in OPENCV.split()],
    "plasma-workspace-wallpapers": [
        f"usr/share/wallpapers/{name}/contents/images/2560x1600.*" for name in PLASMA.split()
    ],
    "mate-backgrounds": ["usr/share/backgrounds/mate/nature/*.jpg"],
    "lomiri-wallpapers-16.04": [f"usr/share/backgrounds/{name}" for name in LOMIRI.split()],
    "lomiri-wallpapers-20.04": ["usr/share/backgrounds/Kleiber*"],
}


def fetch_wheels(folder: Path) -> Iterator[Path]:
    """Yield the photographs of the Python packages, unpacked into a folder."""
    for package, patterns in WHEELS.items():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(folder), package], check=True)
        wheel = next(folder.glob(f"{package.split('==')[0].replace('-', '_')}*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        yield from matching(folder, patterns.split())


def fetch_debian(folder: Path) -> Iterator[Path]:
    """Yield the photographs of the Debian packages, unpacked into a folder."""
    for package, patterns in DEBIAN.items():
        subprocess.run(["apt-get", "download", "--quiet", package], check=True, cwd=folder)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / package)], check=True)
        yield from matching(folder / package, patterns)


def matching(folder: Path, patterns: list[str]) -> list[Path]:
    """Return the files that patterns match, in order; each has to match one.

    Raises:
        FileNotFoundError: if the package lacks a picture.
    """
    found = []
    for pattern in patterns:
        files = sorted(folder.glob(pattern))
        if not files:
            raise FileNotFoundError(f"no {pattern} in {folder.name}")
        found += files
    return found


def boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Return squares: the largest one in the middle, and smaller ones in the corners."""
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    found = [(left, top, left + short, top + short)]
    for fraction in FRACTIONS:
        side = round(fraction * short)
        places = [(x, y) for y in (0, height - side) for x in (0, width - side)]
        found += [(x, y, x + side, y + side) for x, y in places]
    return found


def write_crops(picture: Path, folder: Path) -> int:
    """Write the crops of one picture as PNG; return how many.

    The name of the first is that of the picture. Only of that one a label is still true.
    """
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    stem = picture.stem if "wallpapers" not in picture.parts else picture.parents[2].name
    for number, box in enumerate(boxes(*image.size)):
        crop = image.crop(box).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        crop.save(folder / (f"{stem}.png" if number == 0 else f"{stem}-crop{number}.png"))
    return number + 1


def main() -> None:
    """Fetch the packages and write the crops."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="which the crops are written to")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        pictures = [*fetch_wheels(Path(temporary)), *fetch_debian(Path(temporary))]
        count = sum(write_crops(picture, folder) for picture in pictures)
    print(f"{len(pictures)} photographs, {count} crops in {folder}")


if __name__ == "__main__":
    main()
