"""Accuracy over cost of networks whose tasks share features by gates (InterroGate's form), on handwritten digits.

    python -m benchmarks.accuracy.feature_gates  # under two CPU-minutes

Three tasks on the 8 x 8 digits of scikit-learn: parity, at least five, which digit. A trunk of three linears
(64-64-64-64) and a head for each task. First one network for each task is trained alone; from these the gated networks
start. Costs are those of the cut networks, in networks. Delta is the mean over the tasks of the relative change of
accuracy against the networks trained alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.record import figure, show, write
from taskedge.training.many.feature_cut import CutFeatures
from taskedge.training.many.feature_gates import FeatureGates
from taskedge.training.many.train_features import train_features

RESULTS = ("feature_gates.json",)

SEEDS = range(5)
TARGETS = (1.0, 1.25, 1.5, 2.0, None)
WIDTH, STEPS, ROWS, LR = 64, 400, 64, 3e-3
CLASSES = (2, 2, 10)
Task = Sequence[Tensor]


def data(seed: int) -> tuple[Tensor, Task, Tensor, Task]:
    """Training and test rows with the answers of each task; half of the rows each."""
    digits = load_digits()
    x, digit = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, digit = x[order], digit[order]
    answers = [digit % 2, (digit >= 5).long(), digit]
    half = len(x) // 2
    return x[:half], [each[:half] for each in answers], x[half:], [each[half:] for each in answers]


def batches(x: Tensor, answers: Task, seed: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
    draw = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(x), (ROWS,), generator=draw)
        yield x[rows], [each[rows] for each in answers]


def trunk() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(64 if not layers else WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers)


def alone(task: int, x: Tensor, answers: Task, seed: int) -> tuple[nn.Module, nn.Module]:
    """A trunk and a head that were trained for one task."""
    torch.manual_seed(10 * seed)  # the same start for all tasks, whose features then correspond
    body = trunk()
    torch.manual_seed(10 * seed + task + 1)
    head = nn.Linear(WIDTH, CLASSES[task])
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=LR, weight_decay=0.0)
    for _, (rows, of_all) in zip(range(STEPS), batches(x, answers, seed), strict=False):
        optimizer.zero_grad()
        cross_entropy(head(body(rows)), of_all[task]).backward()
        optimizer.step()
    return body, head


def accuracy(outputs: Tensor, answers: Tensor) -> float:
    return 100 * float((outputs.argmax(1) == answers).float().mean())


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, list[list[float]]] = {}
    costs: dict[str, list[float]] = {}
    deltas: dict[str, list[float]] = {}
    differs = 0.0
    for seed in SEEDS:
        x, answers, test_x, test = data(seed)
        single = [alone(task, x, answers, seed) for task in range(3)]
        with torch.no_grad():
            apart = [accuracy(head(body(test_x)), test[task]) for task, (body, head) in enumerate(single)]
        found.setdefault("networks apart", []).append(apart)
        for target in TARGETS:
            torch.manual_seed(10 * seed)
            heads = [nn.Linear(WIDTH, classes) for classes in CLASSES]
            model = FeatureGates(trunk(), heads)
            for task, (body, head) in enumerate(single):
                model.start_from(task, body)
                model.heads[task].load_state_dict(head.state_dict())
            train_features(
                model, batches(x, answers, seed + 100), [cross_entropy] * 3, steps=STEPS, lr=LR, target=target,
                flops_weight=3.0,
            )  # fmt: skip
            cut = CutFeatures(model, residual=False)
            name = "no target" if target is None else f"target {target:g}x"
            with torch.no_grad():
                whole, outputs = model(test_x), cut(test_x)
            differs = max(differs, *(float((a - b).abs().max()) for a, b in zip(whole, outputs, strict=True)))
            now = [accuracy(each, answer) for each, answer in zip(outputs, test, strict=True)]
            found.setdefault(name, []).append(now)
            costs.setdefault(name, []).append(cut.cost)
            deltas.setdefault(name, []).append(
                statistics.mean(100 * (b - a) / a for a, b in zip(apart, now, strict=True))
            )
    figures = [figure(f"mean accuracy, {name}", [statistics.mean(of) for of in runs], unit="%")
               for name, runs in found.items()]  # fmt: skip
    figures += [figure(f"cost of the cut networks, {name}", of, unit="nets") for name, of in costs.items()]
    figures += [figure(f"delta, {name}", of, unit="%") for name, of in deltas.items()]
    figures.append(figure("largest difference of cut and uncut answers", [differs], bar=1e-4))
    show(figures)
    setting = (
        f"handwritten digits of scikit-learn, half of the rows to train; parity, at least five, which digit; "
        f"64-{WIDTH}-{WIDTH}-{WIDTH} with a head for each task, {STEPS} steps of {ROWS} rows, one thread"
    )
    write("accuracy", "feature_gates", {"setting": setting, "figures": figures})


if __name__ == "__main__":
    main()
