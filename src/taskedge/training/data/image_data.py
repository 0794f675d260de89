r"""Images: listed from folders or tables, and decoded one by one when a batch needs them.

table = read_image_folder("pets", answers=True, log=print)   # pets/cat/1.png, pets/dog/2.jpg, ...
table = read_image_table("pets.csv", "image", "label")       # paths relative to the folder of pets.csv
image = decode_image(path, "pets.csv, row 2: ")              # a Pillow image: red, green, blue
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from taskedge.errors import InputError
from taskedge.training.data.table import Table, read_table
from taskedge.training.data.table_readers import ROW_NUMBERING

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image


def read_image_folder(folder: Path, *, answers: bool, log: Callable[[str], None]) -> Table:
    """List the images below a folder, in the order of their names.

    Hidden files are ignored. Other files that are not images are ignored as well, with a message.

    Args:
        folder: the folder.
        answers: whether each sub-folder is a class.
        log: called with the message.

    Raises:
        InputError: no images; one that cannot be opened; with ``answers``, no sub-folders, images outside of them, or
            a sub-folder without images.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    suffixes = _suffixes()
    images = [path.relative_to(folder) for path in files if path.suffix.lower() in suffixes]
    if len(images) < len(files):
        first = next(path for path in files if path.suffix.lower() not in suffixes)
        num_others = len(files) - len(images)
        reason = "because they are no images"
        log(f"{folder}: {num_others} of {len(files)} files are left out {reason}, {first.name!r} first")
    if not images:
        raise InputError(f"{folder}: there are no images in it")
    if answers:
        _check_classes(folder, images)
    labels = [image.parts[0] for image in images] if answers else None
    table = Table(folder, [image.as_posix() for image in images], labels)
    _check_images(table)
    return table


def read_image_table(path: Path, image: str, label: str | None) -> Table:
    """Read the paths of images from a table, and their labels if ``label`` names a column.

    Raises:
        InputError: as :func:`taskedge.training.data.table.read_table`; an image is missing or cannot be opened.
    """
    table = read_table(path, image, label)
    _check_images(table)
    return table


def image_paths(table: Table) -> list[Path]:
    """Return the path of each row's image. Paths in a table are relative to its folder."""
    folder = table.path if table.path.is_dir() else table.path.parent
    return [folder / text for text in table.texts]


def row_location(table: Table, index: int) -> str:
    """Return the beginning of a message about a row, by its index from 0; empty for a folder."""
    return "" if table.path.is_dir() else f"{table.path}, row {index + 1} ({ROW_NUMBERING}): "


def decode_image(path: Path, where: str = "") -> Image:
    """Return the image in red, green and blue, rotated by its camera data, on white where it is transparent.

    Raises:
        InputError: it cannot be read. The message begins with ``where``.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip values above 255
                image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{where}{path}: the image cannot be read ({_first_line(error)}): replace or remove it"
        ) from None


def _check_images(table: Table) -> None:
    """Check that each file exists and begins like an image. Its content is checked when it is decoded."""
    _suffixes()
    from PIL import Image

    for index, path in enumerate(image_paths(table)):
        if not path.is_file():
            raise InputError(
                f"{row_location(table, index)}no image {path}: paths start at the folder where the table is"
            )
        try:
            with Image.open(path):
                pass
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = _first_line(error)
            raise InputError(
                f"{row_location(table, index)}{path}: the image cannot be read ({reason}): replace or remove it"
            ) from None


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
    """Return the suffixes of files that Pillow can open.

    Raises:
        InputError: Pillow is not installed.
    """
    if not find_spec("PIL"):
        raise InputError("images need Pillow, which is not installed: pip install 'taskedge[vision]'")
    from PIL import Image

    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    return readable - {".pdf", ".mpg", ".mpeg"}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
