"""The loss of a language model from the logits of its labeled positions only.

The loss of transformers computes logits of every position, in fp32, and as much again in the backward pass: with a
vocabulary of 262,144 words that is 1 MiB a token each time. Prompts and padding have no label, so most of it is for
nothing. :func:`use_label_loss` gives a model a forward pass that skips them. The value is the same: labels of a causal
model are shifted by one position, those of an encoder-decoder are not; -100 is ignored, and the sum is divided by
``num_items_in_batch`` or the number of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.evaluation import evaluation_mode
from taskedge.backbone.linear_cross_entropy import LogitMap, head_bytes, linear_cross_entropy, module_cross_entropy

IGNORED_LABEL = -100
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
"""Largest relative difference from the model's own loss; 1e-2 in dtypes of lower precision."""


class LabelLossModel(nn.Module):
    """A language model whose output has no logits if it has a loss: they are never computed as a whole.

    Attributes:
        logit_map: what the model does to the outputs of its head; None if that is neither a scale nor a soft cap, and
            the model does it itself.
    """

    logit_map: LogitMap | None


def use_label_loss(model: nn.Module, log: Callable[[str], object] = lambda _: None) -> bool:
    """Give a language model of transformers the loss from labeled positions only; return whether it has.

    The model's class is replaced by a subclass of the same name. A model keeps its own loss, with a line in the log, if
    that is not the loss of the next token or if its head is not the last layer: the two losses are compared on a few
    tokens.

    Args:
        model: a causal language model or an encoder-decoder.
        log: called with the reason why a model keeps its own loss.
    """
    if isinstance(model, LabelLossModel):
        return True
    reason = _unsupported_reason(model)
    if reason is None:
        with torch.no_grad(), evaluation_mode(model):
            original = type(model)
            example = _example(model)
            expected = model(**example).loss
            model.logit_map = _read_logit_map(model, example)  # type: ignore[assignment]
            model.__class__ = _label_loss_class(original)
            try:
                loss = model(**example).loss
                if expected is None or not _is_close(loss, expected, model):
                    reason = f"its loss is {expected}, and the one from labeled positions is {loss}"
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                reason = f"its logits need all positions ({type(error).__name__})"
            if reason is not None:
                model.__class__ = original
                del model.logit_map
    if reason is not None:
        log(f"the loss of {type(model).__name__} computes the logits of every position: {reason}")
    return reason is None


def loss_bytes(model: nn.Module, num_tokens: int) -> int:
    """Return the bytes of logits at once in the loss of ``num_tokens`` labeled tokens; 0 for any other model."""
    if not isinstance(model, LabelLossModel):
        return 0
    head = _head(model)
    weight = _weight(head)
    if model.logit_map is None:
        return 3 * 4 * len(weight) * num_tokens  # logits, their softmax and its gradient
    if type(head) is not nn.Linear or any(parameter.requires_grad for parameter in head.parameters()):
        return head_bytes(len(weight), num_tokens, buffers=3)
    is_plain = model.logit_map.cap is None and weight.dtype == torch.float32
    return head_bytes(len(weight), num_tokens, buffers=1 if is_plain else 2)


def label_shift_of(model: nn.Module) -> int:
    """Return the positions from a logit to its label: 1 in a causal model, 0 in a decoder that reads shifted labels."""
    return 0 if _is_encoder_decoder(model) else 1


def label_count(labels: Tensor, shift: int = 1) -> int:
    """Return the positions of labels [rows, tokens] that the loss counts; see :func:`label_shift_of`."""
    return int((labels[:, shift:] != IGNORED_LABEL).sum())


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _label_loss_class(base: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a model of class ``base`` with the loss from labeled positions."""
    if base not in _CLASSES:
        has_cache = "use_cache" in signature(base.forward).parameters

        @wraps(base.forward)
        def forward(self: LabelLossModel, *args: Any, **kwargs: Any) -> Any:
            labels = kwargs.pop("labels", None)
            if labels is None or kwargs.get("shift_labels") is not None or kwargs.get("return_dict") is False:
                return base.forward(self, *args, **kwargs if labels is None else {**kwargs, "labels": labels})
            if has_cache:
                kwargs.setdefault("use_cache", False)  # no token follows that would use keys and values
            return _forward(base, self, labels, kwargs.pop("num_items_in_batch", None), args, kwargs)

        # the name stays: transformers writes it into config.json
        members = {"forward": forward, "__module__": base.__module__, "__qualname__": base.__qualname__}
        _CLASSES[base] = type(base.__name__, (LabelLossModel, base), members)
    return _CLASSES[base]


def _forward(
    base: type[nn.Module],
    model: LabelLossModel,
    labels: Tensor,
    num_items: Tensor | int | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    head = _head(model)
    learned = labels != IGNORED_LABEL  # at the position whose logits are compared with the label
    if label_shift_of(model):
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        learned = labels != IGNORED_LABEL
    targets = labels[learned]
    if _is_encoder_decoder(model) and not {"decoder_input_ids", "decoder_inputs_embeds"} & kwargs.keys():
        kwargs = kwargs | {"decoder_input_ids": _decoder_inputs(model, labels)}
    if model.logit_map is None:
        with _narrowed(head, learned):
            output = base.forward(model, *args, **kwargs)
        logits = output.logits[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(logits, targets, reduction="sum")
    else:
        with _captured(head) as captured:
            output = base.forward(model, *args, **kwargs)
        hidden = captured.pop()[learned]  # [labeled positions, width]
        total = _total(head, hidden, targets, model.logit_map)
    count = len(targets) if num_items is None else num_items
    loss = total / (count.to(total.device) if isinstance(count, Tensor) else count)
    return type(output)(loss=loss, **{name: part for name, part in output.items() if name not in ("loss", "logits")})


def _total(head: nn.Module, hidden: Tensor, targets: Tensor, logit_map: LogitMap) -> Tensor:
    """Return the sum of the cross-entropies: by the fused loss if the head is plain and frozen."""
    trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in head.parameters())
    if type(head) is nn.Linear and not trains:
        return linear_cross_entropy(hidden, head.weight, head.bias, targets, logit_map)
    forward = type(head).forward  # hooks have seen the inputs already
    return module_cross_entropy(lambda x: forward(head, x), len(_weight(head)), hidden, targets, logit_map)


@contextmanager
def _captured(head: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the inputs of the head inside the block; its outputs are one 0 for each position."""
    captured: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        captured.append(x)
        return x.new_zeros(*x.shape[:-1], 1)

    with _replaced_forward(head, keep):
        yield captured


@contextmanager
def _narrowed(head: nn.Module, learned: Tensor) -> Iterator[None]:
    """Give the head only the positions in ``learned`` [rows, tokens], as one row."""
    forward = head.forward

    def narrow(x: Tensor) -> Any:
        return forward(x[learned][None])

    with _replaced_forward(head, narrow):
        yield


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[Tensor], Any]) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """Return the labels behind the decoder's start token; what has no label is padding."""
    start = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
    return torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED_LABEL, model.config.pad_token_id)], 1)


def _head(model: nn.Module) -> Any:
    return model.get_output_embeddings()  # type: ignore[operator]


def _weight(head: nn.Module) -> Any:
    return head._parameters.get("weight", None) if "weight" in head._parameters else head.weight


def _unsupported_reason(model: nn.Module) -> str | None:
    """Return why a model cannot have the loss, as far as its parts tell."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear):
        return "it has no linear head"
    return None


def _example(model: nn.Module) -> dict[str, Tensor]:
    """Return two rows, one with padding and a position without a label."""
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3, 1, 2], [2, 1, 3, 2, 1]], device=device)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], device=device)
    labels = torch.tensor([[1, IGNORED_LABEL, 3, 1, 2], [2, 1, 3, 2, IGNORED_LABEL]], device=device)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _read_logit_map(model: nn.Module, example: dict[str, Tensor]) -> LogitMap | None:
    """Read off what the model does to the outputs of its head, by giving it numbers in their place.

    The probes are powers of two, whose products with a scale are exact.
    """
    head = _head(model)
    small, large = 2.0**-10, 2.0**20
    probes = torch.tensor([small, large, 1.0, -3.0, 0.0, 17.0])
    inputs = {name: value for name, value in example.items() if name != "labels"}
    if _is_encoder_decoder(model):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    try:
        with _replaced_forward(head, lambda x: probes.to(x.device).expand(*x.shape[:-1], len(probes))):
            seen = model(**inputs).logits
        seen = seen[0, 0].float().cpu()
    except Exception:  # whatever the model's code makes of a vocabulary of 6 words
        return None
    scale, top = float(seen[0]) / small, float(seen[1])
    found = LogitMap(scale) if torch.allclose(seen, scale * probes, rtol=1e-5) else LogitMap(scale, top)
    is_found = scale > 0 and top > 0 and torch.allclose(seen, found(probes), rtol=1e-4, atol=1e-6)
    return found if is_found else None


def _is_close(loss: Tensor, expected: Tensor, model: nn.Module) -> bool:
    if not bool(torch.isfinite(expected)):
        return True  # reported where a forward pass is checked
    tolerance = _TOLERANCE.get(next(model.parameters()).dtype, 1e-2)
    return abs(float(loss) - float(expected)) <= tolerance * abs(float(expected))
