"""Messages of the cut: coded activations, identities, and the checks of both ends.

The cloud is the coordinator's end of a link: it asks, and a device answers. Kinds, as request → answer:

- ``hello`` → ``hello``: what the cloud holds; what the device has of it already.
- ``part`` → ``have``: a piece of the files that a device needs: embedding, norms and pretrained head, tokenizer.
- ``next`` → what the device wants: ``calibrate``, ``choose``, ``plan``, ``pass`` or ``done``. A long poll.
- ``support`` → ``taken``: the weights that the cloud chose by the calibration batches.
- ``columns`` → ``products``: inputs of a group of linears, and what the device's entries add to their outputs.
- ``states`` → ``gradient``, or ``seen``: the last hidden states, and the gradient of the loss with respect to them.
- ``gradients`` → ``input_gradients``: gradients of a group's outputs, and what the entries add to its input's gradient.
- ``refused`` → ``bye``: the cloud ends the session, and why.

Every request has the ``session``; those of a pass have its number as well. Tensors that are activations or gradients
are coded (``coding``) and travel as bytes. No message has a token id or a label.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from taskedge.cooperation.cut.cut_coding import coded_bytes, decode, encode
from taskedge.cooperation.protocol.bounds import short_reason, short_text
from taskedge.cooperation.protocol.message import MAX_MESSAGE_BYTES, Message, MessageLimits
from taskedge.errors import InputError, TaskEdgeError

PROTOCOL = 1
"""Version of these messages. Either end refuses another."""
_HEADER_BYTES = 2**16
_TENSOR_BYTES = 256


class CutRefused(TaskEdgeError):
    """The other end sent what the protocol does not allow, or refuses this end."""


class CutFailed(TaskEdgeError):
    """The other end could not go on, and says why. It broke no rule."""


def as_bytes(tensor: Tensor, coding: str) -> Tensor:
    """Return a matrix [tokens, k] in its coding, uint8 [bytes]."""
    return torch.frombuffer(bytearray(encode(tensor.detach().float().cpu().contiguous(), coding)), dtype=torch.uint8)


def from_bytes(message: Message, name: str, shape: tuple[int, int], coding: str) -> Tensor:
    """Return a coded matrix of a message, float32 [tokens, k].

    Raises:
        CutRefused: It is missing, or has another size, or numbers that are not finite.
    """
    coded = message.tensors.get(name)
    if coded is None:
        raise CutRefused(f"a {message.kind!r} message without {name!r}")
    expected = coded_bytes(shape, coding)
    if coded.dtype != torch.uint8 or coded.dim() != 1 or len(coded) != expected:
        raise CutRefused(
            f"a {message.kind!r} message with {name!r} of {coded.dtype} {list(coded.shape)}: {expected:,} bytes were "
            f"expected, for {list(shape)} in {coding}"
        )
    try:
        return decode(coded.numpy().tobytes(), shape, coding)
    except InputError as error:
        raise CutRefused(f"a {message.kind!r} message with {name!r}: {error}") from None


def check_message(
    message: Message, kinds: Collection[str], identity: Mapping[str, Any], tensors: Collection[str] | None = None
) -> None:
    """Check that a message is of one of some kinds, about the session and the pass under way.

    Args:
        message: From the other end.
        kinds: What it may be.
        identity: Header fields that it must repeat: the session, and the number of the pass.
        tensors: Names of its tensors; None: they are checked elsewhere.

    Raises:
        CutRefused: It is anything else.
        CutFailed: It says that the other end could not go on.
    """
    if message.kind == "error":
        raise CutFailed(f"the other end could not go on: {short_reason(message.header.get('why'))}")
    if message.kind not in kinds:
        raise CutRefused(f"a message of kind {short_text(message.kind)} where {' or '.join(kinds)} was expected")
    for name, value in identity.items():
        if message.header.get(name) != value or isinstance(message.header.get(name), bool) != isinstance(value, bool):
            stated = short_text(message.header.get(name))
            raise CutRefused(f"a {message.kind!r} message about the {name} {stated}, not {short_text(value)}")
    if tensors is not None and set(message.tensors) != set(tensors):
        found = short_text(sorted(message.tensors)[:8])
        raise CutRefused(f"a {message.kind!r} message with the tensors {found}, not {sorted(tensors)}")


def limits_of(num_bytes: int, num_tensors: int = 1) -> MessageLimits:
    """Return the limits of a message with tensors of some bytes in all."""
    return MessageLimits(min(MAX_MESSAGE_BYTES, _HEADER_BYTES + num_tensors * _TENSOR_BYTES + num_bytes), num_tensors)


def whole_number(header: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """Return a number of a header.

    Raises:
        CutRefused: It is missing, no whole number, or outside ``low`` to ``high``.
    """
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CutRefused(f"{name} is {short_text(value)}: a whole number from {low:,} to {high:,} is needed")
    return value
