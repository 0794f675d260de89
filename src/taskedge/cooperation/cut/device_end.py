"""The device's end of the cut: it runs its batches through the blocks of the cloud.

To the model it is the forward and backward pass of its blocks. Forward: the embedded tokens go up, then the cloud asks
for the products of each group of modules, then it sends the last hidden states. Backward: their gradient goes up, then
the cloud sends the gradients of each group's outputs. A step that the cloud has lost (it was restarted, or waited too
long) is run again from the embedded tokens, without notice to the model: no value has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from taskedge.cooperation.cut.base_parts import PartsStore
from taskedge.cooperation.cut.conversation import Conversation
from taskedge.cooperation.cut.cut_coding import coded_bytes
from taskedge.cooperation.cut.cut_messages import PROTOCOL, CutRefused, as_bytes, check_message, from_bytes
from taskedge.cooperation.cut.device_modules import DeviceModules
from taskedge.cooperation.cut.module_groups import Group, payload_numbers, plan_message
from taskedge.cooperation.protocol.bounds import short_reason, short_text
from taskedge.cooperation.protocol.message import MAX_MESSAGE_BYTES, Message
from taskedge.errors import InputError
from taskedge.training.data_order import derive_seed

Log = Callable[[str], None]


class Noise(Protocol):
    """Clips what leaves the device, and adds noise to it."""

    def protect(self, kind: str, matrix: Tensor, rows: int) -> Tensor:
        """Return the matrix [tokens, k] of some rows as it leaves the device."""
        ...


class _LostStep(Exception):
    """The cloud no longer has the pass under way."""


@dataclass(frozen=True)
class CloudFacts:
    """The cloud's statement about its base: the fields of its ``hello``."""

    model: str
    base: str
    layers: int
    width: int
    dtype: str
    stack: str
    max_tokens: int
    returns_tuple: bool

    @classmethod
    def read(cls, header: dict[str, Any]) -> CloudFacts:
        """Return the facts in a header.

        Raises:
            CutRefused: One is missing or of another type.
        """
        types = {"model": str, "base": str, "dtype": str, "stack": str, "returns_tuple": bool}
        values = {name: header.get(name) for name in cls.__dataclass_fields__}
        for name, value in values.items():
            if type(value) is not types.get(name, int):
                raise CutRefused(f"the cloud states {name} {short_text(value)}")
        return cls(**cast(dict[str, Any], values))


@dataclass
class Counted:
    """Counts of what crossed, for comparison with the closed form.

    Attributes:
        passes: passes through the blocks, without those that were run again.
        training_passes: those that were followed by a backward pass.
        numbers: activations and gradients of these passes, by the closed form.
        repeated: passes that were run again.
    """

    passes: int = 0
    training_passes: int = 0
    numbers: int = 0
    repeated: int = 0


class DeviceEnd:
    """This device's side of its session with the cloud.

    Args:
        conversation: Brings the cloud's requests.
        store: Keeps the files that the cloud sends.
        coding: Of activations and gradients.
        seed: Of the run: the cloud's dropout follows from it and from the number of the pass.
        noise: What is done to tensors before they leave; None: nothing.
        log: Called with a line.
    """

    def __init__(
        self,
        conversation: Conversation,
        store: PartsStore,
        *,
        coding: str = "fp32",
        seed: int = 0,
        noise: Noise | None = None,
        log: Log = lambda _: None,
    ) -> None:
        self._conversation, self._store = conversation, store
        self._coding, self._seed, self._noise, self._log = coding, seed, noise, log
        self.facts: CloudFacts | None = None
        self.modules: DeviceModules | None = None
        self.active: Sequence[str] | None = None
        """Modules that train now, by the cloud's names; None: all."""
        self.step = 0
        """Steps that are done, and the passes of the present one: the dropout of the cloud follows from both."""
        self.pass_of_step = 0
        self.counted = Counted()
        self._session = ""
        self._has_turn = False
        """Whether the open request asks what this device wants."""
        self._planned = ""
        """Session in which the cloud has the plan."""
        self._parked: dict[str, dict[str, Tensor]] = {}
        """What the cloud adds for idle modules in this session."""
        self._number = 0
        self._groups: list[Group] = []
        self._present: tuple[Tensor, Tensor, bool] | None = None
        """Embedded tokens, mask and whether it trains: of the pass under way."""

    # --- the session ---

    def join(self) -> CloudFacts:
        """Wait until the cloud is there and this device has the files that it needs."""
        self._wait_for_turn()
        assert self.facts is not None
        return self.facts

    def calibrate(self, hidden: Tensor, mask: Tensor) -> None:
        """Send embedded tokens of a calibration batch, [batch, length, width]."""
        self._say("calibrate", *self._inputs(hidden, mask))

    def choose(self, settings: dict[str, Any]) -> Message:
        """Have the cloud choose the weights to train, and return its answer."""
        self._say("choose", settings, {})
        request = self._receive()
        check_message(request, ("support",), {"session": self._session})
        self._reply("taken", {})
        return request

    def done(self) -> None:
        """End the session."""
        self._say("done", {}, {})

    def _wait_for_turn(self) -> None:
        """Return when the cloud waits for what this device wants."""
        if self._conversation.has_request and not self._has_turn:
            self._reply("seen", {"pass": self._number})  # states whose gradient nobody asked for
        if not self._has_turn:
            request = self._receive()
            check_message(request, ("next",), {"session": self._session}, ())
            self._has_turn = True

    def _take_turn(self) -> None:
        """Return when the cloud waits for what this device wants, and has the plan."""
        self._wait_for_turn()
        while self.modules is not None and self._planned != self._session:
            self._planned, self._parked, self._has_turn = self._session, {}, False
            self._conversation.answer(plan_message(self.modules.plan, {"session": self._session}))
            self._wait_for_turn()

    def _say(self, kind: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._take_turn()
        self._has_turn = False
        self._reply(kind, header, tensors)

    def _reply(self, kind: str, header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        self._conversation.answer(Message(kind, {"session": self._session, **header}, tensors or {}))

    def _receive(self) -> Message:
        """Return the next request that is not about joining; those are answered here."""
        while True:
            request = self._conversation.receive()
            try:
                if request.kind == "hello":
                    self._hello(request)
                elif request.kind == "part":
                    check_message(request, ("part",), {"session": self._session}, ("content",))
                    self._store.take(request)
                    self._reply("have", {"index": request.header["index"]})
                elif request.kind == "refused":
                    self._reply("bye", {})
                    raise CutRefused(f"the cloud refused this device: {short_reason(request.header.get('why'))}")
                else:
                    return request
            except CutRefused as error:
                self.refuse(error)
                raise

    def refuse(self, error: Exception) -> None:
        """Tell the cloud why its request is not answered, if one waits."""
        if self._conversation.has_request:
            self._reply("error", {"why": str(error)[:1000]})

    def _hello(self, request: Message) -> None:
        header = dict(request.header)
        check_message(request, ("hello",), {"protocol": PROTOCOL}, ())
        facts = CloudFacts.read(header)
        if self.facts is not None and (facts.base, facts.model) != (self.facts.base, self.facts.model):
            raise CutRefused(
                f"the cloud now holds {facts.model} ({facts.base}), and this run began with {self.facts.model} "
                f"({self.facts.base}): finish it with that base"
            )
        if self.facts is not None:
            self._log("the cloud is back: the step under way starts again")
        self.facts, self._session = facts, str(header.get("session"))
        self._reply("hello", {"protocol": PROTOCOL, "parts": self._store.expect(header)})

    # --- a pass ---

    def run(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Run embedded tokens [batch, length, width] through the cloud's blocks; differentiable for the modules."""
        trains = torch.is_grad_enabled()
        assert self.modules is not None, "the plan comes before the first pass"
        self._groups = self.modules.begin(self._active_names())
        tokens = mask.numel()
        if self.facts is not None and tokens > self.facts.max_tokens:
            raise InputError(
                f"a batch of {tokens:,} tokens, and the cloud takes {self.facts.max_tokens:,}: give a smaller "
                "--batch-size or --max-length"
            )
        largest = max(hidden.shape[-1], *(max(group.num_columns, group.num_rows) for group in self._groups), 1)
        if (most := coded_bytes((tokens, largest), self._coding)) > MAX_MESSAGE_BYTES - 2**17:
            raise InputError(
                f"a batch of {tokens:,} tokens makes messages of {most:,} bytes in {self._coding}, and "
                f"{MAX_MESSAGE_BYTES:,} is the most: give a smaller --batch-size or another --coding"
            )
        self._present = hidden.detach(), mask, trains
        self.counted.passes += 1
        self.counted.training_passes += trains
        self.counted.numbers += payload_numbers(self._groups, tokens, hidden.shape[-1], trains=trains)
        if trains:
            self.pass_of_step += 1
        anchor = torch.zeros((), requires_grad=trains and bool(self._groups))
        return cast(Tensor, _Blocks.apply(hidden, anchor, self))  # type: ignore[no-untyped-call]

    def forward(self) -> Tensor:
        """Run the present pass up to its last hidden states, again if the cloud loses it."""
        assert self._present is not None
        hidden, _, trains = self._present
        while True:
            try:
                states = self._forward()
                break
            except _LostStep:
                self.counted.repeated += 1
        if not (trains and self._groups):
            self._reply("seen", {"pass": self._number})
        return states.view(hidden.shape).to(hidden.dtype)

    def backward(self, gradient: Tensor) -> None:
        """Give the modules their gradients, from that of the last hidden states [batch, length, width]."""
        assert self.modules is not None
        sent = self._leaving("gradient", gradient.flatten(0, -2), len(gradient))
        while True:
            try:
                self._backward(sent)
                break
            except _LostStep:
                self.counted.repeated += 1
                self.forward()
        self.modules.finish()

    def _active_names(self) -> Sequence[str]:
        assert self.modules is not None
        return list(self.modules.plan) if self.active is None else self.active

    def _inputs(self, hidden: Tensor, mask: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        header = {"shape": list(mask.shape), "coding": self._coding}
        inputs = self._leaving("inputs", hidden.flatten(0, -2), len(mask))
        return header, {"inputs": inputs, "mask": mask.to(torch.bool).contiguous()}

    def _leaving(self, kind: str, matrix: Tensor, rows: int) -> Tensor:
        matrix = matrix.detach().float()
        if self._noise is not None:
            matrix = self._noise.protect(kind, matrix, rows)
        return as_bytes(matrix, self._coding)

    def _forward(self) -> Tensor:
        """Run the present pass once, up to its last hidden states. The request that brings them stays open."""
        assert self.modules is not None
        assert self._present is not None
        hidden, mask, trains = self._present
        self._number += 1
        self._take_turn()
        header, tensors = self._inputs(hidden, mask)
        active = set(self._active_names())
        header |= {
            "pass": self._number,
            "trains": trains,
            "active": "".join("1" if name in active else "0" for name in self.modules.plan),
            "seed": derive_seed(self._seed, self.step, self.pass_of_step),
        }
        self._say("pass", header, tensors | self._to_park(active))
        identity, tokens = {"session": self._session, "pass": self._number}, mask.numel()
        while True:
            request = self._receive_in_pass(("columns", "states"), identity)
            if request.kind == "states":
                return from_bytes(request, "matrix", (tokens, hidden.shape[-1]), self._coding)
            number, group = self._group(request)
            columns = from_bytes(request, "matrix", (tokens, group.num_columns), self._coding)
            needed = request.header.get("needed") is True
            products = self.modules.products(number, columns, needs_input_gradient=needed, trains=trains)
            self._reply("products", {"pass": self._number}, {"matrix": self._leaving("products", products, len(mask))})

    def _backward(self, gradient: Tensor) -> None:
        """Answer the open request with the gradient, then take those of every group."""
        assert self.modules is not None
        assert self._present is not None
        tokens = self._present[1].numel()
        self._reply("gradient", {"pass": self._number}, {"matrix": gradient})
        identity = {"session": self._session, "pass": self._number}
        left = set(range(len(self._groups)))
        while left:
            request = self._receive_in_pass(("gradients",), identity)
            number, group = self._group(request)
            gradients = from_bytes(request, "matrix", (tokens, group.num_rows), self._coding)
            added = self.modules.input_gradients(number, gradients)
            left.discard(number)
            tensors = (
                {} if added is None else {"matrix": self._leaving("input_gradients", added, len(self._present[1]))}
            )
            self._reply("input_gradients", {"pass": self._number}, tensors)

    def _receive_in_pass(self, kinds: Sequence[str], identity: dict[str, Any]) -> Message:
        """Return the next request of the pass.

        Raises:
            _LostStep: The cloud waits for something new: it has lost the pass.
        """
        request = self._receive()
        if request.kind == "next" and request.header.get("session") == self._session:
            self._has_turn = True
            raise _LostStep
        try:
            check_message(request, kinds, identity, ("matrix",))
        except CutRefused as error:
            self.refuse(error)
            raise
        return request

    def _group(self, request: Message) -> tuple[int, Group]:
        for number, group in enumerate(self._groups):
            if request.header.get("group") == group.name:
                return number, group
        error = CutRefused(
            f"the cloud asks for the group {short_text(request.header.get('group'))}, which is not active"
        )
        self.refuse(error)
        raise error

    def _to_park(self, active: set[str]) -> dict[str, Tensor]:
        """Return what the cloud needs to know of modules that are idle from now on."""
        assert self.modules is not None
        sent: dict[str, Tensor] = {}
        for name in self.modules.plan:
            if name in active:
                self._parked.pop(name, None)
            elif name not in self._parked:
                self._parked[name] = self.modules.parked(name)
                sent |= {f"parked/{name}/{part}": value for part, value in self._parked[name].items()}
        return sent


class _Blocks(torch.autograd.Function):
    """The cloud's blocks as one operation of the device's model."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, anchor: Tensor, end: DeviceEnd) -> Tensor:  # type: ignore[override]
        ctx.end = end
        return end.forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        ctx.end.backward(gradient)
        return None, torch.zeros(()), None
