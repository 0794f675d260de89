"""The table of penalties on gates of matrices."""

import json
from pathlib import Path

from benchmarks.report import report_gates


def test_a_row_a_way_and_a_column_a_task(tmp_path: Path) -> None:
    runs = [
        {"method": way, "validation": accuracy, "linears": linears, "entries": entries}
        for way, accuracy, linears, entries in (
            ("sum", 0.947, 35, 900),
            ("product", 0.9, 2, 80),
            ("sum", 0.941, 36, 1100),
            ("product", None, 0, 0),  # all gates closed
        )
    ]
    (tmp_path / "tweets.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    lines = report_gates.by_way(report_gates.read(tmp_path)).splitlines()
    assert lines[0] == "|  | Tweets (2 classes): validation accuracy, linears, entries |"
    assert lines[2:] == [
        "| `structured`, `--group-penalty sum` | 94.7 and 94.1; 35 and 36; 1,000 |",
        "| `structured`, `--group-penalty product` | 90.0 and -; 2 and 0; 40 |",
        "| `unstructured` | - |",
    ]
