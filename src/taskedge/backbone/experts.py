"""Fused experts: the linears of a mixture of experts that a model stores as one 3-D parameter for each projection.

transformers keeps ``gate_up_proj`` and ``down_proj`` of all experts as [experts, out, in] or [experts, in, out], and
multiplies by slices of them. Here each slice is an :class:`ExpertLinear`: a module with the name
``EXPERTS.<expert>.<projection>`` whose weight is a view of the slice, so hooks, statistics and trained entries work as
on any other linear. The model itself runs these modules only inside :func:`exposed` (:func:`expose`): it then runs the
``eager`` implementation of its class, which is one product for each expert on the tokens routed there. The fused
implementations (``grouped_mm``, ``batched_mm``) are never used there, since no single expert runs in them.

Llama 4 multiplies all experts at once (``torch.bmm``), each by a copy of all tokens in which tokens that are not routed
to it are zeros. Here the zeros are left out. JetMoE and DBRX store experts in other forms, and have no linears here.

Source: this project, on ``transformers.integrations.moe``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.class_swap import restore_class, swap_class
from taskedge.errors import InputError

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
"""Names of the 3-D parameters of transformers' experts."""

BATCHED = frozenset({"Llama4TextExperts"})
"""Classes whose forward pass reads [experts · tokens, in] and multiplies by the whole parameter, [experts, in, out]."""

_LINEARS, _ROUTING, _RUNNING = "_taskedge_linears", "_taskedge_routing", "_taskedge_running"


class ExpertLinear(nn.Module):
    """One projection of one expert, as a linear without a bias; it has no parameters of its own.

    Args:
        experts: the module with the 3-D parameters.
        projection: name of the parameter.
        expert: index of the slice.
    """

    def __init__(self, experts: nn.Module, projection: str, expert: int) -> None:
        super().__init__()
        self.__dict__["experts"] = experts  # not a submodule: it is the parent
        self.__dict__["_view"] = None
        self.projection, self.expert = projection, expert

    @property
    def transposed(self) -> bool:
        """Whether the slice is [in, out]."""
        experts = self.__dict__["experts"]
        return _is_batched(experts) or bool(experts.is_transposed)

    @property
    def stack(self) -> nn.Parameter:
        """The 3-D parameter of all experts."""
        return cast(nn.Parameter, self.__dict__["experts"]._parameters[self.projection])

    def stored_weight(self) -> Tensor:
        """Return the slice as a leaf tensor that shares the memory of the parameter; the same one while that stays."""
        view, current = self.__dict__["_view"], self.stack.data[self.expert]
        if (
            view is None
            or view.data_ptr() != current.data_ptr()
            or (view.dtype, view.device, view.shape) != (current.dtype, current.device, current.shape)
        ):
            view = self.__dict__["_view"] = current
        return cast(Tensor, view)

    @property
    def weight(self) -> Tensor:
        """The slice, as the parameter stores it."""
        return self.stored_weight()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the tokens [n, in] that are routed to the expert."""
        weight = self.weight
        return x @ weight if self.transposed else F.linear(x, weight)

    def unsupported_reason(self) -> str | None:
        """Return why the linear cannot carry entries, or None if it can."""
        if getattr(self.__dict__["experts"], "_is_expert_parallel", False):
            return "its experts are spread over several devices"
        return None

    def routed_tokens(self) -> tuple[Tensor, int] | None:
        """Return the positions int64 [n] of the tokens that the expert reads now, and how many tokens there are.

        None if the experts do not run, or are not exposed.
        """
        routing = self.__dict__["experts"].__dict__.get(_ROUTING)
        if routing is None:
            return None
        return torch.where(routing.t() == self.expert)[1], len(routing)  # the order of the eager implementation


def _other_use(func: Any) -> InputError:
    return InputError(
        f"the experts' code uses a weight in another way than as a product ({getattr(func, '__name__', func)}): "
        "name the other linears to choose from"
    )


def _routed_product(linear: ExpertLinear, x: Tensor) -> Tensor:
    """Return the product [tokens, out] of one expert; tokens [tokens, in] that are not routed to it are zeros."""
    routed = linear.routed_tokens()
    assert routed is not None
    out = x.new_zeros(len(x), linear.stack.shape[2])
    return out.index_copy(0, routed[0], linear(x[routed[0]])) if len(routed[0]) else out


class _Product:
    """The slice of one expert as the model's code meets it: a product with it runs the expert's linear."""

    def __init__(self, linear: ExpertLinear) -> None:
        self.linear = linear

    def float(self) -> _Product:
        return self  # OpenAI's privacy filter asks for it; the product is in fp32 if the tokens and the weight are

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Tensor:
        left, right = (*args, None, None)[:2]
        if isinstance(left, Tensor) and isinstance(right, cls) and len(args) == 2 and not kwargs:
            plain = func is F.linear
            matmul = func in (torch.matmul, Tensor.matmul, Tensor.__matmul__)
            if matmul if right.linear.transposed else plain:
                return cast(Tensor, right.linear(left))
        raise _other_use(func)


class _Stack:
    """A 3-D parameter as the model's code meets it: its slices are products, and so is the whole in ``torch.bmm``."""

    def __init__(self, linears: list[ExpertLinear]) -> None:
        self._linears = linears
        self.shape = linears[0].stack.shape

    def __getitem__(self, expert: Any) -> _Product:
        return _Product(self._linears[int(expert)])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Tensor:
        left, right = (*args, None, None)[:2]
        if func is torch.bmm and isinstance(left, Tensor) and isinstance(right, cls) and len(args) == 2 and not kwargs:
            return torch.stack([_routed_product(*pair) for pair in zip(right._linears, left, strict=True)])
        raise _other_use(func)


class PerExpert(nn.Module):
    """Fused experts while each expert's linears run by themselves; the object stays, its class is swapped."""

    keeps_forward = True

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name not in PROJECTIONS or not isinstance(value, nn.Parameter):
            return value
        linears = expert_linears(self)[name]
        if not self.__dict__.get(_RUNNING):
            _sync(linears)
            return value
        if value.requires_grad and torch.is_grad_enabled():  # all of it trains
            return value
        return _Stack(linears)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the eager implementation of the class below, with the linears of this module."""
        plain = cast(Any, type(self).__mro__[2]).forward
        eager = getattr(plain, "__wrapped__", plain)
        values = (*args, *kwargs.values())
        self.__dict__[_ROUTING] = _routing_of_zeros(self, values[0]) if _is_batched(self) else _routing(values)
        self.__dict__[_RUNNING] = True
        try:
            return eager(self, *args, **kwargs)
        finally:
            del self.__dict__[_RUNNING], self.__dict__[_ROUTING]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for linears in expert_linears(self).values():
            _sync(linears)
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]


def expert_linears(module: nn.Module) -> dict[str, list[ExpertLinear]]:
    """Return the linears of fused experts by projection, in the order of the experts; empty for any other module.

    Recognized by the attributes that ``use_experts_implementation`` of transformers gives a class, or as one of
    ``BATCHED``. The same objects are returned at each call.
    """
    has_eager = hasattr(module, "is_transposed") and hasattr(module, "has_gate") and _has_eager_forward(module)
    if not (has_eager or _is_batched(module)):
        return {}
    stacks = {
        name: parameter
        for name in PROJECTIONS
        if (parameter := module._parameters.get(name)) is not None and parameter.dim() == 3
    }
    known: dict[str, list[ExpertLinear]] = module.__dict__.setdefault(_LINEARS, {})
    for name, parameter in stacks.items():
        if len(known.get(name, ())) != len(parameter):
            known[name] = [ExpertLinear(module, name, expert) for expert in range(len(parameter))]
    return {name: known[name] for name in stacks}


def named_experts(prefix: str, module: nn.Module) -> Iterator[tuple[str, ExpertLinear]]:
    """Yield the linears of fused experts that are not exposed, by name, expert by expert; nothing for other modules."""
    if isinstance(module, PerExpert):
        return  # they are among the modules of the model
    start = f"{prefix}." if prefix else ""
    for together in zip(*expert_linears(module).values(), strict=True):
        for linear in together:
            yield f"{start}{linear.expert}.{linear.projection}", linear


def expose(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Make the experts that some of these modules belong to run their linears, as submodules of the experts.

    Returns:
        The experts that were changed here, for :func:`unexpose`.
    """
    changed: list[nn.Module] = []
    for module in modules:
        if not isinstance(module, ExpertLinear):
            continue
        experts = module.__dict__["experts"]
        if isinstance(experts, PerExpert):
            continue
        for linears in expert_linears(experts).values():
            for linear in linears:
                container = experts._modules.setdefault(str(linear.expert), nn.Module())
                container._modules[linear.projection] = linear
        swap_class(experts, PerExpert, "PerExpert")
        changed.append(experts)
    return changed


def unexpose(experts: Iterable[nn.Module]) -> None:
    """Undo :func:`expose`."""
    for module in experts:
        restore_class(module)
        for linears in expert_linears(module).values():
            for linear in linears:
                module._modules.pop(str(linear.expert), None)


@contextmanager
def exposed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Expose the experts of these modules inside the block (:func:`expose`)."""
    changed = expose(modules)
    try:
        yield
    finally:
        unexpose(changed)


def exposed_experts(model: nn.Module) -> list[nn.Module]:
    """Return the experts of a model that are exposed."""
    return [module for module in model.modules() if isinstance(module, PerExpert)]


def _has_eager_forward(module: nn.Module) -> bool:
    return hasattr(type(module).forward, "__wrapped__") or isinstance(module, PerExpert)


def _is_batched(module: nn.Module) -> bool:
    return any(base.__name__ in BATCHED for base in type(module).__mro__)


def _routing_of_zeros(experts: nn.Module, x: Tensor) -> Tensor:
    """Return the experts of each token, int64 [tokens, experts], -1 for those whose copy of the token is zeros."""
    count = len(cast(nn.Parameter, experts._parameters[PROJECTIONS[0]]))
    is_routed = x.detach().view(count, -1, x.shape[-1]).ne(0).any(-1)
    return torch.where(is_routed, torch.arange(count, device=x.device)[:, None], -1).t()


def _routing(values: Iterable[Any]) -> Tensor | None:
    """Return the experts of each token, int64 [tokens, chosen], among the arguments of a forward pass."""
    for value in values:
        if isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point():
            return value
    return None


def _sync(linears: Iterable[ExpertLinear]) -> None:
    """Write trained values into the parameter: reading the weight of a linear that trains does so."""
    for linear in linears:
        _ = linear.weight
