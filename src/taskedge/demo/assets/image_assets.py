"""Labeled pictures as folders of train/CLASS/*.png and test/CLASS/*.png, taken from Debian packages."""

from __future__ import annotations

import gzip
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskedge.demo.assets.debian import Package, files_of
from taskedge.demo.assets.model_assets import needs
from taskedge.demo.fetch import Log, cache_folder, make_folder, sha256_of
from taskedge.errors import InputError

CLOTHES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
CLIPART = ["animals", "buildings", "food", "office", "people", "plants", "tools", "transportation"]
CLIPART_SIDE, CLIPART_LARGEST, CLIPART_TEST = 224, 10_000_000, 0.25


def fashion_mnist(log: Log, train: int = 2000, test: int = 1000, seed: int = 0) -> Path:
    """Return a subset of Fashion-MNIST: gray pictures of clothes, 28 x 28, 10 classes. MIT license.

    Xiao, Rasul & Vollgraf, arXiv 1708.07747. ``train`` pictures are drawn from its 60,000 for training and ``test``
    from its 10,000 for testing, equally many of each class. The seed determines the choice.

    Raises:
        InputError: The package is neither installed nor available, or a size is too large or no multiple of 10.
    """

    def make(folder: Path) -> None:
        pillow = needs("PIL.Image", "pictures are stored as PNG")
        with files_of(FASHION_MNIST, log) as source:
            for part, name, size in (("train", "train", train), ("test", "t10k", test)):
                pictures = _idx(source / f"{name}-images-idx3-ubyte.gz").reshape(-1, 28, 28)
                labels = _idx(source / f"{name}-labels-idx1-ubyte.gz")
                for index in drawn(labels, size, seed):
                    path = folder / part / CLOTHES[labels[index]] / f"{index:05}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pillow.fromarray(pictures[index]).save(path)
        log(f"{cache_folder()}: {train:,} + {test:,} pictures of Fashion-MNIST")

    return make_folder(cache_folder() / f"fashion-mnist-{train}-{test}-{seed}", make)


def openclipart(log: Log, seed: int = 0) -> Path:
    """Return drawings from openclipart.org in 8 classes of subjects; public domain. 1,111 + 371 drawings with seed 0.

    The files of eight categories of the collection, without the links by which it lists a drawing in a second
    category, and without the 13 above 10 megapixels; drawn on a white square of 224 x 224 pixels. Series such as
    ``smiley1``, ``smiley2``, ... are entirely in train or entirely in test, and a quarter of every class is in test.

    Raises:
        InputError: The package is neither installed nor available.
    """

    def make(folder: Path) -> None:
        pillow = needs("PIL.Image", "pictures are stored as PNG")
        with files_of(OPENCLIPART, log) as source:
            chosen = clipart(source, pillow)
            log(f"drawing {len(chosen):,} pictures")
            for part, paths in grouped(chosen, CLIPART_TEST, seed).items():
                for path in paths:
                    target = folder / part / path.parts[0] / "-".join(path.parts[1:])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    on_white(pillow, source / path).save(target)
        log(f"{cache_folder()}: {len(chosen):,} pictures of OpenClipart")

    return make_folder(cache_folder() / f"openclipart-{seed}", make)


def drawn(labels: NDArray[np.uint8], size: int, seed: int) -> list[int]:
    """Return ``size`` indices into ``labels``, equally many of each class, in ascending order."""
    draw = random.Random(seed)  # only random() is used: its sequence alone is stable across Python versions
    classes = len(CLOTHES)
    smallest = min(Counter(labels.tolist()).values())
    if size % classes or not 0 < size <= classes * smallest:
        raise InputError(f"cannot draw {size} pictures: give a multiple of {classes}, at most {classes * smallest}")
    order = sorted(range(len(labels)), key=lambda _: draw.random())
    chosen: list[int] = []
    for label in range(classes):
        chosen += [index for index in order if labels[index] == label][: size // classes]
    return sorted(chosen)


def clipart(source: Path, pillow: Any) -> list[Path]:
    """Return the drawings to use, relative to ``source``; the first folder is the class."""
    paths = [path for kind in CLIPART for path in sorted((source / kind).rglob("*.png")) if not path.is_symlink()]
    largest, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None  # here only sizes are read
    try:
        return [path.relative_to(source) for path in paths if _pixels(pillow, path) <= CLIPART_LARGEST]
    finally:
        pillow.MAX_IMAGE_PIXELS = largest


def grouped(paths: Iterable[Path], share: float, seed: int) -> dict[str, list[Path]]:
    """Split paths CLASS/... into train and test: ``share`` of every class is test, and series stay together.

    A series is a set of files whose names differ only in a number at the end.
    """
    paths = sorted(paths)
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(series(path), []).append(path)
    sizes = Counter(path.parts[0] for path in paths)
    room = {kind: round(share * size) for kind, size in sizes.items()}
    draw = random.Random(seed)
    parts: dict[str, list[Path]] = {"train": [], "test": []}
    for group in sorted(groups.values(), key=lambda _: draw.random()):
        taken = Counter(path.parts[0] for path in group)
        fits = all(room[kind] >= count for kind, count in taken.items())
        if fits:
            room.update({kind: room[kind] - count for kind, count in taken.items()})
        parts["test" if fits else "train"] += group
    return parts


def series(path: Path) -> str:
    """Return the name of the series of a file, such as ``smiley`` for ``smiley_114.png``."""
    return re.sub(r"[_-]?\d*_?$", "", path.stem.lower())


def on_white(pillow: Any, path: Path) -> Any:
    """Return the drawing on a white square, scaled so that its longer side equals the side of the square."""
    with pillow.open(path) as picture:
        drawing = picture.convert("RGBA")
    scale = CLIPART_SIDE / max(drawing.size)
    width, height = (max(round(scale * side), 1) for side in drawing.size)
    drawing = drawing.resize((width, height), pillow.Resampling.BICUBIC)
    square = pillow.new("RGBA", (CLIPART_SIDE, CLIPART_SIDE), "white")
    square.alpha_composite(drawing, ((CLIPART_SIDE - width) // 2, (CLIPART_SIDE - height) // 2))
    return square.convert("RGB")


def _pixels(pillow: Any, path: Path) -> int:
    with pillow.open(path) as picture:
        width, height = picture.size
    return int(width * height)


def _idx(path: Path) -> NDArray[np.uint8]:
    """Return the verified bytes of an IDX file after its header: [pictures * 784] or [pictures]."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); install {FASHION_MNIST.name} anew") from None
    if sha256_of(content) != IDX[path.name]:
        raise InputError(f"{path}: not the Fashion-MNIST that it should be; install {FASHION_MNIST.name} anew")
    return np.frombuffer(content, np.uint8, offset=16 if "images" in path.name else 8)


FASHION_MNIST = Package("dataset-fashion-mnist", 30_900_652, "/usr/share/datasets/fashion-mnist")
OPENCLIPART = Package("openclipart-png", 130_910_028, "/usr/share/openclipart/png")
IDX = {  # sha256 of what the files hold: Debian compressed them anew
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
