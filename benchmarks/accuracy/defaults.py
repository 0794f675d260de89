"""Which defaults are best at 0.1 %: one change at a time.

    python -m benchmarks.accuracy.defaults --task movie-reviews  # a variant takes some 30 CPU-seconds a seed
    python -m benchmarks.accuracy.defaults --show                # the table of all that is on file

Variants train with one entry per neuron, scaled steps, a rate of 3e-2 and batches of 32 (the default before this was
measured), but for what their name says, on the training rows of accuracy.py and in bfloat16 autocast. They are judged
on its validation rows and on up to 2,000 spare ones, never on test rows. One run appends one line to
results/defaults/TASK.jsonl; a sweep that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging, set_seed

import taskedge as te
from benchmarks.accuracy.sweep import ROWS, TASKS, append, machine
from benchmarks.record import results
from taskedge.backbone.candidates import head_parameters
from taskedge.demo import assets
from taskedge.forms.install import require_installation
from taskedge.selection.rules import rule
from taskedge.selection.statistics import INPUTS, LinearStatistics
from taskedge.training.data.text_data import collator, encode, predict
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

RESULTS = ("defaults/",)

FOLDER = results("accuracy") / "defaults"
SPARE = 2000


def mixed(weight: float, activation: float) -> str:
    """Registers ``|W|^weight · A^activation`` and returns its name."""
    name = f"W^{weight:g} A^{activation:g}"

    @rule(name, needs=(INPUTS,))
    def score(w: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
        """A mixed score."""
        return w.float().abs() ** weight * statistics.input_norm**activation

    return name


@rule("taskedge, drawn", needs=(INPUTS,))
def drawn(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """Drawn in proportion to ``|W|·A`` and not its largest (the Gumbel trick): more columns."""
    drawn = torch.rand(weight.shape, generator=generator).to(weight.device)
    noise = -(-drawn.clamp_min(1e-20).log()).log()
    return (weight.float().abs() * statistics.input_norm).clamp_min(1e-20).log() + noise


@rule("taskedge, capped", needs=(INPUTS,))
def capped(weight: Tensor, statistics: LinearStatistics, generator: torch.Generator) -> Tensor:
    """``|W|·A`` where at most a 16th of the rows may have any one column as their best: rows beyond are sent on."""
    score = weight.float().abs() * statistics.input_norm
    most = max(len(score) // 16, 1)
    taken: dict[int, int] = defaultdict(int)
    order = score.max(1).values.argsort(descending=True)
    ranked = score.argsort(1, descending=True)
    for row in order.tolist():
        for column in ranked[row].tolist():
            if taken[column] < most:
                taken[column] += 1
                score[row, column] = torch.inf
                break
    return score


@dataclass(frozen=True)
class Variant:
    """What differs from the default."""

    select: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    step: str = "activation"
    whole: Sequence[str] = ()
    """Patterns of parameters that train whole beside the head."""
    tweak: Callable[[nn.Module], None] | None = None


def power(exponent: float) -> Callable[[nn.Module], None]:
    """Steps scaled by the inverse input norm to this power."""

    def tweak(model: nn.Module) -> None:
        for module in model.modules():
            if getattr(module, "step", None) is not None and hasattr(module, "offsets"):
                module.step.pow_(exponent)  # type: ignore[operator, union-attr]

    return tweak


ATTENTION, FEED_FORWARD = ["*.attention.*"], ["*.intermediate.dense", "*.layer.?.output.dense"]
VARIANTS: dict[str, Variant] = {
    "default": Variant(),
    "random": Variant({"rule": "random"}),
    "magnitude": Variant({"rule": "magnitude"}),
    "head rate 1e-3": Variant(fit={"head_lr": 1e-3}),
    "head rate 3e-3": Variant(fit={"head_lr": 3e-3}),
    "head rate 1e-2": Variant(fit={"head_lr": 1e-2}),
    "biases too": Variant(whole=["bert.encoder.*.bias"], fit={"head_lr": 3e-3}),
    "no clipping": Variant(fit={"clip": 0.0}),
    "warmup 0.2": Variant(fit={"warmup": 0.2}),
    "batches of 16": Variant(fit={"batch_size": 16}),
    "batches of 16, 2e-2": Variant(fit={"batch_size": 16, "lr": 2e-2}),
    "rate 2e-2": Variant(fit={"lr": 2e-2}),
    "rate 5e-2": Variant(fit={"lr": 5e-2}),
    "half-scaled step": Variant(tweak=power(0.5)),
    "drawn": Variant({"rule": "taskedge, drawn"}),
    "capped columns": Variant({"rule": "taskedge, capped"}),
    "W^1 A^0.5": Variant({"rule": mixed(1, 0.5)}),
    "W^0.5 A^1": Variant({"rule": mixed(0.5, 1)}),
    "W^1 A^2": Variant({"rule": mixed(1, 2)}),
    "attention alone": Variant({"linears": ATTENTION, "budget": "0.0913%"}),
    "feed-forward alone": Variant({"linears": FEED_FORWARD, "budget": "0.0913%"}),
    "per layer": Variant({"allocation": "per_layer"}),
    "global": Variant({"allocation": "global"}),
    "32 columns": Variant({"max_columns": 32}),
    "16 columns": Variant({"max_columns": 16}),
    "random, 64 columns": Variant({"rule": "random", "max_columns": 64}),
}


class Bench:
    """All runs of one task."""

    def __init__(self, task: str, device: str = "cpu") -> None:
        self.device = device
        self.task, self.settings, folder = task, TASKS[task], assets.minilm(print)
        parts = replace(self.settings, spare=SPARE).parts()
        labels = sorted({label for rows in parts.values() for _, label in rows})
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.collate = collator(tokenizer)

        def rows(*names: str) -> list[dict[str, Any]]:
            chosen = [row for name in names for row in parts[name]]
            texts, truth = [text for text, _ in chosen], [labels.index(label) for _, label in chosen]
            return encode(tokenizer, texts, truth, self.settings.longest)

        self.train, self.judge = rows("train"), rows("validation", "spare")
        self.base = lambda: AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
        self.path = FOLDER / f"{task}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def run(self, name: str, seed: int) -> None:
        """One run, unless it is on file."""
        done, about = map(json.loads, self.path.read_text().splitlines()), machine(self.device)
        if any((run["variant"], run["seed"], where(run)) == (name, seed, where({"machine": about})) for run in done):
            return
        variant = VARIANTS[name]
        set_seed(seed)
        model = self.base().to(self.device)
        batches = [self.collate(self.train[start : start + ROWS]) for start in range(0, 8 * ROWS, ROWS)]
        budget = {} if "budget" in variant.select else {"per_neuron": 1}
        support = te.select(model, batches, seed=seed, **budget, **variant.select)
        head = head_parameters(model)
        te.install(model, support, step=variant.step, trainable=[*head, *variant.whole])
        if variant.tweak is not None:
            variant.tweak(model)
        default = TrainerConfig(epochs=self.settings.epochs, lr=3e-2, batch_size=ROWS, seed=seed, bf16=True)
        settings = replace(default, **variant.fit)
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            whole = require_installation(model).full_parameters
            train(model, self.train, self.collate, settings, Path(folder), progress=False, head=whole)
        seconds = time.process_time() - started
        with torch.autocast(self.device, torch.bfloat16):
            found = predict(model, self.judge, self.collate).classes
        accuracy = float((found == [row["labels"] for row in self.judge]).mean())
        columns = [len(linear.distinct_columns) for linear in support.linears.values()]
        append(self.path, {
            "task": self.task, "variant": name, "seed": seed, "accuracy": accuracy, "rows": len(self.judge),
            "entries": support.num_entries, "columns_mean": mean(columns), "cpu_seconds": round(seconds, 1),
            "machine": about,
        })  # fmt: skip
        print(f"{name:24} seed {seed}: {accuracy:.4f}, {seconds:.0f} s", flush=True)


def where(run: Mapping[str, Any]) -> str:
    """What computed it: no run is paired with one of another kind of processor."""
    return str(run["machine"].get("accelerator", "CPU"))


def show() -> None:
    """Accuracy of every variant, and its mean paired difference from the default over tasks, seeds and processors."""
    found: dict[str, dict[tuple[str, int, str], float]] = defaultdict(dict)
    for path in sorted(FOLDER.glob("*.jsonl")):
        for run in map(json.loads, path.read_text().splitlines()):
            found[run["variant"]][run["task"], run["seed"], where(run)] = run["accuracy"]
    for name, runs in found.items():
        both = runs.keys() & found["default"].keys()
        differences = [runs[key] - found["default"][key] for key in both] or [float("nan")]
        error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        by_task: dict[str, list[float]] = defaultdict(list)
        for (task, _, _), accuracy in runs.items():
            by_task[task].append(accuracy)
        tasks = "  ".join(f"{task} {mean(values):.3f}" for task, values in sorted(by_task.items()))
        print(f"{name:24} {mean(differences):+.4f} ± {error:.4f} ({len(both)} pairs)  {tasks}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--device", default="cpu", help="a torch device, such as cuda")
    parser.add_argument("--show", action="store_true", help="print what is on file")
    arguments = parser.parse_args()
    if arguments.show:
        show()
    if arguments.task:
        torch.set_num_threads(1)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        bench = Bench(arguments.task, arguments.device)
        for seed in arguments.seeds:
            for variant in arguments.variants:
                bench.run(variant, seed)


if __name__ == "__main__":
    main()
