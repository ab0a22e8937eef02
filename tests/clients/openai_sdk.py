"""OpenAI's Python SDK against a running daemon with the built-in model; tests/clients/openai starts both.

Every answer is also checked strictly against the SDK's own types, since the SDK itself takes anything.
"""

import asyncio
import json
import os
import socket
import sys
import time
import traceback

import httpx
import openai
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

SOCKET, TCP, TOKEN = os.environ["BITNETD_SOCKET"], os.environ["BITNETD_TCP"], os.environ["BITNETD_TOKEN"]
ASKED = [{"role": "user", "content": "turn on the kitchen lights"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switches a light",
        "parameters": {
            "type": "object",
            "properties": {"area": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
            "required": ["area", "on"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
FLAT_TOOL = {"type": "function", **TOOL["function"]}
# An answer of this form takes the model some time.
LONG = {"response_format": {"type": "regex", "regex": "[a-z ]{2000}"}}


class Switch(BaseModel):
    on: bool
    area: str


def strict(kind, answer):
    """The SDK's types leave out and add nothing when they are checked."""
    TypeAdapter(kind).validate_json(answer.to_json() if hasattr(answer, "to_json") else answer, strict=True)
    return answer


def models(client):
    (model,) = client.models.list().data
    strict(Model, model)
    assert client.models.retrieve(model.id).id == model.id
    refused(openai.NotFoundError, "model_not_found", "model", lambda: client.models.retrieve("gpt-5"))


def chat(client):
    answer = strict(ChatCompletion, client.chat.completions.create(model="any", messages=ASKED))
    choice = answer.choices[0]
    assert json.loads(choice.message.content)["intent"] == "HassTurnOn" and choice.finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    parts = [{"role": "user", "content": [{"type": "text", "text": ASKED[0]["content"]}]}]
    same = client.chat.completions.create(
        model="any", messages=parts, max_completion_tokens=200, seed=-5, stop=["\n\n"], user="u", extra_body={"top_k": 5.0}
    )
    assert same.choices[0].message.content == choice.message.content
    short = client.chat.completions.create(model="any", messages=ASKED, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2
    several = client.chat.completions.create(
        model="any", messages=ASKED, n=3, temperature=1, seed=1, max_tokens=9
    )
    strict(ChatCompletion, several)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    tokens = client.chat.completions.create(model="any", messages=ASKED, logprobs=True, top_logprobs=2)
    content = strict(ChatCompletion, tokens).choices[0].logprobs.content
    assert "".join(token.token for token in content) == choice.message.content
    assert all(len(token.top_logprobs) == 2 for token in content)


def chat_streams(client):
    whole = client.chat.completions.create(model="any", messages=ASKED).choices[0].message.content
    for keys in [{}, {"extra_body": {"cache": False}}, {"logprobs": True}]:
        stream = client.chat.completions.create(
            model="any", messages=ASKED, stream=True, stream_options={"include_usage": True}, **keys
        )
        chunks = [strict(ChatCompletionChunk, chunk) for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole, text
        assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
        assert chunks[-2].choices[0].finish_reason == "stop"
    with client.chat.completions.stream(model="any", messages=ASKED, n=2) as stream:
        list(stream)
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [whole, whole]


def tools(client):
    answer = client.chat.completions.create(model="any", messages=ASKED, tools=[TOOL], tool_choice="required")
    choice = strict(ChatCompletion, answer).choices[0]
    (call, *_) = choice.message.tool_calls
    assert call.function.name == "set_light" and set(json.loads(call.function.arguments)) == {"area", "on"}
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    again = [*ASKED, choice.message.model_dump(), result]
    client.chat.completions.create(model="any", messages=again, tools=[TOOL], tool_choice="none", max_tokens=9)
    named = {"type": "function", "function": {"name": "set_light"}}
    with client.chat.completions.stream(
        model="any", messages=ASKED, tools=[TOOL], tool_choice=named, parallel_tool_calls=False
    ) as stream:
        list(stream)
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.parsed_arguments["area"] in ("kitchen", "hall")


def schemas(client):
    answer = client.chat.completions.parse(model="any", messages=ASKED, response_format=Switch)
    assert isinstance(answer.choices[0].message.parsed, Switch)
    answer = client.chat.completions.create(model="any", messages=ASKED, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)
    response = client.responses.parse(model="any", input=ASKED, text_format=Switch)
    assert isinstance(response.output_parsed, Switch)
    try:
        client.chat.completions.parse(model="any", messages=ASKED, response_format=Switch, max_tokens=2)
    except openai.LengthFinishReasonError:
        return
    raise AssertionError("a broken JSON was taken for a whole one")


def completions(client):
    answer = strict(Completion, client.completions.create(model="any", prompt=ASKED[0]["content"], logprobs=2))
    choice = answer.choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text and len(choice.logprobs.top_logprobs[0]) in (2, 3)
    chunks = list(client.completions.create(model="any", prompt=[ASKED[0]["content"]], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason == "stop"


def responses(client):
    answer = strict(Response, client.responses.create(model="any", input=ASKED[0]["content"], instructions="Be short."))
    assert answer.status == "completed" and json.loads(answer.output_text)
    short = strict(Response, client.responses.create(model="any", input=ASKED, max_output_tokens=2))
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    for event in client.responses.create(model="any", input=ASKED, stream=True):
        strict(ResponseStreamEvent, event)
    assert event.type == "response.completed" and event.response.usage.output_tokens > 0
    with client.responses.stream(model="any", input=ASKED, extra_body={"cache": False}) as stream:
        kinds = [event.type for event in stream]
        text = stream.get_final_response().output_text
    assert kinds.count("response.output_text.delta") > 2 and text == event.response.output_text
    called = client.responses.create(model="any", input=ASKED, tools=[FLAT_TOOL], tool_choice="required")
    call = strict(Response, called).output[0]
    assert call.type == "function_call" and set(json.loads(call.arguments)) == {"area", "on"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    again = [*ASKED, *called.output, output]
    client.responses.create(model="any", input=again, tools=[FLAT_TOOL], tool_choice="none", max_output_tokens=9)
    with client.responses.stream(model="any", input=ASKED, tools=[FLAT_TOOL], tool_choice="required") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output[0].type == "function_call"
    assert "response.function_call_arguments.done" in kinds
    previous = lambda: client.responses.create(model="any", input="a", previous_response_id="resp_1")
    refused(openai.BadRequestError, None, "previous_response_id", previous)


def refused(kind, code, param, call):
    try:
        call()
    except kind as error:
        assert (error.code, error.param) == (code, param), (error.code, error.param, error)
        return
    raise AssertionError(f"not refused with {kind}")


def errors(client):
    create = client.chat.completions.create
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]
    bad = openai.BadRequestError
    refused(bad, None, "messages[0].content[0]", lambda: create(model="any", messages=image))
    refused(bad, None, "max_completion_tokens", lambda: create(model="any", messages=ASKED, max_completion_tokens=0))
    refused(bad, None, "modalities", lambda: create(model="any", messages=ASKED, modalities=["text", "audio"]))
    refused(bad, None, "messages", lambda: create(model="any", messages=[]))
    long = [{"role": "user", "content": "light " * 5000}]
    refused(bad, "context_length_exceeded", None, lambda: create(model="any", messages=long))
    huge = [{"role": "user", "content": "x" * (1 << 20)}]
    for stream in (False, True):
        try:
            create(model="any", messages=huge, stream=stream)
            raise AssertionError("1 MiB was read")
        except openai.APIStatusError as error:
            assert error.status_code == 413, error
    try:
        client.post("/nowhere", cast_to=object, body={})
        raise AssertionError("there is no such route")
    except openai.NotFoundError:
        pass


def counts():
    """The daemon's own counts of requests, over the line protocol."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(SOCKET)
        connection.sendall(b'{"telemetry":true}\n')
        return json.loads(connection.makefile().readline())["requests"]


def abort(client):
    before = counts()["cancelled"]
    for _ in range(3):
        stream = client.chat.completions.create(model="any", messages=ASKED, stream=True, extra_body=LONG)
        chunks = iter(stream)
        next(chunks), next(chunks)
        stream.close()
    began = time.monotonic()
    chat_stream = client.chat.completions.create(model="any", messages=ASKED)
    assert chat_stream.choices[0].finish_reason == "stop"
    assert time.monotonic() - began < 5, "the aborted answers were computed to their end"
    for _ in range(50):
        if counts()["cancelled"] == before + 3:
            return
        time.sleep(0.1)
    raise AssertionError(f"{counts()['cancelled'] - before} of 3 were cancelled")


async def many_at_once(client):
    short = {"model": "any", "messages": ASKED, "max_tokens": 4, "extra_body": {"cache": False}}

    async def one(index):
        if index % 2:
            return (await client.chat.completions.create(**short)).choices[0].message.content
        stream = await client.chat.completions.create(**short, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    answers = await asyncio.gather(*(one(index) for index in range(32)))
    assert len(set(answers)) == 1 and len(answers) == 32, set(answers)


def token(_):
    without = OpenAI(base_url=f"{TCP}/v1", api_key="another", max_retries=0)
    refused(openai.AuthenticationError, "invalid_api_key", None, lambda: without.models.list())


def main():
    transport = httpx.HTTPTransport(uds=SOCKET)
    over_socket = OpenAI(base_url="http://localhost/v1", api_key="none", http_client=httpx.Client(transport=transport))
    over_tcp = OpenAI(base_url=f"{TCP}/v1", api_key=TOKEN)
    failed = 0

    def run(name, check):
        nonlocal failed
        began = time.monotonic()
        try:
            check()
            print(f"  ok      {name} {time.monotonic() - began:.1f} s", flush=True)
        except Exception:
            failed += 1
            print(f"  failed  {name}\n{traceback.format_exc()}", flush=True)

    checks = [models, chat, chat_streams, tools, schemas, completions, responses, errors, abort]
    for way, client in [("socket", over_socket), ("tcp", over_tcp)]:
        for check in checks:
            run(f"{check.__name__} ({way})", lambda: check(client))
    run("token (tcp)", lambda: token(None))

    def at_once(way):
        async def run_all():
            if way == "socket":
                http = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=SOCKET))
                client = AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=20)
            else:
                client = AsyncOpenAI(base_url=f"{TCP}/v1", api_key=TOKEN, max_retries=20)
            await many_at_once(client)

        asyncio.run(run_all())

    for way in ("socket", "tcp"):
        run(f"32 at once ({way})", lambda: at_once(way))
    sys.exit(failed > 0)


main()
