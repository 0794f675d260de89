"""Images: found in folders or named in a table, and made pixels of one by one when a batch wants them.

table = read_folder("pets", answers=True, say=print)      # pets/cat/1.png, pets/dog/2.jpg, ...
table = read_image_table("pets.csv", "image", "label")    # paths from the folder where pets.csv is
image = decode(path, "pets.csv, row 2: ")                 # red, green, blue; Pillow's
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from taskedge.errors import InputError
from taskedge.training.data.table import COUNTED, Table, read_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image


def read_folder(folder: Path, *, answers: bool, say: Callable[[str], None]) -> Table:
    """The images below a folder, in the order of their names; with ``answers``, a class is a sub-folder of it.

    Hidden files are passed over; other files that are no images too, which ``say`` is told.

    Raises:
        InputError: with ``answers``: no sub-folders, images outside of them, or one without images; no images at all;
            one that cannot be opened.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    suffixes = _suffixes()
    images = [path.relative_to(folder) for path in files if path.suffix.lower() in suffixes]
    if len(images) < len(files):
        other = next(path for path in files if path.suffix.lower() not in suffixes)
        left = len(files) - len(images)
        say(f"{folder}: {left} of {len(files)} files are left out because they are no images, {other.name!r} first")
    if not images:
        raise InputError(f"{folder}: there are no images in it")
    if answers:
        _check_classes(folder, images)
    table = Table(folder, [image.as_posix() for image in images], [i.parts[0] for i in images] if answers else None)
    _check_images(table)
    return table


def read_image_table(path: Path, image: str, label: str | None) -> Table:
    """The images that a table names, and their labels where ``label`` names a column.

    Raises:
        InputError: as :func:`taskedge.training.data.table.read_table`; an image that is missing or cannot be opened.
    """
    table = read_table(path, image, label)
    _check_images(table)
    return table


def image_paths(table: Table) -> list[Path]:
    """Where each row's image is: paths in a table start at its folder."""
    start = table.path if table.path.is_dir() else table.path.parent
    return [start / text for text in table.texts]


def place(table: Table, row: int) -> str:
    """What a message about a row (from 0) begins with."""
    return "" if table.path.is_dir() else f"{table.path}, row {row + 1} ({COUNTED}): "


def decode(path: Path, where: str = "") -> Image:
    """The image as red, green and blue: turned as its camera says, on white where it is transparent.

    Raises:
        InputError: it cannot be read; the message begins with ``where``.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would cut off what is above 255
                image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}{path}: the image cannot be read ({_first(error)}): replace or remove it") from None


def _check_images(table: Table) -> None:
    """Each must be there and begin as an image does; what is behind that shows when it is decoded."""
    _suffixes()
    from PIL import Image

    for row, path in enumerate(image_paths(table)):
        if not path.is_file():
            raise InputError(f"{place(table, row)}no image {path}: paths start at the folder where the table is")
        try:
            with Image.open(path):
                pass
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            why = f"{place(table, row)}{path}: the image cannot be read ({_first(error)}): replace or remove it"
            raise InputError(why) from None


def _check_classes(folder: Path, images: list[Path]) -> None:
    loose = [image for image in images if len(image.parts) == 1]
    if loose:
        raise InputError(
            f"{folder}: {loose[0]} is in no class ({len(loose)} such images): give each class a folder of its own in "
            f"{folder}, or name a table of paths and labels"
        )
    classes = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    empty = sorted(classes - {image.parts[0] for image in images})
    if empty:
        raise InputError(f"{folder / empty[0]}: there are no images in it: add some, or remove the folder")


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _suffixes() -> set[str]:
    """Of files that Pillow can open.

    Raises:
        InputError: Pillow is not installed.
    """
    if not find_spec("PIL"):
        raise InputError("images need Pillow, which is not installed: pip install 'taskedge[vision]'")
    from PIL import Image

    known = Image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN} - {".pdf", ".mpg", ".mpeg"}


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
