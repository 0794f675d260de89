"""Accuracy of a task while its base is read with faults: OMP_NUM_THREADS=1 python -m benchmarks.placement.faulty_reads

all-MiniLM-L6-v2 with a delta of one entry per neuron, trained on 512 questions of 6 types and measured on 150 others.
The base is stored as an adaptive float or in fixed point, dense or with a bit mask, with and without a protected mask,
and with the published levels of ReRAM cells. Faults are simulated, not measured on hardware. About three CPU minutes.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

import taskedge as te
from benchmarks.record import figure, show, write
from taskedge.demo import assets
from taskedge.placement.cell_faults import CellFaults
from taskedge.placement.faulty_base import StorageSettings, StoredBase, measure_faults
from taskedge.placement.memory_cells import load_cell
from taskedge.training.data.text_data import collator, encode, predict
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("faulty_reads.json",)

RATES = (0.0, 1e-3, 1e-2, 5e-2)
MASK_RATES = (1e-6, 1e-4)
DRAWS, SEED = 2, 0
SIZES = {"train": 512, "test": 150}
LONGEST, EPOCHS, BATCH = 28, 2, 16


def main() -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    set_seed(SEED)
    folder = assets.minilm(print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = assets.split(assets.read_rows(assets.question_types(print)), SIZES, seed=SEED)
    labels = sorted({label for rows in parts.values() for _, label in rows})
    rows = {
        part: encode(tokenizer, [text for text, _ in pairs], [labels.index(label) for _, label in pairs], LONGEST)
        for part, pairs in parts.items()
    }
    collate = collator(tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels), dtype=torch.float32)
    calibration = [collate(rows["train"][start : start + BATCH]) for start in range(0, 8 * BATCH, BATCH)]
    base = {name for name, _ in model.named_parameters() if not name.startswith("classifier")}
    fresh = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    te.install(model, te.select(model, calibration, per_neuron=1, seed=SEED))
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainerConfig(epochs=EPOCHS, batch_size=BATCH, seed=SEED)
        train(model, rows["train"], collate, config, Path(scratch), progress=False)
    delta = te.extract(model)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels), dtype=torch.float32)
    model.load_state_dict(fresh, strict=False)
    te.apply(model.eval(), delta)
    answers = np.array([row["labels"] for row in rows["test"]])

    def accuracy() -> dict[str, Any]:
        return {"accuracy": float(np.mean(predict(model, rows["test"], collate).classes == answers))}

    plain = accuracy()["accuracy"]
    print(f"trained in {time.process_time() - started:.0f} CPU seconds; accuracy {plain:.3f}", flush=True)
    uniform = [(f"{rate:g}", CellFaults.uniform(rate)) for rate in RATES]
    masked = [(f"{rate:g}", CellFaults.uniform(rate)) for rate in MASK_RATES]
    cell = load_cell("reram")
    levels = {bits: cell.levels_of(bits) for bits in (1, 2, 3)}
    published = [(f"ReRAM levels, {bits} bit", CellFaults.of_levels(levels, bits)) for bits in (3,)]
    runs = {
        "adaptive:8.3": (StorageSettings("adaptive:8.3"), uniform + published),
        "fixed:2.6": (StorageSettings("fixed:2.6"), uniform[:1]),
        "adaptive:8.3, mask": (StorageSettings("adaptive:8.3", True), masked),
        "adaptive:8.3, protected mask": (StorageSettings("adaptive:8.3", True, True), masked),
    }
    measured = {}
    for name, (settings, faults) in runs.items():
        stored = StoredBase(model, sorted(base), settings)
        measured[name] = measure_faults(model, stored, faults, accuracy, seed=SEED, draws=DRAWS)
        for row in measured[name]:
            means = [values["accuracy"] for values in row["measures"]]
            print(f"{name:30} {row['setting']:22} {np.mean(means):.3f} {means}", flush=True)
    assert accuracy()["accuracy"] == plain
    figures = [figure("accuracy with weights as loaded", [plain])]
    figures += [
        figure(f"accuracy, {name}, faults {row['setting']}", [values["accuracy"] for values in row["measures"]])
        for name, table in measured.items()
        for row in table
    ]
    show(figures)
    write(
        "placement",
        "faulty_reads",
        {
            "setting": "all-MiniLM-L6-v2, 6 types of questions, 512 training rows, 150 test rows; simulated faults",
            "figures": figures,
            "runs": measured,
            "cpu_seconds": round(time.process_time() - started, 1),
            "levels_source": cell.levels_source,
        },
    )


if __name__ == "__main__":
    main()
