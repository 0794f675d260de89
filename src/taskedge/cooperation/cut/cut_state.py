"""The modules of a device over the cut, as the cloud chose them: kept in the run's folder for a run that is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.cut.hollow_model import HollowModel
from taskedge.cooperation.protocol.bounds import short_text
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.payloads import decode_support
from taskedge.errors import InputError
from taskedge.io.container import ContainerKind
from taskedge.selection.support import LayerSupport, Support, support_content, support_from_content

CHOSEN = ContainerKind(
    name="file of chosen modules",
    key="chosen",
    error=InputError,
    format="taskedge-cut/1",
    remedy="start the run anew with --force",
)
CHOSEN_FILE = "chosen.safetensors"
_BASE = "base/"


@dataclass(frozen=True)
class ChosenModules:
    """The modules of a device.

    Attributes:
        support: entries or low-rank products, by the names of the device's model.
        shared: the first linear that reads the same input, by linear.
        base_values: the base's values at the entries, by linear.
        digests: of the whole weights, of linears with a product.
    """

    support: Support
    shared: Mapping[str, str]
    base_values: Mapping[str, Tensor]
    digests: Mapping[str, str]


def read_support_message(message: Message, hollow: HollowModel, *, rank: int) -> ChosenModules:
    """Return the modules in the cloud's answer, by the names here.

    Raises:
        CutRefused: They are no modules of this model.
    """
    own = hollow.own_name
    shapes = {name: list(parameter.shape) for name, parameter in hollow.model.named_parameters()}
    if "digests" in message.header:
        digests, shared = message.header["digests"], message.header.get("shared")
        if not isinstance(digests, dict) or not isinstance(shared, dict) or set(shared) != set(digests):
            raise CutRefused("low-rank modules without digests, or without their inputs")
        for name in digests:
            if f"{own(name)}.weight" not in shapes:
                raise CutRefused(f"a low-rank module {short_text(name)}, which this model does not have")
        sizes = [sum(shapes[f"{own(name)}.weight"]) for name in digests]
        support = Support(
            linears={},
            model_parameters=hollow.num_parameters,
            rule="lora",
            allocation="all",
            budget=f"rank {rank}",
            low_rank={own(name): rank for name in digests},
            num_low_rank_parameters=rank * sum(sizes),
        )
        return ChosenModules(
            support,
            {own(name): own(str(first)) for name, first in shared.items()},
            {},
            {own(name): str(digest) for name, digest in digests.items()},
        )
    support = decode_support(message.header.get("support") or {}, message.tensors)
    linears: dict[str, LayerSupport] = {}
    for name, linear in support.linears.items():
        linears[own(name)] = replace(linear, shared_input=own(linear.shared_input))
    base_values = {
        own(key.removeprefix(_BASE)): value for key, value in message.tensors.items() if key.startswith(_BASE)
    }
    if set(base_values) != set(linears):
        raise CutRefused("a support without the base's values at its entries")
    return ChosenModules(
        replace(support, linears=linears, model_parameters=hollow.num_parameters),
        {name: linear.shared_input for name, linear in linears.items()},
        base_values,
        {},
    )


def write_chosen(chosen: ChosenModules, folder: Path) -> None:
    """Keep the modules in the run's folder."""
    header, tensors = support_content(chosen.support)
    tensors |= {f"{_BASE}{name}": value for name, value in chosen.base_values.items()}
    fields = {"support": header, "shared": dict(chosen.shared), "digests": dict(chosen.digests)}
    own = {name: tensor.clone() for name, tensor in tensors.items()}  # linears of one input share its norms
    CHOSEN.write(folder / CHOSEN_FILE, fields, own)


def read_chosen(folder: Path) -> ChosenModules:
    """Return the modules that :func:`write_chosen` kept.

    Raises:
        InputError: The file is missing or damaged.
    """
    container = CHOSEN.read(folder / CHOSEN_FILE)
    values = {key.removeprefix(_BASE): tensor for key, tensor in container.tensors.items() if key.startswith(_BASE)}
    tensors = {key: tensor for key, tensor in container.tensors.items() if not key.startswith(_BASE)}
    support = support_from_content(container.header["support"], tensors)
    return ChosenModules(support, container.header["shared"], values, container.header["digests"])
