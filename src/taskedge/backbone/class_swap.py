"""A layer gets another class while the object stays, so that hooks, references and names stay valid."""

from __future__ import annotations

from torch import nn


def swap_class(module: nn.Module, mixin: type[nn.Module], prefix: str) -> None:
    """Put ``mixin`` in front of the class of ``module``; the new class is named ``prefix`` plus the old name."""
    module.__class__ = _swapped_class(mixin, type(module), prefix)


def restore_class(module: nn.Module) -> None:
    """Give ``module`` the class back that it had before the last :func:`swap_class`."""
    module.__class__ = type(module).__bases__[1]  # the first is the mixin


_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _swapped_class(mixin: type[nn.Module], base: type[nn.Module], prefix: str) -> type[nn.Module]:
    """Return one class per pair, so that layers of one class stay of one class."""
    key = mixin, base
    if key not in _CLASSES:
        _CLASSES[key] = type(f"{prefix}{base.__name__}", key, {"__module__": mixin.__module__})
    return _CLASSES[key]
