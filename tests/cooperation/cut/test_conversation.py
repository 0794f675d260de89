"""Requests and answers between a link's loop and the thread that trains."""

from __future__ import annotations

import asyncio

import pytest

from taskedge.cooperation.cut.conversation import Conversation, CutEnded, LoopThread
from taskedge.cooperation.protocol.message import Message


def test_requests_are_answered_one_by_one_from_another_thread():
    conversation, answers = Conversation(patience=5), []

    async def ask():
        for number in range(3):
            answers.append(await conversation.handle(Message("ask", {"number": number})))

    with LoopThread() as loop:
        loop.start(ask())
        for number in range(3):
            request = conversation.receive()
            assert request.header["number"] == number
            conversation.answer(Message("answer", {"number": -number}))
        loop.run(asyncio.sleep(0.01))
    assert [answer.header["number"] for answer in answers] == [0, -1, -2]


def test_the_end_of_the_link_is_told():
    conversation = Conversation()

    async def fail():
        raise ValueError("cut")

    with LoopThread() as loop:
        loop.start(fail(), conversation.end)
        with pytest.raises(CutEnded, match="cut"):
            conversation.receive()


def test_patience_ends():
    with pytest.raises(CutEnded, match="asked nothing"):
        Conversation(patience=0.1).receive()


def test_an_answer_that_nobody_waits_for_is_dropped():
    conversation = Conversation(patience=5)

    async def ask():
        async with asyncio.timeout(0.05):
            await conversation.handle(Message("ask"))

    with LoopThread() as loop:
        loop.start(ask())
        conversation.receive()
        loop.run(asyncio.sleep(0.2))
        conversation.answer(Message("late"))
    assert not conversation.has_request
