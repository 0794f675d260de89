"""Flower's server and client apps joined in one process: what a SuperLink and SuperNodes carry, without them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

import tiny_fleet
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from taskedge.cooperation.flower.client import NodeSetup, client_app

RUN = 1
Change = Callable[[Message, Message], Message | None]
"""Takes a message and a node's reply, and returns the reply that arrives; None if none does."""


class InProcess(Grid):
    """Nodes by id, each with an app and a context that lives on as a SuperNode's does."""

    def __init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 0, 1
        self.apps: dict[int, ClientApp] = {}
        self.contexts: dict[int, Context] = {}
        self.changes: dict[int, Change] = {}
        self.sent: list[Message] = []

    def join(self, node: int, app: ClientApp, **config: Any) -> None:
        """A node comes."""
        self.apps[node] = app
        self.contexts[node] = Context(RUN, node, config, RecordDict(), {})

    def leave(self, node: int) -> None:
        """A node goes, and its context with it."""
        del self.apps[node], self.contexts[node]

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Through Flower's own wire format both ways, the last node's answer first."""
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self.sent.append(message)
            node = message.metadata.dst_node_id
            carried = message_from_proto(message_to_proto(message))
            try:
                reply = self.apps[node](carried, self.contexts[node])
            except Exception as error:
                reply = Message(Error(0, repr(error)), reply_to=carried)
            arrived = self.changes.get(node, lambda message, reply: reply)(carried, reply)
            if arrived is not None:
                replies.append(message_from_proto(message_to_proto(arrived)))
        return replies[::-1]


def node_setup(context: Context, **about: Any) -> NodeSetup:
    """The part of a node, as tiny_fleet makes it; its number is in the node's configuration."""
    return NodeSetup(tiny_fleet.training(int(context.node_config["number"]), **about))


def grid(count: int, make: Callable[[Context], NodeSetup] = node_setup, **options: Any) -> InProcess:
    """Nodes that are called d0, d1, ... as in the tests of cooperative runs, with ids in another order."""
    made = InProcess()
    for number in range(count):
        made.join(100 - number, client_app(make, **options), name=f"d{number}", number=number)
    return made


def answer(app: ClientApp, context: Context, message: Any) -> Any:
    """Send a taskedge message through an app and return the answer."""
    from flwr.app import MessageType

    from taskedge.cooperation.flower.records import from_content, to_content

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 0, 1
    kind = MessageType.TRAIN if message.kind == "task" else MessageType.QUERY
    return from_content(app(Message(to_content(message), context.node_id, kind), context).content)


def alone(work: Any) -> Any:
    """The result of a coroutine."""
    return asyncio.run(work)
