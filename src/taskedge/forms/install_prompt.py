"""``install_prompt``: train the soft prompt that is attached to a model, and freeze the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.install import Installation, full_parameter_names, installation, set_installation
from taskedge.forms.master_weights import add_master_weights
from taskedge.forms.norms import fix_statistics
from taskedge.forms.prompt import attached_prompt
from taskedge.selection.support import Support

Model = TypeVar("Model", bound=nn.Module)


def prompt_support(model: nn.Module) -> Support:
    """Return a support that selects no weight, for a model that trains its soft prompt."""
    prompt = attached_prompt(model)
    own = 0 if prompt is None else sum(parameter.numel() for parameter in prompt.parameters())
    return Support(
        linears={},
        model_parameters=sum(parameter.numel() for parameter in model.parameters()) - own,
        rule="prompt",
        allocation="inputs",
        budget=f"{own} numbers",
        settings={},
    )


def install_prompt(model: Model, support: Support, *, trainable: Sequence[str] | None = None) -> Model:
    """Let the attached soft prompt of a model train, and freeze all else but what ``trainable`` names.

    ``taskedge.extract`` returns what it learns. It cannot be fused: remove it
    (:func:`taskedge.forms.prompt.remove_prompt`), then call ``taskedge.fuse``.

    Args:
        model: has a soft prompt (:func:`taskedge.forms.prompt.attach_prompt`).
        support: from :func:`prompt_support`.
        trainable: names or patterns of parameters that train in full; None: the model's head.

    Raises:
        InputError: the model has no soft prompt, or one without numbers to train, or trains already.
    """
    if installation(model) is not None:
        raise InputError("the model already trains a support: fuse it before another is installed")
    prompt = attached_prompt(model)
    if prompt is None:
        raise InputError("the model has no soft prompt to train: attach one first")
    if not sum(parameter.numel() for parameter in prompt.parameters()):
        raise InputError("no soft tokens and no segments: give --prompt-tokens above 0, or --prompt-segments")
    full = full_parameter_names(model, support, linears(model), trainable)
    required_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    model.requires_grad_(False)
    fix_statistics(model)
    add_master_weights(model, full)
    trained: dict[str, Any] = dict(model.named_parameters())
    for name in full:
        trained[name].requires_grad_(True)
    prompt.requires_grad_(True)
    set_installation(model, Installation(support, tuple(full), required_grad, "plain", "prompt"))
    return model
