"""The nodes of a Flower run as devices: which are present, which version each has, and their answers to queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Message as FlowerMessage
from flwr.app import MessageType
from flwr.serverapp import Grid

from taskedge.cooperation.cooperation_config import CooperationConfig
from taskedge.cooperation.coordinator.device_sessions import DeviceSession
from taskedge.cooperation.coordinator.run_setup import RunSetup
from taskedge.cooperation.flower.client import NAME
from taskedge.cooperation.flower.records import from_content, to_content
from taskedge.cooperation.protocol.device_info import read_device_info
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.payloads import Statistics
from taskedge.errors import TaskEdgeError

POLL_SECONDS = 0.5
"""Seconds between two looks at the connected nodes, while too few are present."""


class FlowerNodes:
    """Follows the nodes of a run, and makes them ready for tasks.

    Args:
        run_id: Id of the run.
        setup: Checks devices and makes the messages before the first round.
        config: The run's settings.
        log: Called with the name of an event and its fields.
    """

    def __init__(self, run_id: str, setup: RunSetup, config: CooperationConfig, log: Callable[..., None]) -> None:
        self._run_id, self._setup, self._config, self._log = run_id, setup, config, log
        self._sessions: dict[int, DeviceSession] = {}
        self._num_refused: dict[str, int] = {}
        self._num_updates = 0
        """Calls of :meth:`update`."""
        self._silent: dict[int, int] = {}
        """Queries in a row that a node did not answer."""
        self._ask_again: dict[int, int] = {}
        """Number of the update in which a silent node is queried again."""

    def __getitem__(self, node: int) -> DeviceSession:
        """Return the device of a node."""
        return self._sessions[node]

    def present(self) -> dict[int, DeviceSession]:
        """Return the devices that have answered ``hello`` and can take part, by node."""
        return {node: s for node, s in self._sessions.items() if s.info is not None and not s.unfit_reason}

    def update(self, grid: Grid, num_needed: int) -> None:
        """Send ``hello`` to new nodes, until ``num_needed`` devices are present.

        A query is waited for up to ``first_deadline``. A node that does not answer is therefore queried less and less
        often while there are enough others.

        Raises:
            TaskEdgeError: They did not come within ``wait_seconds``.
        """
        self._num_updates += 1
        end = time.monotonic() + self._config.wait_seconds
        while True:
            self._query_new(grid, enough=len(self.present()) >= num_needed)
            if len(self.present()) >= num_needed:
                return
            if time.monotonic() > end:
                present = ", ".join(session.name for session in self.present().values()) or "none"
                unfit = "".join(f"; {s.name}: {s.unfit_reason}" for s in self._sessions.values() if s.unfit_reason)
                raise TaskEdgeError(
                    f"not enough nodes came within {self._config.wait_seconds:g} s ({num_needed} are needed, there: "
                    f"{present}{unfit}): start them, or ask for fewer"
                )
            time.sleep(POLL_SECONDS)

    def statistics(self, grid: Grid) -> list[Statistics]:
        """Return the statistics of all present devices, by name.

        Raises:
            TaskEdgeError: No device sent any.
        """
        present = sorted(self.present().items(), key=lambda item: item[1].name)
        names = {node: session.name for node, session in present}
        requests = {node: self._setup.statistics_request(name, len(names)) for node, name in names.items()}
        statistics: dict[str, Statistics] = {}
        for node, answer in self._query(grid, requests).items():
            if answer is None:
                continue
            try:
                statistics[names[node]] = self._setup.read_statistics_answer(answer)
            except MessageError as error:
                self._log("no statistics", device=names[node], why=str(error))
        audit = self._setup.audit_statistics(statistics, len(names))
        for device, why in audit.refused.items():
            self._log("no statistics", device=device, why=why)
        for device, why in audit.capped.items():
            self._log("capped statistics", device=device, why=why)
        if not audit.accepted:
            raise TaskEdgeError("no node gave statistics to choose weights by")
        return list(audit.accepted.values())

    def install(self, grid: Grid, install_message: Message) -> None:
        """Install the support on all present devices that do not have it."""
        missing = [node for node, session in self.present().items() if not session.ready]
        for node, answer in self._query(grid, dict.fromkeys(missing, install_message)).items():
            session = self._sessions[node]
            if answer is None:
                session.info = None
            elif answer.kind != "installed":
                session.unfit_reason = f"the support cannot be installed there: {str(answer.header.get('why'))[:300]}"
                self._log("unfit", device=session.name, why=session.unfit_reason)
            else:
                session.version, session.ready = 0, True

    def record_refusal(self, node: int, reason: str) -> None:
        """Count a refused answer. After ``quarantine_after`` of them a device gets no more tasks in this run."""
        session = self._sessions[node]
        session.num_refused = self._num_refused[session.name] = session.num_refused + 1
        if self._exclude_if_refused(session):
            self._log("quarantined", device=session.name, refused=session.num_refused, why=reason)

    def mark_unresponsive(self, node: int) -> None:
        """Give a node no tasks until it answers ``hello``."""
        self._sessions[node].info, self._sessions[node].ready = None, False

    def _query_new(self, grid: Grid, *, enough: bool) -> None:
        """Drop the nodes that left, and send ``hello`` to those whose device is not known."""
        connected = set(grid.get_node_ids())
        for node in sorted(self._sessions.keys() - connected):
            self._log("left", device=self._sessions.pop(node).name)
        new = sorted(n for n in connected if n not in self._sessions or self._sessions[n].info is None)
        if enough:
            new = [node for node in new if self._ask_again.get(node, 0) <= self._num_updates]
        hello = Message("hello", {"run": self._run_id})
        for node, answer in self._query(grid, dict.fromkeys(new, hello)).items():
            if answer is None:
                self._silent[node] = self._silent.get(node, 0) + 1
                self._ask_again[node] = self._num_updates + 2 ** self._silent[node]
            else:
                self._silent.pop(node, None)
                self._add(node, answer)

    def _add(self, node: int, hello: Message) -> None:
        name = str(hello.header.get(NAME) or f"node-{node}")[:100]
        session = DeviceSession(name, num_refused=self._num_refused.get(name, 0))
        self._sessions[node] = session
        try:
            session.info = info = read_device_info(hello)
            session.unfit_reason = self._setup.unfit_reason(name, info)
            session.version = info.version if info.run == self._run_id else None
        except MessageError as error:
            session.unfit_reason = str(error)
        if any(other.name == name for other_node, other in self._sessions.items() if other_node != node):
            session.unfit_reason = f"another node is called {name}: give each a name of its own with --node-config"
        session.ready = session.version is not None
        if self._exclude_if_refused(session):
            self._log("unfit", device=name, why=session.unfit_reason)
        else:
            self._log("joined", device=name)

    def _exclude_if_refused(self, session: DeviceSession) -> bool:
        """Exclude a device with too many refused answers, and return whether it is excluded, for any reason."""
        if session.num_refused >= self._config.quarantine_after:
            session.unfit_reason = f"{session.num_refused} of its answers were refused"
        return bool(session.unfit_reason)

    def _query(self, grid: Grid, messages: Mapping[int, Message]) -> dict[int, Message | None]:
        """Send queries, and return the answers by node; None if none came in time or it cannot be read."""
        seconds = self._config.first_deadline
        answers: dict[int, Message | None] = dict.fromkeys(messages)
        queries = [
            FlowerMessage(to_content(message), node, MessageType.QUERY, ttl=seconds)
            for node, message in messages.items()
        ]
        replies: Any = grid.send_and_receive(queries, timeout=seconds) if queries else ()
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                answers[node] = None if reply.has_error() else from_content(reply.content)
            except MessageError as error:
                self._log("unreadable", node=node, why=str(error))
        return {node: answers[node] for node in messages}
