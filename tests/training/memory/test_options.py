"""Names of options, and what ``--allow`` accepts."""

from __future__ import annotations

import subprocess
import sys

from taskedge.training.memory.options import LOAD_OPTIONS, MEZO_OPTION, RECOMPUTE_OPTIONS, allowable_options
from taskedge.training.tune_config import TuneConfig


def test_every_option_overrides_a_setting():
    for option in (*LOAD_OPTIONS, *RECOMPUTE_OPTIONS, MEZO_OPTION):
        assert option.setting in TuneConfig.model_fields


def test_names():
    names = [option.name for option in (*LOAD_OPTIONS, *RECOMPUTE_OPTIONS, MEZO_OPTION)]
    assert names == [
        "dtype bf16",
        "weight-storage int8",
        "weight-storage int4",
        "recompute inputs",
        "recompute blocks",
        "mezo",
    ]


def test_allowable_options():
    assert allowable_options() == ["bf16", "depth", "int4", "int8"]


def test_settings_are_checked_without_torch():
    code = "import sys, taskedge.training.memory.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
