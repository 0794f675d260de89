"""The base's own processor makes pixels, batch by batch."""

from __future__ import annotations

import os

import pytest
import tiny_task
import torch
from PIL import Image

from taskedge.backbone.loading import load_base
from taskedge.errors import InputError
from taskedge.training.tasks import Columns
from taskedge.training.tasks.image_classification import ImageClassification


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return tiny_task.vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def data(tmp_path):
    folder = tiny_task.images(tmp_path / "all", 6)
    return ImageClassification.read(folder, Columns(), answers=True, log=str)


def encoded(base, table, answers=True):
    task = ImageClassification.from_table(table, Columns())
    return task, task.encode(base, table, 0, str)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_pixels_are_those_of_the_base_s_own_processor(vit, data, dtype):
    base = load_base("image-classification", vit, ["blue", "red"], dtype=dtype)
    task, rows = encoded(base, data)
    batch = task.collate(base)(rows)
    images = [Image.open(data.path / text) for text in data.texts]
    expected = base.image_processor(images, return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"].shape == (6, 3, 8, 8)
    assert batch["pixel_values"].dtype == base.model.dtype
    assert torch.equal(batch["pixel_values"], expected.to(base.model.dtype))
    assert batch["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    blue = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    whole = torch.stack([torch.tensor(list(i.resize((8, 8), 2).tobytes())).view(8, 8, 3) for i in images])
    direct = ((whole.permute(0, 3, 1, 2) / 255) - blue) / 0.3
    torch.testing.assert_close(batch["pixel_values"].float(), direct, atol=1e-5 if dtype == "fp32" else 2e-2, rtol=0)


def test_nothing_is_decoded_before_a_batch_wants_it(vit, data):
    base = load_base("image-classification", vit, ["blue", "red"])
    task, rows = encoded(base, data)
    path = data.path / data.texts[4]
    path.write_bytes(path.read_bytes()[:-60])
    task.collate(base)(rows[:4])
    with pytest.raises(InputError, match=r"red/02\.png: the image cannot be read"):
        task.collate(base)(rows)


def test_rows_of_a_table_are_named(vit, tmp_path):
    tiny_task.images(tmp_path, 4)
    rows = [("red/00.png", "r"), ("blue/01.png", "b"), ("red/02.png", "r")]
    path = tiny_task.table(tmp_path / "t.csv", rows, ("image", "label"))
    base = load_base("image-classification", vit, ["b", "r"])
    table = ImageClassification.read(path, Columns(image="image", label="label"), answers=True, log=str)
    task, encoded_rows = encoded(base, table)
    assert [row["labels"] for row in encoded_rows] == [1, 0, 1]
    (tmp_path / "red" / "02.png").write_bytes((tmp_path / "red" / "02.png").read_bytes()[:-60])
    with pytest.raises(InputError, match=r"t\.csv, row 3 .*red/02\.png"):
        task.collate(base)(encoded_rows)


def test_a_changed_image_is_another_data_set(data):
    task = ImageClassification.from_table(data, Columns())
    before = task.identity(data)
    assert task.identity(data) == before
    os.utime(data.path / data.texts[0], ns=(1, 1))
    assert task.identity(data) != before


def test_predictions_name_the_image(vit, data):
    base = load_base("image-classification", vit, ["blue", "red"])
    task, rows = encoded(base, data)
    done = []
    found = task.predict(base.model, base, rows, 4, done.append)
    assert [one["image"] for one in found] == data.texts
    assert done == [4, 2]
    for row, one in zip(rows, found, strict=True):
        with torch.no_grad():
            chances = base.model.eval()(pixel_values=task.collate(base)([row])["pixel_values"]).logits.softmax(-1)[0]
        assert one["label"] == ["blue", "red"][int(chances.argmax())]
        assert one["probability"] == pytest.approx(float(chances.max()), abs=2e-6)


def test_sizes_that_make_no_batch(vit, data):
    base = load_base("image-classification", vit, ["blue", "red"])
    base.image_processor.do_resize = False
    task, rows = encoded(base, data)
    with pytest.raises(InputError, match="the base's image processor cannot make a batch"):
        task.collate(base)(rows)
