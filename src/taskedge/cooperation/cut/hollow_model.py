"""The device's half of a model: embedding, norms and head, with hollow blocks that the cloud computes.

The model is loaded from files without blocks (:mod:`taskedge.cooperation.cut.base_parts`) and gets blocks whose weights
have their shapes and no memory. So every name is that of the whole model, and entries, factors, checkpoints and the
delta are made by the code that makes them for ``tune``. The first block's forward pass is the cut; the others return
what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskedge.backbone.blocks import blocks
from taskedge.errors import InputError, TaskEdgeError

LAYERS, LAYER_TYPES = "taskedge_cut_layers", "taskedge_cut_layer_types"
"""Fields of the config of a base without blocks: their number and kinds in the whole model."""

Run = Callable[[Tensor, Tensor], Tensor]
"""(what enters the first block, mask) -> the last hidden states."""


class HollowModel:
    """A model whose blocks are computed elsewhere.

    Args:
        model: loaded from files without blocks; it is changed in place.
        dtypes: of the weights in the blocks of the whole model, by the name of the parameter without its block.
        stack: name of the stack of blocks in the cloud's model.

    Attributes:
        model: the model, with all names of the whole one.
        run: computes the blocks; set it before the model is used.
        returns_tuple: whether a block of this kind returns a tuple.

    Raises:
        InputError: the model was not loaded from such files.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, stack: str) -> None:
        self.model = model
        self.run: Run | None = None
        self.returns_tuple = False
        self._mask: Tensor | None = None
        config: Any = getattr(model, "config", None)
        layers = getattr(config, LAYERS, None)
        if layers is None:
            raise InputError(f"{type(model).__name__}: was not loaded from the files of a cut: join the cloud again")
        config.num_hidden_layers = layers
        if hasattr(config, LAYER_TYPES):
            config.layer_types = getattr(config, LAYER_TYPES)
        with torch.device("meta"):
            whole = type(model)(config)
        found = blocks(whole)
        path = found[0].name.rpartition(".")[0]
        self.prefix = path.removesuffix(stack)
        if len(found) != layers or not path.endswith(stack):
            raise InputError(
                f"{type(model).__name__} has {len(found)} blocks in {path}, and the cloud has {layers} in {stack}: "
                "both ends need one version of transformers"
            )
        hollow = whole.get_submodule(path)
        for module in hollow.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                stub = torch.zeros((), dtype=dtype).expand(parameter.shape)  # one number, whatever the shape
                setattr(module, name, nn.Parameter(stub, requires_grad=False))
        model.set_submodule(path, hollow)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        for index, block in enumerate(blocks(model)):
            block.module.forward = self._first if index == 0 else self._other  # type: ignore[method-assign]
        model.register_forward_pre_hook(self._take_mask, with_kwargs=True)

    def cloud_name(self, name: str) -> str:
        """Return the cloud's name of a linear in a block."""
        return name.removeprefix(self.prefix)

    def own_name(self, name: str) -> str:
        """Return the name here of one of the cloud's linears."""
        return f"{self.prefix}{name}"

    def set_base_values(self, values: Mapping[str, Tensor]) -> None:
        """Give the installed entries the values that the base has there, by the names here.

        Raises:
            TaskEdgeError: They are not the values of these entries.
        """
        from taskedge.forms.sparse import sparse_layers

        for name, layer in sparse_layers(self.model).items():
            base, given = layer.entries.base, values.get(name)
            if given is None or given.shape != base.shape or given.dtype != base.dtype:
                stated = None if given is None else f"{list(given.shape)} {given.dtype}"
                raise TaskEdgeError(f"{name}: base values {stated}, not {list(base.shape)} {base.dtype}")
            base.copy_(given)
            layer.entries.invalidate_written()

    def _take_mask(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def _first(self, *args: Any, **kwargs: Any) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if hidden.requires_grad:
            raise InputError("a parameter before the first block is trained, and the cut trains none there: leave it")
        mask = self._mask if self._mask is not None else torch.ones(hidden.shape[:2], dtype=torch.int64)
        assert self.run is not None
        return self._as_output(self.run(hidden, mask))

    def _other(self, *args: Any, **kwargs: Any) -> Any:
        return self._as_output(args[0] if args else kwargs["hidden_states"])

    def _as_output(self, states: Tensor) -> Any:
        return (states,) if self.returns_tuple else states
