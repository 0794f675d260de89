"""The folder of a run: what it was started with, and what a resumption needs."""

import asyncio
import json
import random

import pytest
import tiny_fleet
import torch

import taskedge as te
from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.coordinator.run_folder import MAY_CHANGE, RunFolder, read_run_file
from taskedge.errors import InputError
from taskedge.selection.support import load_support, save_support

OLD_REVISION = {
    **{"budget": "0.1%", "per_neuron": 1, "rule": "taskedge", "allocation": "per_neuron", "max_columns": None},
    **{"step": "plain", "calibration": 8, "mode": "deft", "copies": 2, "blocks": None, "solver": "joint"},
    **{"turns": 0.0, "passing": 0.0, "head": "every", "active_share": 1.0, "rounds": 4, "batch_size": 4},
    **{"accumulate": 1, "local_steps": 1, "local_optimiser": "sgd", "upload": "float32"},
    **{"optimiser": "sgd"},  # codespell:ignore
    **{"lr": 0.05, "head_lr": None, "server_lr": 1.0, "weight_decay": 0.0, "warmup": 0.0, "clip": 0.0, "seed": 0},
    **{"base": "digest", "labels": ["no", "yes"]},
}
"""Identity in the run.json of a run with ``tiny_fleet.settings``, as revisions before the present names wrote it."""


def opened(path, resume=False, plan_digest="", base="digest", labels=("no", "yes"), **changes):
    return RunFolder(path, tiny_fleet.settings(**changes), base, labels, plan_digest=plan_digest, resume=resume)


def test_a_new_run_has_an_id_and_nothing_to_resume(tmp_path):
    folder = opened(tmp_path / "a" / "run")
    assert len(folder.run_id) == 16
    assert (folder.support, folder.resumed) == (None, None)
    run_id, settings = read_run_file(folder.path)
    assert run_id == folder.run_id
    assert not settings.keys() & MAY_CHANGE
    assert settings.keys() == (CooperationConfig.model_fields.keys() - MAY_CHANGE) | {"base", "labels", "plan"}


def test_a_resumed_run_has_its_id_support_and_last_version(tmp_path):
    folder = opened(tmp_path / "run")
    resumed = opened(tmp_path / "run", resume=True)
    assert (resumed.run_id, resumed.support, resumed.resumed) == (folder.run_id, None, None)
    support = te.select(tiny_fleet.model(), rule="magnitude", per_neuron=1)
    folder.save_support(support)
    assert opened(tmp_path / "run", resume=True).resumed is None
    for number in (1, 2):
        versions.commit(folder.path, number, {"round": number}, {"x": torch.full((2,), float(number))})
    resumed = opened(tmp_path / "run", resume=True)
    assert resumed.support.num_entries == support.num_entries
    fields, tensors = resumed.resumed
    assert (fields["round"], tensors["x"].tolist()) == (2, [2.0, 2.0])


def test_a_run_of_an_earlier_revision_is_resumed(tmp_path):
    tmp_path.joinpath("run.json").write_text(json.dumps({"run": "abc", "identity": OLD_REVISION}))
    assert opened(tmp_path, resume=True).run_id == "abc"
    assert read_run_file(tmp_path)[1]["solver"] == "exact"  # "joint" up to 0.1
    with pytest.raises(InputError, match=r"--rotation-slack 0\.0 \(now --rotation-slack 0\.3\)"):
        opened(tmp_path, resume=True, rotation_slack=0.3)
    with pytest.raises(InputError, match="another plan"):
        opened(tmp_path, resume=True, plan_digest="p")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lr": 0.01, "rounds": 2}, r"--lr 0\.05 \(now --lr 0\.01\), --rounds 4 \(now --rounds 2\)"),
        ({"base": "other"}, "settings: another base: resume"),
        ({"labels": ("no",)}, r"other labels: \['no', 'yes'\] \(now \['no'\]\)"),
        ({"plan_digest": "p"}, "another plan"),
    ],
)
def test_a_run_is_not_resumed_with_another_identity(tmp_path, changes, reason):
    opened(tmp_path / "run")
    with pytest.raises(InputError, match=reason):
        opened(tmp_path / "run", resume=True, **changes)


@pytest.mark.parametrize("name", sorted(MAY_CHANGE))
def test_limits_may_change(tmp_path, name):
    opened(tmp_path / "run")
    default = CooperationConfig.model_fields[name].default
    others = {bool: lambda: not default, str: lambda: "median"}
    opened(tmp_path / "run", resume=True, **{name: others.get(type(default), lambda: default + 1)()})


def test_a_folder_is_neither_overwritten_nor_resumed_by_mistake(tmp_path):
    opened(tmp_path / "run")
    with pytest.raises(InputError, match="holds a run: resume it"):
        opened(tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume"):
        opened(tmp_path / "nowhere", resume=True)
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        opened(tmp_path / "file" / "run")


def test_a_run_with_other_settings_is_not_resumed(tmp_path):
    tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), tiny_fleet.devices(1))

    async def again(path="run", **changes):
        async with tiny_fleet.fleet(tiny_fleet.devices(1)) as made:
            await tiny_fleet.coordinator(made, tmp_path / path, tiny_fleet.settings(**changes)).run(resume=True)

    with pytest.raises(InputError, match=r"--lr 0.05 \(now --lr 0.01\), --rounds 1 \(now --rounds 2\)"):
        asyncio.run(again(rounds=2, lr=0.01))
    with pytest.raises(InputError, match="no run to resume"):
        asyncio.run(again("nowhere"))
    asyncio.run(again(rounds=1, wait_seconds=5.0))


@pytest.mark.parametrize("damage", ["{", "[]", '{"run": "x"}', None])
def test_a_damaged_run_file_is_restored_from_the_last_version(tmp_path, damage):
    """The versions are whole, so the run is not lost: it used to have to start anew."""
    tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), tiny_fleet.devices(1))
    path, run_id = tmp_path / "run" / "run.json", read_run_file(tmp_path / "run")[0]
    sound, events = json.loads(path.read_bytes()), []
    path.unlink()
    if damage is not None:
        path.write_text(damage)

    async def again():
        async with tiny_fleet.fleet(tiny_fleet.devices(1)) as made:
            how, folder = tiny_fleet.settings(rounds=1), tmp_path / "run"
            await tiny_fleet.coordinator(made, folder, how, on_event=events.append).run(resume=True)

    with pytest.raises(InputError, match="holds a run: resume it"):
        opened(tmp_path / "run")
    asyncio.run(again())
    assert json.loads(path.read_bytes()) == sound
    assert [
        event["why"].endswith("written anew from version-1.safetensors")
        for event in events
        if event["event"] == "restored"
    ] == [True]
    assert read_run_file(tmp_path / "run")[0] == run_id


def test_a_restored_run_file_still_guards_the_settings(tmp_path):
    tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), tiny_fleet.devices(1))
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match="begun with other settings"):
        opened(tmp_path / "run", resume=True, rounds=9)


def test_without_a_version_a_damaged_run_file_cannot_be_restored(tmp_path):
    opened(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: damaged .* no version restores it: start anew"):
        opened(tmp_path / "run", resume=True)


def test_a_support_with_a_flipped_bit_is_refused(tmp_path):
    """Wherever the bit is: a resumed run would train other weights than its devices."""
    path, draw = tmp_path / "support.safetensors", random.Random(0)
    save_support(te.select(tiny_fleet.model(), rule="magnitude", budget="3%"), path)
    sound = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(sound)
        damaged[draw.randrange(len(sound))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            load_support(path)
    path.write_bytes(sound)
    assert load_support(path).num_entries > 0
