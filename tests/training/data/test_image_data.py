"""Any image is decoded to red, green and blue; an error names the missing or broken file and its row."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_task
from PIL import Image

from taskedge.errors import InputError
from taskedge.training.data.image_data import decode_image, image_paths, read_image_folder, read_image_table

WHITE = (255, 255, 255)


def saved(path, image, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)
    return path


def palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 10, 200, 30])
    return image


def transparent_palette():
    image = palette()
    image.info["transparency"] = 1
    return image


DEEP = Image.fromarray(np.full((4, 4), 0x80FF, np.uint16))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (4, 4), (10, 200, 30)), (10, 200, 30)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), WHITE),
        (palette(), (10, 200, 30)),
        (transparent_palette(), WHITE),
        (Image.new("RGBA", (4, 4), (10, 200, 30, 255)), (10, 200, 30)),
        (Image.new("RGBA", (4, 4), (10, 200, 30, 0)), WHITE),
        (Image.new("LA", (4, 4), (0, 0)), WHITE),
        (DEEP, (0x80, 0x80, 0x80)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, image, expected):
    kept = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    made = decode_image(saved(tmp_path / "x.png", image, **kept))
    assert (made.mode, made.size) == ("RGB", (4, 4))
    assert made.getpixel((1, 2)) == expected


def test_it_is_turned_as_the_camera_says(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode_image(saved(tmp_path / "x.jpg", image, exif=exif)).size == (4, 8)


def test_folders_are_classes(tmp_path):
    folder, said = tiny_task.images(tmp_path / "all", 6), []
    saved(folder / "red" / "deeper" / "x.JPG", Image.new("RGB", (3, 3)))
    saved(folder / ".hidden" / "x.png", Image.new("RGB", (3, 3)))
    (folder / "red" / ".DS_Store").write_text("")
    (folder / "red" / "notes.txt").write_text("")
    table = read_image_folder(folder, answers=True, log=said.append)
    assert table.texts == [
        "blue/01.png", "blue/03.png", "blue/05.png", "red/00.png", "red/02.png", "red/04.png", "red/deeper/x.JPG",
    ]  # fmt: skip
    assert table.labels == ["blue"] * 3 + ["red"] * 4
    assert all(path.is_file() for path in image_paths(table))
    assert said == [f"{folder}: 1 of 8 files are left out because they are no images, 'notes.txt' first"]
    assert read_image_folder(folder, answers=False, log=str).labels is None


def test_paths_start_at_the_table(tmp_path, monkeypatch):
    tiny_task.images(tmp_path / "data" / "all", 2)
    absolute = saved(tmp_path / "else.png", Image.new("RGB", (3, 3)))
    path = tiny_task.table(tmp_path / "data" / "t.csv", [("all/red/00.png", "a"), (absolute, "b")], ("where", "what"))
    monkeypatch.chdir("/")
    table = read_image_table(path, "where", "what")
    assert table.labels == ["a", "b"]
    assert image_paths(table) == [tmp_path / "data" / "all" / "red" / "00.png", absolute]


def broken(folder, how):
    if how == "missing":
        (folder / "red" / "02.png").unlink()
    elif how == "no image":
        (folder / "red" / "02.png").write_text("text")
    elif how == "empty":
        (folder / "red" / "02.png").write_bytes(b"")


@pytest.mark.parametrize("how", ["missing", "no image", "empty"])
def test_an_image_that_cannot_be_opened_is_named_with_its_row(tmp_path, how):
    folder = tiny_task.images(tmp_path, 4)
    rows = [(f"red/{n:02}.png", "red") if n % 2 == 0 else (f"blue/{n:02}.png", "blue") for n in range(4)]
    path = tiny_task.table(tmp_path / "t.csv", rows, ("image", "label"))
    broken(folder, how)
    with pytest.raises(InputError, match=r"t\.csv, row 3 \(rows are counted.*red/02\.png"):
        read_image_table(path, "image", "label")
    if how != "missing":
        with pytest.raises(InputError, match=r"red/02\.png: the image cannot be read \(.*\): replace or remove it"):
            read_image_folder(folder, answers=True, log=str)


def test_a_cut_image_is_found_as_it_is_decoded(tmp_path):
    path = tiny_task.images(tmp_path, 2) / "red" / "00.png"
    path.write_bytes(path.read_bytes()[:-60])
    table = read_image_folder(tmp_path, answers=True, log=str)
    with pytest.raises(InputError, match=r"^here: .*red/00\.png: the image cannot be read \(.*truncated.*\)"):
        decode_image(image_paths(table)[1], "here: ")


@pytest.mark.parametrize(
    ("arrange", "told"),
    [
        (lambda folder: None, "there are no images in it"),
        (lambda folder: saved(folder / "x.png", Image.new("RGB", (2, 2))), r"x\.png is in no class \(1 such"),
        (lambda folder: (tiny_task.images(folder, 2), (folder / "green").mkdir()), "green: there are no images in it"),
    ],
)
def test_folders_that_cannot_be_classes(tmp_path, arrange, told):
    arrange(tmp_path)
    with pytest.raises(InputError, match=told):
        read_image_folder(tmp_path, answers=True, log=str)


def test_pillow_is_an_extra(tmp_path, monkeypatch):
    tiny_task.images(tmp_path, 2)
    monkeypatch.setattr("taskedge.training.data.image_data.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need Pillow, which is not installed: pip install 'taskedge\[vision\]'"):
        read_image_folder(tmp_path, answers=True, log=str)
