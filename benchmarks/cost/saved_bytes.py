"""What autograd keeps between forward and backward: our method beside the frozen limit, PEFT's methods and full tuning.

    python -m benchmarks.cost.saved_bytes  # under a minute

Every storage that a backward node saves is counted once, the model's own parameters and buffers not at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cost.workload import DROPOUT, SETTING, Batch, set_dropout, setup, variants
from benchmarks.record import figure, show, write

RESULTS = ("saved_bytes.json",)

BARS = {"frozen limit": 1.08, "LoRA r=8": 0.70}


def saved_bytes(model: nn.Module, batch: Batch) -> int:
    """Bytes of the distinct storages saved for the backward pass of one batch."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps their addresses from being used anew

    def pack(tensor: Tensor) -> Tensor:
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            address = part.untyped_storage().data_ptr()
            if address not in own:
                kept.setdefault(address, part)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    loss.backward()
    return total


def main() -> None:
    base, calibration = setup()
    models = variants(base, calibration)
    figures = []
    for dropout in DROPOUT:
        total = {}
        for name, model in models.items():
            set_dropout(model, dropout)
            total[name] = saved_bytes(model, calibration[0])
        figures += [line | {"dropout": dropout} for line in summary(total)]
    show(figures)
    write("cost", "saved_bytes", {"setting": SETTING, "figures": figures})


def summary(total: dict[str, int]) -> list[dict[str, Any]]:
    rules = ("taskedge", "magnitude", "random")
    others = [name for name in total if name not in rules]
    figures = [
        figure(f"saved bytes: taskedge / {other}", [total["taskedge"] / total[other]], bar=BARS.get(other))
        for other in others
    ]
    figures += [
        figure(f"saved bytes: {rule} / frozen limit", [total[rule] / total["frozen limit"]]) for rule in rules[1:]
    ]
    return figures + [figure(f"saved bytes: {name}", [count / 2**20], unit="MiB") for name, count in total.items()]


if __name__ == "__main__":
    main()
