"""Answers are read in a thread of their own, in order, and whatever happens there is the caller's."""

import asyncio
import os
import threading
import time

import pytest

from taskedge.cooperation.transport.reader_thread import READER, SMALL_BYTES, ReaderThread


def test_work_is_done_in_order_in_one_other_thread():
    async def run():
        reader, seen = ReaderThread(), []

        def work(number):
            seen.append((number, threading.get_ident()))
            return 2 * number

        found = await asyncio.gather(*(reader.run(lambda n=number: work(n)) for number in range(100)))
        assert found == [2 * number for number in range(100)]
        assert [number for number, _ in seen] == list(range(100))
        assert {thread for _, thread in seen}.isdisjoint({threading.get_ident()})
        assert len({thread for _, thread in seen}) == 1

    asyncio.run(run())


def test_small_work_is_done_at_once():
    async def run():
        return await READER.run(threading.get_ident, SMALL_BYTES)

    assert asyncio.run(run()) == threading.get_ident()


def test_the_loop_goes_on_meanwhile():
    async def run():
        ticks, working = 0, asyncio.create_task(READER.run(lambda: time.sleep(0.2)))
        while not working.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(run()) > 3


def test_an_exception_reaches_the_caller_and_ends_nothing():
    async def run():
        with pytest.raises(ZeroDivisionError):
            await READER.run(lambda: 1 / 0)
        return await READER.run(lambda: "still here")

    assert asyncio.run(run()) == "still here"


def test_a_cancelled_caller_does_not_hold_up_others():
    async def run():
        started = threading.Event()
        first = asyncio.create_task(READER.run(lambda: (started.set(), time.sleep(0.1))))
        second, third = (asyncio.create_task(READER.run(lambda n=n: n)) for n in (2, 3))
        await asyncio.to_thread(started.wait)
        first.cancel()
        second.cancel()
        return await third

    assert asyncio.run(run()) == 3


def test_a_reader_serves_one_loop_after_another_and_a_closed_one_loses_its_work():
    reader = ReaderThread()
    slow = asyncio.new_event_loop()
    slow.run_until_complete(asyncio.wait([slow.create_task(reader.run(lambda: time.sleep(0.2)))], timeout=0.01))
    for task in asyncio.all_tasks(slow):
        task.cancel()
    slow.run_until_complete(asyncio.sleep(0))
    slow.close()
    assert asyncio.run(reader.run(lambda: 5)) == 5


def test_a_loop_that_closes_while_its_work_ends_does_not_end_the_thread():
    reader, closed = ReaderThread(), threading.Event()
    loop = asyncio.new_event_loop()

    async def run():
        working = asyncio.create_task(reader.run(lambda: closed.wait(5)))
        await asyncio.sleep(0.05)
        working.cancel()

    loop.run_until_complete(run())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    loop.is_closed = lambda: False  # as it is just before it closes
    closed.set()
    assert asyncio.run(asyncio.wait_for(reader.run(lambda: 5), 5)) == 5
    del loop.is_closed


def test_a_process_forked_after_work_has_a_thread_of_its_own():
    async def run():
        return await asyncio.wait_for(READER.run(lambda: 7), 5)

    assert asyncio.run(run()) == 7
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if asyncio.run(run()) == 7 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
