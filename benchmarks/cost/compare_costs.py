"""Cost of the methods of the comparison at separate learning rates: a step, the memory of a step, the file.

    python -m benchmarks.cost.compare_costs                              # about a CPU-minute a method; resumable
    python -m benchmarks.cost.compare_costs --methods '8 columns' 'LoRA r=8'

Measured like method_costs.py, with the forms and settings of ``benchmarks.accuracy.rivals``. Methods whose support is
found by training are left out: their step is that of a sparse form with as many columns.
"""

from __future__ import annotations

import argparse

from benchmarks.accuracy.rivals import COMPARED, installs
from benchmarks.cost.method_costs import measure
from benchmarks.record import results

RESULTS = ("compare_costs.jsonl",)


def main() -> None:
    """Measure the methods that are not on file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    prepares = {name: prepare for name in COMPARED if (prepare := installs(name)) is not None}
    parser.add_argument("--methods", nargs="*", choices=prepares, default=list(prepares))
    arguments = parser.parse_args()
    measure({name: prepares[name] for name in arguments.methods}, results("cost") / "compare_costs.jsonl")


if __name__ == "__main__":
    main()
