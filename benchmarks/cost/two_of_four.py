"""An unmerged 2:4 delta on sparse tensor cores: what its product costs beside the base's, and beside a dense one.

    python -m benchmarks.cost.two_of_four  # an NVIDIA GPU of compute capability 8.0 or later; a minute

bfloat16, no gradients. The base alone (which is also what a merged delta costs), the base with a dense delta beside it,
and with a 2:4 delta through torch's semi-structured tensors: `taskedge.forms.semi_structured.beside`. GPU time by CUDA
events around 20 products, interleaved, the median of the rounds.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import taskedge as te
from benchmarks.record import figure, machine, write
from taskedge.forms.semi_structured import beside, has_sparse_tensor_cores

RESULTS = ("two_of_four.json",)

SHAPES = {
    "MiniLM": (1536, 384),
    "SmolLM2": (1536, 576),
    "7B, attention": (4096, 4096),
    "7B, feed-forward": (11008, 4096),
}
"""Outputs and inputs of a linear."""
TOKENS = (32, 512, 4096)
PRODUCTS = 20
DEVICE = torch.device("cuda")


def seconds(product: Callable[[], object]) -> float:
    """GPU seconds of one product."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(PRODUCTS):
        product()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / PRODUCTS


def measured(out: int, width: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Figures of one shape: microseconds, and ratios to the base of the same round."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, out, bias=False)).to(DEVICE, torch.bfloat16).requires_grad_(False)
    base = nn.Sequential(nn.Linear(width, out, bias=False)).to(DEVICE, torch.bfloat16).requires_grad_(False)
    base.load_state_dict(model.state_dict())
    te.install(model, te.select(model, rule="magnitude", allocation="2:4"), trainable=[])
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.01)
    delta = te.extract(model)
    te.fuse(model)
    plain = nn.Sequential(nn.Linear(width, out, bias=False)).to(DEVICE, torch.bfloat16)
    plain.load_state_dict(base.state_dict())
    dense = (model[0].weight.double() - base[0].weight.double()).to(torch.bfloat16)
    x = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16)
    found: dict[str, list[float]] = {"base": [], "base and dense delta": [], "base and 2:4 delta": []}
    with torch.inference_mode(), beside(base, delta.linears):
        ways: dict[str, Callable[[], object]] = {
            "base": lambda: plain(x),
            "base and dense delta": lambda: plain(x) + F.linear(x, dense),
            "base and 2:4 delta": lambda: base(x),
        }
        for way in ways.values():
            seconds(way)
        order = list(ways)
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                found[name].append(seconds(ways[name]))
    what = {"out": out, "in": width, "tokens": tokens}
    figures = [figure(name, [s * 1e6 for s in values], unit="us") | what for name, values in found.items()]
    for name in ("base and dense delta", "base and 2:4 delta"):
        ratios = [one / plain for one, plain in zip(found[name], found["base"], strict=True)]
        figures.append(figure(f"{name} / base", ratios) | what)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    if not (torch.cuda.is_available() and has_sparse_tensor_cores(DEVICE)):
        raise SystemExit("there is no GPU with sparse tensor cores here: nothing was measured")
    figures = []
    for name, (out, width) in SHAPES.items():
        for tokens in TOKENS:
            for line in measured(out, width, tokens, rounds):
                figures.append({"model": name} | line)
                print(f"{name:18} {tokens:5} tokens  {line['what']:28} {line['median']:9.3f} {line['unit']}")
    write("cost", "two_of_four", {"accelerator": machine("cuda")["accelerator"], "figures": figures})


if __name__ == "__main__":
    main()
