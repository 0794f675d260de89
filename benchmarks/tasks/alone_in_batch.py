"""How much a row's answer, loss and gradient differ between a batch of its own and one with other rows.

    python -m benchmarks.tasks.alone_in_batch  # a minute on one idle core

Every kind of base that the tests know, tiny and with random weights, with every kind of task that it can do. ``eval``
and ``predict`` run in batches of one row and in one batch; a step's loss and gradients are the sums over passes of one
row, and those of one pass. The tokenizers prefer the side of padding that is wrong for the base. For classifiers,
``tokenizer's side`` is the difference of a probability that this side would make.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding

from benchmarks.record import TEST_HELPERS, figure, write

sys.path.insert(0, str(TEST_HELPERS))
from tiny_kinds import CASES, base_of, largest_differences, rows_of

RESULTS = ("alone_in_batch.json",)

LENGTHS = (3, 9, 1, 6, 12, 4, 2, 30, 8, 5, 17, 7)
"""Words of each row; of images, only the number of rows counts."""
BAR = 1e-5


@torch.no_grad()
def with_the_tokenizers_side(base: Any, rows: list[dict[str, Any]]) -> float:
    """Return the largest difference of a probability if batches were padded as the tokenizer prefers."""
    collate = DataCollatorWithPadding(base.tokenizer)
    inputs = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows]
    alone = torch.cat([base.model(**collate([row])).logits for row in inputs])
    together = base.model(**collate(inputs)).logits
    return float((alone.softmax(-1) - together.softmax(-1)).abs().max())


def main() -> None:
    torch.set_num_threads(1)
    figures, details = [], {}
    for task, kind in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            base = base_of(kind, task, folder / "base")
            bound, rows = rows_of(task, base, folder, LENGTHS)
            found = largest_differences(bound, base, rows)
            figures.append(figure(f"{task}, {kind}", [max(found.values())], bar=BAR))
            if task == "text-classification":
                found["tokenizer's side"] = with_the_tokenizers_side(base, rows)
            details[f"{task}, {kind}"] = found
            print(f"{task}, {kind}:", ", ".join(f"{what} {value:.1e}" for what, value in found.items()), flush=True)
    setting = f"tiny random bases, fp32; {len(LENGTHS)} rows of {min(LENGTHS)} to {max(LENGTHS)} words, or images"
    write("tasks", "alone_in_batch", {"setting": setting, "figures": figures, "differences": details})


if __name__ == "__main__":
    main()
