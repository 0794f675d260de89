"""Which devices get tasks: a handshake that goes on until it is answered, quarantine, and a device that comes back."""

import asyncio

import pytest
import tiny_fleet
import torch

from taskedge.cooperation.coordinator.device_sessions import MAX_UNANSWERED, DeviceSessions
from taskedge.cooperation.coordinator.event_log import EventLog
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.transport.in_memory import MemoryCoordinatorLink
from taskedge.cooperation.transport.links import Presence

INSTALL = Message("install", {"run": "r"})


class Device:
    """Answers ``hello`` and ``install`` as it is set to; ``None`` is no answer."""

    def __init__(self, hub, name="d0"):
        self.link = hub.device(name)
        self.hello = {"protocol": 2, "base": "b", "labels": [], "rows": 1, "memory_bytes": 1e9, "profile": None}
        self.hello |= {"run": "", "version": None}
        self.installed, self.asked = Message("installed", {"run": "r"}), []

    async def answer(self, message):
        self.asked.append(message.kind)
        answers = {"hello": self.hello and Message("hello", self.hello), "install": self.installed}
        answer = answers[message.kind]
        return answer if answer is not None else await asyncio.Event().wait()


class Around:
    """Sessions over a hub, and the events that they log."""

    def __init__(self, tmp_path, monkeypatch, unfit=lambda name, info: "", **settings):
        monkeypatch.setattr("taskedge.cooperation.coordinator.device_sessions.HELLO_SECONDS", 0.05)
        monkeypatch.setattr("taskedge.cooperation.coordinator.device_sessions.RETRY_SECONDS", 0.01)
        self.hub, self.events, self.serving = MemoryCoordinatorLink(), [], []
        log = EventLog(tmp_path / "log.jsonl", self.events.append)
        self.sessions = DeviceSessions(self.hub, "r", unfit, tiny_fleet.settings(**settings), log)

    def join(self, name="d0"):
        device = Device(self.hub, name)
        self.serving.append(asyncio.create_task(device.link.serve(device.answer)))
        return device

    async def until(self, condition):
        assert await self.sessions.wait(condition, 10.0)

    async def __aenter__(self):
        self.sessions.start()
        return self

    async def __aexit__(self, *_):
        await self.sessions.stop()
        for task in self.serving:
            task.cancel()
        await asyncio.gather(*self.serving, return_exceptions=True)


def run(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, 30))


def test_a_device_is_present_after_hello_and_ready_after_install(tmp_path, monkeypatch):
    async def check():
        async with Around(tmp_path, monkeypatch) as around:
            sessions, installed = around.sessions, []
            device = around.join()
            await around.until(lambda: bool(sessions.present()))
            assert sessions.ready() == []
            sessions.install_on_all(INSTALL, installed.append)
            await around.until(lambda: bool(sessions.ready()))
            late = around.join("d1")
            await around.until(lambda: len(sessions.ready()) == 2)
            assert [session.version for session in sessions.ready()] == [0, 0]
            assert installed == ["d0", "d1"]
            assert device.asked == ["hello", "hello", "install"]
            assert late.asked == ["hello", "install"]

    run(check())


def test_a_device_that_has_the_run_is_not_installed_again(tmp_path, monkeypatch):
    async def check():
        async with Around(tmp_path, monkeypatch) as around:
            around.sessions.install_on_all(INSTALL, lambda name: None)
            device = around.join()
            device.hello |= {"run": "r", "version": 7}
            await around.until(lambda: bool(around.sessions.ready()))
            assert around.sessions.by_name["d0"].version == 7
            assert device.asked == ["hello"]

    run(check())


@pytest.mark.parametrize(("stated", "asked"), [("", 0), ("right", 0), ("other", 1)])
def test_a_device_with_another_support_is_installed_anew(tmp_path, monkeypatch, stated, asked):
    """Devices of earlier revisions state no digest of their support."""

    async def check():
        async with Around(tmp_path, monkeypatch) as around:
            install = Message("install", {"run": "r", "digest": "right"})
            around.sessions.install_on_all(install, lambda name: None)
            device = around.join()
            device.hello |= {"run": "r", "version": 7, "support": stated}
            await around.until(lambda: bool(around.sessions.ready()))
            assert device.asked.count("install") == asked
            assert around.sessions.by_name["d0"].version == (0 if asked else 7)

    run(check())


def test_a_device_that_floods_is_named_and_counted(tmp_path, monkeypatch):
    async def check():
        async with Around(tmp_path, monkeypatch, quarantine_after=2) as around:
            around.join()
            await around.until(lambda: bool(around.sessions.present()))
            (session,) = around.sessions.present()
            for count in (1, 2):
                around.hub._publish(Presence("d0", "flooded", "it sent too much"))
                await around.until(lambda count=count: session.num_refused == count)
            await around.until(lambda: not around.sessions.present())
            assert [event["why"] for event in around.events if event["event"] == "flooded"] == ["it sent too much"] * 2
            assert [event["event"] for event in around.events][-1] == "quarantined"

    run(check())


def test_a_device_that_answers_no_task_is_counted_after_a_while(tmp_path, monkeypatch):
    async def check():
        async with Around(tmp_path, monkeypatch, quarantine_after=1) as around:
            around.join()
            await around.until(lambda: bool(around.sessions.present()))
            (session,) = around.sessions.present()
            for _ in range(MAX_UNANSWERED):
                around.sessions.record_unanswered(session, "late")
            assert session.num_refused == 0
            around.sessions.record_unanswered(session, "late")
            assert around.sessions.present() == []

    run(check())


def test_a_silent_device_is_asked_until_it_answers(tmp_path, monkeypatch):
    async def check():
        async with Around(tmp_path, monkeypatch) as around:
            device = around.join()
            hello, device.hello = device.hello, None
            await asyncio.sleep(0.2)
            assert around.sessions.present() == []
            around.serving.pop().cancel()  # the process hangs no longer, and reads its messages again
            device.hello = hello
            around.serving.append(asyncio.create_task(device.link.serve(device.answer)))
            await around.until(lambda: bool(around.sessions.present()))

    run(check())


@pytest.mark.parametrize("fault", ["unfit", "protocol", "install"])
def test_an_unfit_device_gets_no_tasks_and_says_why(tmp_path, monkeypatch, fault):
    reasons = {"unfit": "another base", "protocol": "speaks protocol 1", "install": "cannot be installed there: full"}

    async def check():
        unfit = (lambda name, info: "another base") if fault == "unfit" else (lambda name, info: "")
        async with Around(tmp_path, monkeypatch, unfit) as around:
            around.sessions.install_on_all(INSTALL, lambda name: None)
            device = around.join()
            if fault == "protocol":
                device.hello["protocol"] = 1
            if fault == "install":
                device.installed = Message("error", {"why": "full"})
            while not any(event["event"] == "unfit" for event in around.events):
                await asyncio.sleep(0.01)
            assert reasons[fault] in around.sessions.by_name["d0"].unfit_reason
            assert around.sessions.ready() == around.sessions.present() == []

    run(check())


def test_an_unresponsive_device_gets_tasks_after_the_next_hello(tmp_path, monkeypatch):
    async def check():
        async with Around(tmp_path, monkeypatch) as around:
            around.sessions.install_on_all(INSTALL, lambda name: None)
            device = around.join()
            await around.until(lambda: bool(around.sessions.ready()))
            (session,) = around.sessions.ready()
            device.hello |= {"run": "r", "version": 0}
            around.sessions.mark_unresponsive(session)
            assert around.sessions.ready() == []
            await around.until(lambda: bool(around.sessions.ready()))
            assert device.asked == ["hello", "install", "hello"]
            assert session.session_id == 1

    run(check())


def test_refusals_are_counted_across_sessions_and_resumptions(tmp_path, monkeypatch):
    async def check():
        async with Around(tmp_path, monkeypatch, quarantine_after=3) as around:
            around.sessions.load_state_dict({"refused": {"d0": 1, "gone": 2}})
            around.sessions.install_on_all(INSTALL, lambda name: None)
            around.join()
            await around.until(lambda: bool(around.sessions.ready()))
            (session,) = around.sessions.ready()
            around.sessions.record_refusal(session, "wrong shape")
            assert around.sessions.state_dict() == {"refused": {"d0": 2, "gone": 2}}
            around.join()  # the same device in a new process
            await around.until(lambda: session.session_id == 2 and session.ready)
            around.sessions.record_refusal(session, "wrong shape")
            assert around.sessions.ready() == around.sessions.present() == []
            quarantined = [event for event in around.events if event["event"] == "quarantined"]
            assert [(event["device"], event["refused"]) for event in quarantined] == [("d0", 3)]

    run(check())


def test_waiting_ends_in_time(tmp_path, monkeypatch):
    async def check():
        async with Around(tmp_path, monkeypatch) as around:
            assert not await around.sessions.wait(lambda: False, 0.05)
            assert await around.sessions.wait(lambda: True, 0.0)

    run(check())


@pytest.mark.slow
def test_a_device_that_comes_back_catches_up_from_what_it_holds(tmp_path):
    """Once as a link that was cut (the process holds what it held), once as a new process (which holds nothing)."""

    async def whole():
        events, back, trainings = [], {3: asyncio.Event(), 6: asyncio.Event()}, tiny_fleet.devices(2)
        times = []
        fresh = tiny_fleet.training(1)  # made now: a training that runs beside would disturb its random weights

        async def patient(message, answer):
            if message.kind == "task" and message.header["round"] in back:
                await back[message.header["round"]].wait()
            return await answer(message)

        async def timed(message, answer):
            if message.kind == "task":
                times.append(message.header["expires_in"])
            return await answer(message)

        def on_event(event):
            events.append(event)
            ready = [e for e in events if e["event"] == "ready" and e["device"] == "d1"]
            for number, count in ((3, 2), (6, 3)):
                if len(ready) == count:
                    back[number].set()

        async with tiny_fleet.fleet(trainings, {"d0": patient, "d1": timed}) as made:
            how = tiny_fleet.settings(rounds=9, devices=2, mode="fedavg", first_deadline=50.0)
            head = tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=on_event)
            running = asyncio.create_task(head.run())

            async def answered(count):
                while made.hub.traffic("d1")[1].messages.get("gradients", 0) < count:
                    await asyncio.sleep(0.001)

            await answered(3)
            await made.reconnect("d1")  # another link; the process and what it holds stay
            await answered(6)
            await made.lose("d1")
            trainings["d1"] = made.trainings["d1"] = fresh
            made.join("d1")
            await running
            return head, events, trainings, times

    head, events, trainings, times = asyncio.run(whole())
    assert times == [50, 50, 30, 30, 30, 30, 50, 30, 30]  # the first tasks of a process get the time to compile
    ready = [e["holds"] for e in events if e["event"] == "ready" and e["device"] == "d1"]
    assert ready == [0, 2, 0]  # it goes on from what it holds; it is installed anew, and sent all that changed since
    results = {e["round"]: e["result"] for e in events if e["event"] == "task" and e["device"] == "d1"}
    assert results == dict.fromkeys(range(1, 10), "accepted")
    values = {n: p for n, p in trainings["d1"].model.named_parameters() if n in head.state.values}
    assert all(torch.equal(values[name], head.state.values[name]) for name in values)
