"""The chip file: all faults in one message, with key and line."""

from __future__ import annotations

import pytest
from chips import CHIP

from taskedge.errors import InputError
from taskedge.placement.chip_file import KINDS, load_chip


def test_a_chip_with_defaults(tmp_path):
    (tmp_path / "chip.toml").write_text(CHIP)
    chip = load_chip(tmp_path / "chip.toml")
    assert [memory.name for memory in chip.memories] == ["sram", "reram"]
    assert chip.memories[0].capacity_bits == 160_000
    assert chip.memories[1].spec.holds == list(KINDS)
    assert chip.use.tokens_per_pass == 8
    assert chip.use.weight_bits == 8
    assert chip.limits.area_mm2 is None


def test_every_fault_has_its_key_and_line(tmp_path):
    text = CHIP.replace("passes_per_hour", "passes_per_hours").replace("capacity_bytes = 20_000", "capacity_bytes = 0")
    text = text.replace('cell = "reram"', 'cell = "rearm"')
    (tmp_path / "chip.toml").write_text(text.replace('name = "reram"', 'name = "reram"\nholds = ["weights"]'))
    with pytest.raises(InputError) as caught:
        load_chip(tmp_path / "chip.toml")
    message = str(caught.value)
    assert "has 4 faults" in message
    assert "memory 2, cell (line 14): unknown cell 'rearm'" in message  # other faults do not hide it
    assert "use.passes_per_hours (line 4): unknown key; did you mean 'passes_per_hour'?" in message
    assert "memory 1, capacity_bytes (line 9): should be greater than or equal to 1 (given: 0)" in message
    assert "memory 2, holds 0 (line 13): should be 'base', 'task', 'activations' or 'buffer'" in message


def test_names_and_cells_are_checked_together(tmp_path):
    text = CHIP.replace('name = "reram"', 'name = "sram"').replace('cell = "reram"', 'cell = "rearm"')
    (tmp_path / "chip.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_chip(tmp_path / "chip.toml")
    message = str(caught.value)
    assert "memory 1, name (line 7): the name 'sram' is used 2 times; change one" in message
    assert "memory 2, cell (line 13): unknown cell 'rearm'; did you mean 'reram'?" in message


def test_a_chip_without_memory(tmp_path):
    (tmp_path / "chip.toml").write_text("[use]\ntokens_per_pass = 8\n")
    with pytest.raises(InputError, match=r"memory: is missing; docs/placement\.md"):
        load_chip(tmp_path / "chip.toml")
