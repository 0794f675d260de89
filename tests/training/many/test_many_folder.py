"""What is kept of a run over several tasks, and what a resumed run must have in common with it."""

from types import SimpleNamespace

import pytest
import tiny

import taskedge as te
from taskedge.errors import InputError
from taskedge.training.many.many_config import TuneManyConfig
from taskedge.training.many.many_folder import (
    check_identity,
    remove_folder,
    run_folder,
    store_start,
    stored_supports,
)
from taskedge.training.tune_folder import is_interrupted


@pytest.fixture
def kept(tmp_path):
    """A folder of a run with two supports."""
    folder = run_folder(TuneManyConfig(model="m", out=tmp_path / "both.safetensors"))
    supports = [te.select(tiny.bert(), per_neuron=1, rule="random", seed=seed) for seed in (0, 1)]
    identity = {"lr": 0.1, "task": ["a", "b"], "data of a": "1f", "data of b": "2e"}
    store_start(folder, identity, supports)
    return SimpleNamespace(folder=folder, supports=supports, identity=identity)


def test_supports_come_back_in_order(kept) -> None:
    assert kept.folder.name == "both.safetensors.run"
    assert is_interrupted(kept.folder)
    for stored, support in zip(stored_supports(kept.folder, 2), kept.supports, strict=True):
        assert all(stored.linears[name].flat.equal(layer.flat) for name, layer in support.linears.items())


def test_what_differs_is_named(kept) -> None:
    check_identity(kept.folder, kept.identity)
    with pytest.raises(InputError, match="other data of b: resume it with those"):
        check_identity(kept.folder, kept.identity | {"data of b": "3d"})
    with pytest.raises(InputError, match=r"--lr 0.1 \(now --lr 0.2\)"):
        check_identity(kept.folder, kept.identity | {"lr": 0.2})


def test_damaged_settings_are_named(kept) -> None:
    (kept.folder / "settings.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        check_identity(kept.folder, kept.identity)


def test_an_ended_run_leaves_nothing(kept) -> None:
    remove_folder(kept.folder)
    assert not kept.folder.exists()
    remove_folder(kept.folder)
