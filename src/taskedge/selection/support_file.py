"""A support on disk, so that a run which was interrupted goes on with the very same entries."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import torch

from taskedge.errors import InputError
from taskedge.io.atomic import write_aside
from taskedge.selection.support import LinearSupport, Support


def save_support(support: Support, path: Path) -> None:
    """Writes the support as one safetensors file, whole or not at all."""
    from safetensors.torch import save

    tensors = {}
    for name, linear in support.linears.items():
        tensors[f"flat/{name}"] = linear.flat.contiguous()
        if linear.input_rms is not None:
            tensors[f"rms/{name}"] = linear.input_rms.contiguous()
    about = {field.name: getattr(support, field.name) for field in fields(support) if field.name != "linears"}
    shapes = {name: [*linear.shape, linear.reads] for name, linear in support.linears.items()}
    write_aside(path, save(tensors, {"support": json.dumps({"about": about, "shapes": shapes})}))


def load_support(path: Path) -> Support:
    """Reads a support.

    Raises:
        InputError: the file is missing, damaged, or holds no sound support.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads(file.metadata()["support"])
            names = set(file.keys())
            linears = {
                name: LinearSupport.from_flat(
                    (out, inputs),
                    file.get_tensor(f"flat/{name}").to(torch.int64),
                    reads,
                    file.get_tensor(f"rms/{name}") if f"rms/{name}" in names else None,
                )
                for name, (out, inputs, reads) in stored["shapes"].items()
            }
        about = stored["about"]
        return Support(linears=linears, **about | {"whole": tuple(about.get("whole", ()))})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a whole support ({error}): start the run anew with --force") from None
