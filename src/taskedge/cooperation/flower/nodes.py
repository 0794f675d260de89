"""The nodes of a Flower run as devices: who is there, what each holds, and what they answer to queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Message as FlowerMessage
from flwr.app import MessageType
from flwr.serverapp import Grid

from taskedge.cooperation.cooperation_config import CooperateSettings
from taskedge.cooperation.coordinator.device_sessions import Member, read_about
from taskedge.cooperation.coordinator.run_setup import Beginning
from taskedge.cooperation.flower.client import NAME
from taskedge.cooperation.flower.records import from_content, to_content
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.payloads import Statistics
from taskedge.errors import TaskEdgeError

POLL_SECONDS = 0.5
"""Between looks at who is there, while too few are."""


class Nodes:
    """Follows the nodes of a run.

    Args:
        run: the run's id.
        log: told of an event and its facts.
    """

    def __init__(self, run: str, beginning: Beginning, settings: CooperateSettings, log: Callable[..., None]) -> None:
        self._run, self._beginning, self._settings, self._log = run, beginning, settings, log
        self._members: dict[int, Member] = {}
        self._refused: dict[str, int] = {}
        self._meetings = 0
        self._silent: dict[int, int] = {}
        """How often in a row a node did not answer."""
        self._ask_again: dict[int, int] = {}
        """At which meeting such a node is asked again."""

    def __getitem__(self, node: int) -> Member:
        """What is known of a node."""
        return self._members[node]

    def present(self) -> dict[int, Member]:
        """Those that have said who they are, and can take part."""
        return {node: m for node, m in self._members.items() if m.about is not None and not m.unfit}

    def meet(self, grid: Grid, needed: int) -> None:
        """Asks those that came who they are, until ``needed`` are there.

        A query is waited for up to ``first_deadline``. So a node that is silent again and again is asked less and less
        often while there are enough others.

        Raises:
            TaskEdgeError: they do not come within ``wait_seconds``.
        """
        self._meetings += 1
        end = time.monotonic() + self._settings.wait_seconds
        while True:
            here = set(grid.get_node_ids())
            for node in sorted(self._members.keys() - here):
                self._log("left", device=self._members.pop(node).name)
            new = sorted(node for node in here if node not in self._members or self._members[node].about is None)
            if len(self.present()) >= needed:
                new = [node for node in new if self._ask_again.get(node, 0) <= self._meetings]
            for node, answer in self._ask(grid, dict.fromkeys(new, Message("hello", {"run": self._run}))).items():
                if answer is None:
                    self._silent[node] = self._silent.get(node, 0) + 1
                    self._ask_again[node] = self._meetings + 2 ** self._silent[node]
                else:
                    self._silent.pop(node, None)
                    self._greet(node, answer)
            if len(self.present()) >= needed:
                return
            if time.monotonic() > end:
                there = ", ".join(member.name for member in self.present().values()) or "none"
                unfit = "".join(f"; {m.name}: {m.unfit}" for m in self._members.values() if m.unfit)
                raise TaskEdgeError(
                    f"not enough nodes came within {self._settings.wait_seconds:g} s ({needed} are needed, there: "
                    f"{there}{unfit}): start them, or ask for fewer"
                )
            time.sleep(POLL_SECONDS)

    def statistics(self, grid: Grid) -> list[Statistics]:
        """Of all that are there, by name.

        Raises:
            TaskEdgeError: none gave any.
        """
        asked = {node: m.name for node, m in sorted(self.present().items(), key=lambda pair: pair[1].name)}
        answers = self._ask(grid, {n: self._beginning.ask_statistics(name, len(asked)) for n, name in asked.items()})
        parts = []
        for node, answer in answers.items():
            try:
                parts += [] if answer is None else [self._beginning.statistics(answer)]
            except MessageError as error:
                self._log("no statistics", device=asked[node], why=str(error))
        if not parts:
            raise TaskEdgeError("no node gave statistics to choose weights by")
        return parts

    def bring(self, grid: Grid, install: Message) -> None:
        """Installs the support where it is not."""
        lacking = [node for node, member in self.present().items() if not member.ready]
        for node, answer in self._ask(grid, dict.fromkeys(lacking, install)).items():
            member = self._members[node]
            if answer is None:
                member.about = None
            elif answer.kind != "installed":
                member.unfit = f"the support cannot be installed there: {str(answer.facts.get('why'))[:300]}"
                self._log("unfit", device=member.name, why=member.unfit)
            else:
                member.holds, member.ready = 0, True

    def refuse(self, node: int, why: str) -> None:
        """Counts a refused answer; after too many the device gets no more tasks, also when it comes back."""
        member = self._members[node]
        member.refused = self._refused[member.name] = member.refused + 1
        if self._barred(member):
            self._log("quarantined", device=member.name, refused=member.refused, why=why)

    def unsure(self, node: int) -> None:
        """It did not answer: no tasks until it says who it is."""
        self._members[node].about, self._members[node].ready = None, False

    def _greet(self, node: int, answer: Message) -> None:
        name = str(answer.facts.get(NAME) or f"node-{node}")[:100]
        self._members[node] = member = Member(name, refused=self._refused.get(name, 0))
        try:
            member.about = about = read_about(answer)
            member.unfit = self._beginning.unfit(about)
            member.holds = about.version if about.run == self._run else None
        except MessageError as error:
            member.unfit = str(error)
        if any(other.name == name for place, other in self._members.items() if place != node):
            member.unfit = f"another node is called {name}: give each a name of its own with --node-config"
        member.ready = member.holds is not None
        facts: dict[str, Any] = {"why": member.unfit} if self._barred(member) or member.unfit else {}
        self._log("unfit" if facts else "joined", device=name, **facts)

    def _barred(self, member: Member) -> bool:
        if member.refused >= self._settings.quarantine_after:
            member.unfit = f"{member.refused} of its answers were refused"
        return bool(member.unfit)

    def _ask(self, grid: Grid, questions: Mapping[int, Message]) -> dict[int, Message | None]:
        """Queries, and what came back of each in time; None: nothing that can be read."""
        seconds = self._settings.first_deadline
        found: dict[int, Message | None] = dict.fromkeys(questions)
        asked = [FlowerMessage(to_content(q), node, MessageType.QUERY, ttl=seconds) for node, q in questions.items()]
        for reply in grid.send_and_receive(asked, timeout=seconds) if asked else ():
            node = reply.metadata.src_node_id
            try:
                found[node] = None if reply.has_error() else from_content(reply.content)
            except MessageError as error:
                self._log("unreadable", node=node, why=str(error))
        return {node: found[node] for node in questions}
