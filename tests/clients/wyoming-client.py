"""Asks a running bitnetd over Wyoming as Home Assistant does; see the script beside it. Its built-in model answers."""

import asyncio
import sys
import time

from wyoming.asr import Transcript
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.handle import NotHandled
from wyoming.info import Describe, Info
from wyoming.intent import Entity, Intent, NotRecognized, Recognize
from wyoming.ping import Ping, Pong

PORT = int(sys.argv[1])


def connect() -> AsyncTcpClient:
    return AsyncTcpClient("127.0.0.1", PORT)


async def answer(client: AsyncTcpClient, question) -> Event:
    await client.write_event(question.event())
    event = await asyncio.wait_for(client.read_event(), 60)
    assert event is not None, "the connection was closed"
    return event


async def describe() -> None:
    begun = time.monotonic()
    async with connect() as client:
        info = Info.from_event(await answer(client, Describe()))
    took = time.monotonic() - begun
    assert took < 1, f"Home Assistant waits for one second, and this took {took:.2f}"
    (program,) = info.intent
    assert program.installed and program.name == "bitnetd", program
    assert program.attribution.name and program.attribution.url and program.version and program.description
    assert [model.languages for model in program.models if model.installed] == [["en"]], program
    assert not (info.asr or info.tts or info.handle or info.wake or info.mic or info.snd or info.satellite)


async def sentences() -> None:
    context = {"conversation_id": "01KBC3"}
    async with connect() as client:
        for question in (Transcript, Recognize):
            event = await answer(client, question("turn on the kitchen lights", context=context))
            assert Intent.is_type(event.type), event
            intent = Intent.from_event(event)
            assert intent.name == "HassTurnOn" and intent.text and intent.context == context, intent
            assert Entity("area", "kitchen") in intent.entities, intent
        event = await answer(client, Transcript("What is the capital of France?", context=context, language="en"))
        assert NotRecognized.is_type(event.type) and NotRecognized.from_event(event).text, event
        assert NotRecognized.from_event(event).context == context, event
        assert Pong.from_event(await answer(client, Ping("a"))).text == "a"


async def refusal() -> None:
    async with connect() as client:
        event = await answer(client, Transcript("x" * 70_000))
        assert Error.is_type(event.type) and Error.from_event(event).code == "too_large", event
        event = await client.read_event()
        assert event is not None and NotHandled.from_event(event).text == Error.from_event(event).text, event
        assert await client.read_event() is None, "the connection goes on"


async def many() -> None:
    async def one(area: str) -> None:
        async with connect() as client:
            intent = Intent.from_event(await answer(client, Transcript(f"turn off the {area} lights")))
            assert any(area in str(entity.value) for entity in intent.entities), intent

    areas = ["kitchen", "bedroom", "office", "garage", "bathroom", "basement", "attic", "hallway"]
    await asyncio.gather(*map(one, areas))


async def main() -> None:
    for step in (describe, sentences, refusal, many):
        await step()
        print(f"{step.__name__}: ok")


asyncio.run(main())
