"""Cells of the package have sources, and faults of a cell file name their line."""

from __future__ import annotations

import pytest

from taskedge.errors import InputError
from taskedge.placement.memory_cells import CELL_DATA, cell_names, load_cell

PUBLISHED = {  # area mm2, read ns and pJ, write ns and pJ, leakage mW of NVMExplorer's tutorial data, rounded
    "sram": (0.654, 4.33, 1.03, 4.33, 16.9, 28.2),
    "reram": (0.247, 0.775, 4.03, 10.6, 53.2, 3.43),
    "fefet": (0.065, 3.92, 0.705, 24.3, 18.9, 0.617),
    "pcm": (0.178, 0.659, 3.76, 150, 8.98, 21.4),
    "stt": (0.244, 0.971, 3.79, 11.0, 68.3, 2.10),
}


@pytest.mark.parametrize("name", ["sram", "reram", "fefet", "pcm", "stt", "dram", "flash"])
def test_every_cell_has_its_source(name):
    cell = load_cell(name)
    assert len(cell.source) > 40
    assert bool(cell.endurance_source) == (cell.min_endurance_writes is not None) == (not cell.volatile)
    assert bool(cell.levels_source) == bool(cell.levels)
    if name in PUBLISHED:
        given = (cell.area_mm2, cell.read_ns, cell.read_pj, cell.write_ns, cell.write_pj, cell.leakage_mw)
        assert given == pytest.approx(PUBLISHED[name], rel=0.01)


def test_the_list_of_cells_is_complete():
    assert cell_names() == ["dram", "fefet", "flash", "pcm", "reram", "sram", "stt"]


def test_numbers_of_flash_follow_from_its_data_sheet():
    cell = load_cell("flash")
    assert cell.read_ns == pytest.approx(64 / 4 / 104e6 * 1e9, rel=1e-4)
    assert cell.read_pj == pytest.approx(3.0 * 12e-3 * cell.read_ns * 1e3, rel=1e-4)
    sector_seconds = 45e-3 + 16 * 0.4e-3
    assert cell.write_ns == pytest.approx(sector_seconds / 512 * 1e9)
    assert cell.write_pj == pytest.approx(3.0 * 20e-3 * sector_seconds / 512 * 1e12)


def test_an_unknown_cell_names_the_nearest():
    with pytest.raises(InputError, match=r"unknown cell 'rream'; did you mean 'reram'.*or a file that ends in .toml"):
        load_cell("rream")


def test_levels_that_no_source_states():
    with pytest.raises(InputError, match=r"FeFET with 1 bits in a cell: none are known; give --fault-rate"):
        load_cell("fefet").levels_of(1)
    with pytest.raises(InputError, match="cells with 1, 2, 3 bits are known"):
        load_cell("reram").levels_of(4)


def test_faults_of_a_cell_file_name_their_line(tmp_path):
    text = (CELL_DATA / "reram.toml").read_text()
    text = text.replace("read_ns = 0.774891", "read_nss = 0.774891").replace("volatile = false", 'volatile = "no"')
    (tmp_path / "mine.toml").write_text(text.replace("means = [0.0, 1.0]", "means = [1.0, 0.0]"))
    with pytest.raises(InputError) as caught:
        load_cell("mine.toml", tmp_path)
    message = str(caught.value)
    assert "has 4 faults" in message
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "read_nss" in row)
    assert f"read_nss (line {line}): unknown key; did you mean 'read_ns'?" in message
    assert "volatile (line 3): should be a valid boolean (given: 'no')" in message
    assert "read_ns: is missing" in message
    assert "the means must rise" in message


def test_a_missing_file_and_one_that_is_no_toml(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_cell("absent.toml", tmp_path)
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(InputError, match="is not TOML"):
        load_cell("bad.toml", tmp_path)


def test_numbers_of_dram_follow_from_its_currents():
    cell = load_cell("dram")
    burst = 4 * 0.833
    assert (cell.read_ns, cell.write_ns) == pytest.approx((burst, burst))
    assert cell.read_pj == pytest.approx(1.2 * (145 - 55) * burst, rel=1e-4)
    assert cell.standby_mw == pytest.approx(1.2 * 50 + 2.5 * 3 + (1.2 * 307 + 2.5 * 45) * 360 / 7800, rel=1e-4)
