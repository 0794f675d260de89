"""Folders of pictures: the right ones, in the right class, and no series in both parts. Offline but for the last."""

import gzip
from collections import Counter
from contextlib import contextmanager
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real import real

from taskedge.demo import assets
from taskedge.demo.assets import image_assets as images
from taskedge.demo.fetch import sha256_of
from taskedge.errors import InputError

Image = pytest.importorskip("PIL.Image")


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def package_at(folder, monkeypatch):
    @contextmanager
    def files_of(package, say):
        yield folder

    monkeypatch.setattr(images, "files_of", files_of)


def clothes(folder, monkeypatch):
    """40 training and 20 test pictures; picture i of class i % 10 is of the gray i."""
    folder.mkdir()
    for name, count in (("train", 40), ("t10k", 20)):
        gray = np.arange(count, dtype=np.uint8)
        pictures = b"\0" * 16 + np.repeat(gray, 784).tobytes()
        labels = b"\0" * 8 + (gray % 10).tobytes()
        for kind, content in ((f"{name}-images-idx3-ubyte.gz", pictures), (f"{name}-labels-idx1-ubyte.gz", labels)):
            (folder / kind).write_bytes(gzip.compress(content))
            monkeypatch.setitem(images.IDX, kind, sha256_of(content))
    package_at(folder, monkeypatch)


def test_clothes_are_drawn_evenly_and_lie_in_their_class(cache, tmp_path, monkeypatch):
    clothes(tmp_path / "package", monkeypatch)
    folder = assets.fashion_mnist(print, train=20, test=10)
    for part, each in (("train", 2), ("test", 1)):
        for label, name in enumerate(images.CLOTHES):
            files = list((folder / part / name).glob("*.png"))
            assert len(files) == each
            for file in files:
                picture = np.asarray(Image.open(file))
                assert picture.shape == (28, 28)
                assert (picture == int(file.stem)).all()
                assert int(file.stem) % 10 == label
    assert len(everything_in(cache)) == 30
    monkeypatch.delattr(images, "files_of")
    assert assets.fashion_mnist(print, train=20, test=10) == folder


def test_another_seed_is_another_choice(cache, tmp_path, monkeypatch):
    clothes(tmp_path / "package", monkeypatch)
    one, other = (everything_in(assets.fashion_mnist(print, 20, 10, seed)) for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize("size", [15, 50, 0, -10])
def test_a_size_that_cannot_be_had_is_refused_and_leaves_nothing(cache, tmp_path, monkeypatch, size):
    clothes(tmp_path / "package", monkeypatch)
    with pytest.raises(InputError, match="give a multiple of 10, at most 40"):
        assets.fashion_mnist(print, train=size, test=10)
    assert everything_in(cache) == []


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"\0" * 16 + b"\1" * 784, mtime=0), None], ids=["noise", "short", "missing"]
)
def test_other_clothes_are_refused(cache, tmp_path, monkeypatch, content):
    clothes(tmp_path / "package", monkeypatch)
    file = tmp_path / "package" / "train-images-idx3-ubyte.gz"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz.*install dataset-fashion-mnist anew"):
        assets.fashion_mnist(print, train=20, test=10)
    assert everything_in(cache) == []


def test_drawings_are_put_on_white_and_links_and_giants_left_out(cache, tmp_path, monkeypatch):
    package = tmp_path / "package"
    for kind in images.CLIPART:
        (package / kind / "small").mkdir(parents=True)
    red = Image.new("RGBA", (20, 10), (255, 0, 0, 255))
    red.save(package / "food" / "small" / "apple.png")
    Image.new("LA", (10, 30), (0, 0)).save(package / "tools" / "nothing.png")  # transparent throughout
    Image.new("1", (4000, 2600)).save(package / "tools" / "giant.png")
    (package / "plants" / "apple.png").symlink_to(package / "food" / "small" / "apple.png")
    (package / "shapes").mkdir()
    red.save(package / "shapes" / "square.png")
    package_at(package, monkeypatch)
    folder = assets.openclipart(print)
    assert everything_in(folder) == ["train/food/small-apple.png", "train/tools/nothing.png"]
    apple = np.asarray(Image.open(folder / "train/food/small-apple.png"))
    assert apple.shape == (224, 224, 3)
    assert (apple[56:168] == (255, 0, 0)).all()
    assert (apple[:56] == 255).all()
    assert (apple[168:] == 255).all()
    assert (np.asarray(Image.open(folder / "train/tools/nothing.png")) == 255).all()


names = st.builds("{}{}{}.png".format, st.sampled_from(["cat", "Cat", "sm_", "x-"]), st.integers(0, 9), st.just(""))
paths = st.sets(st.builds(lambda kind, name: PurePosixPath(kind, name), st.sampled_from(["food", "tools"]), names))


@given(paths, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 5))
def test_no_series_is_in_two_parts_and_no_class_gives_more_than_its_share(chosen, share, seed):
    parts = images.grouped(chosen, share, seed)
    assert sorted(parts["train"] + parts["test"]) == sorted(chosen)
    assert not {images.series(path) for path in parts["train"]} & {images.series(path) for path in parts["test"]}
    sizes = Counter(path.parts[0] for path in chosen)
    for kind, size in Counter(path.parts[0] for path in parts["test"]).items():
        assert size <= round(share * sizes[kind])
    assert images.grouped(sorted(chosen, reverse=True), share, seed) == parts


def test_what_a_series_is():
    stems = ["smiley1", "smiley_114", "Smiley-2_", "smiley"]
    assert {images.series(PurePosixPath("people", f"{stem}.png")) for stem in stems} == {"smiley"}
    assert images.series(PurePosixPath("people/3d_man.png")) == "3d_man"


# --- the real ones ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("get", "name", "train", "test", "classes"),
    [
        (assets.fashion_mnist, "fashion-mnist-2000-1000-0", 2000, 1000, 10),
        (assets.openclipart, "openclipart-0", 1111, 371, 8),
    ],
)
def test_real_pictures(get, name, train, test, classes):
    if not (images.cache_folder() / name).is_dir():
        pytest.skip(f"{name} is not in the cache: fetching it takes too long for a test")
    folder = real(get)
    for part, size in (("train", train), ("test", test)):
        assert len(list((folder / part).glob("*/*.png"))) == size
        assert len(list((folder / part).iterdir())) == classes
