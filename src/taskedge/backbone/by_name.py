"""Modules and parameters of a model by name, in one short walk or none.

``named_modules`` and ``named_parameters`` walk a model once each. One such walk takes as long as an apply of a small
delta.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def modules_and_parameters(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Parameter]]:
    """Return ``dict(model.named_modules())`` and ``dict(model.named_parameters())``."""
    modules: dict[str, nn.Module] = {}
    parameters: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        modules[name] = module
        prefix = f"{name}." if name else ""
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                parameters[prefix + leaf] = parameter
        parts = [(prefix + leaf, part) for leaf, part in module._modules.items() if part is not None]
        waiting.extend(reversed(parts))  # the first part is the next one
    return modules, parameters


def modules_named(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return those of the modules that exist, without a walk; every name of a shared module counts."""
    found: dict[str, nn.Module | None] = {"": model}

    def find(name: str) -> nn.Module | None:
        if name not in found:
            path, _, leaf = name.rpartition(".")
            parent = find(path)
            found[name] = None if parent is None else parent._modules.get(leaf)
        return found[name]

    return {name: module for name in names if (module := find(name)) is not None}
