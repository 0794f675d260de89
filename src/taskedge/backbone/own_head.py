"""The classification head in a base's files: kept if its classes are those of the task, else replaced.

An output of a head means a class, which only its name tells. A head whose names match the task's labels starts the
training, its outputs in the order of the labels. Any other head is made anew.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from taskedge.backbone.candidates import head_parameters

_PLACEHOLDER = re.compile(r"LABEL_\d+")
"""Names that transformers gives to classes without one."""
SHOWN_CLASSES = 6


def class_order(own: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Return the index in ``own`` of each label; None unless the names are the same set.

    Names are compared without case, surrounding blanks and Unicode form.
    """
    names, wanted = [_normalized(name) for name in own], [_normalized(label) for label in labels]
    if sorted(names) != sorted(wanted) or len(set(names)) < len(names):
        return None
    return [names.index(label) for label in wanted]


def start_head(
    model: Any, own: Sequence[str], labels: Sequence[str], new: Collection[str], mismatched: Collection[str]
) -> tuple[str, tuple[str, ...], str]:
    """Put the outputs of the base's own head into the order of the labels, or make them anew; in place.

    A new output layer comes from the model's initialization and the generator of torch.

    Args:
        model: the loaded model, whose config has the task's classes.
        own: the classes that the base's config names.
        labels: the classes of the task; empty for a regression.
        new: names of parameters that are not in the base's files.
        mismatched: those among them that the files have in another size.

    Returns:
        ``"base"`` if the own head is kept, ``"new"`` if it is replaced, or ``""`` if the files hold none; the names of
        parameters that were made anew here; a line for the user, empty if the files hold no head.
    """
    head = head_parameters(model)
    if any(name in mismatched for name in head):
        return "new", (), f"head: new; {_classes_text(own)}"
    if all(name in new for name in head):
        return "", (), ""
    outputs = output_parameters(model)
    if not outputs or any(name in new for name in outputs):
        return "", (), ""
    if not labels:
        return "base", (), "head: the base's own, of one output"
    order = class_order(own, labels)
    if order is None:
        _renew(model, outputs)
        return "new", tuple(outputs), f"head: new; {_classes_text(own)}"
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, dim in outputs.items():
            parameters[name].copy_(parameters[name].index_select(dim, torch.tensor(order)))
    return "base", (), f"head: the base's own, {len(labels)} classes matched by name"


def output_parameters(model: Any) -> dict[str, int]:
    """Return the parameters with one slice per class, each with the dimension of these slices.

    They are those whose shape changes with the number of classes, in a model on the meta device.
    """
    config = copy.deepcopy(model.config)
    num_classes = config.num_labels
    config.problem_type, config.num_labels = None, num_classes + 1
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        wider = dict(type(model)(config).named_parameters())
    outputs = {}
    for name, parameter in model.named_parameters():
        for dim, (size, other) in enumerate(zip(parameter.shape, wider[name].shape, strict=True)):
            if (size, other) == (num_classes, num_classes + 1):
                outputs[name] = dim
    return outputs


def _renew(model: Any, names: Collection[str]) -> None:
    """Initialize parameters as the model does for those that a file lacks."""
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    for name in names:
        module, _, leaf = name.rpartition(".")
        old = model.get_parameter(name)
        # a new tensor, since transformers marks those that it loaded, and does not initialize them
        renewed = nn.Parameter(torch.zeros_like(old), requires_grad=old.requires_grad)
        setattr(model.get_submodule(module), leaf, renewed)
    with torch.no_grad():
        for module in modules:
            model._init_weights(model.get_submodule(module))


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _classes_text(own: Sequence[str]) -> str:
    shown = ", ".join(map(repr, own[:SHOWN_CLASSES]))
    if len(own) > SHOWN_CLASSES:
        shown += f" and {len(own) - SHOWN_CLASSES} more"
    if all(_PLACEHOLDER.fullmatch(name) for name in own):
        return f"the base's own does not name its {len(own)} outputs ({shown})"
    return f"the base's own has other classes: {shown}"
