"""Clients that people use, unchanged but for their base URL, against a whole node before a stand-in for a big model.

OpenAI's own client, pydantic-ai's (an agent framework) and `llm chat` (a chat in the terminal, by its own command).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from bench.stand_in import stand_in

import experts as sample
from puhui.evolve.traffic import sort_request
from puhui.gateway.chat import read_request
from puhui.store.database import open_store, sqlite_url
from puhui.trust.keys import load_or_create_key
from real_nodes import real_node

SAID: list[Any] = [{"role": "user", "content": "hello"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


class Place(pydantic.BaseModel):
    """What the structured answers hold."""

    city: str
    beds: int


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    return []


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, seen: list[dict[str, Any]]) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("node")
    with stand_in(seen) as upstream, real_node(folder, upstream) as served:
        yield f"{served}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="sk-mine", max_retries=0) as opened:
        yield opened


def test_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="gpt-4o", messages=SAID, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "HELLO"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 14


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="gpt-4o", messages=SAID) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == "HELLO"


def test_tools_and_their_answers(client: openai.OpenAI, seen: list[dict[str, Any]]) -> None:
    reply = client.chat.completions.create(model="gpt-4o", messages=SAID, tools=TOOLS, tool_choice="auto")
    assert reply.choices[0].finish_reason == "tool_calls"
    [call] = reply.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Ulm"}
    answered = [
        *SAID,
        reply.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    after = client.chat.completions.create(model="gpt-4o", messages=answered)
    assert after.choices[0].message.content == "SUNNY"
    assert seen[-1]["body"]["messages"] == answered

    stream = client.chat.completions.create(model="gpt-4o", messages=SAID, tools=TOOLS, stream=True)
    calls = [each for chunk in stream for choice in chunk.choices for each in choice.delta.tool_calls or []]
    assert [each.function.name for each in calls if each.function] == ["weather"]


def test_structured_answers(client: openai.OpenAI, seen: list[dict[str, Any]]) -> None:
    reply = client.chat.completions.parse(model="gpt-4o", messages=SAID, response_format=Place)
    assert reply.choices[0].message.parsed == Place(city="text", beds=3)
    assert seen[-1]["body"]["response_format"]["json_schema"]["strict"] is True


def test_settings_reach_the_big_model(client: openai.OpenAI, seen: list[dict[str, Any]]) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]}]
    reply = client.chat.completions.create(
        model="gpt-4o", messages=messages, n=3, stop=["x"], seed=7, logprobs=True, top_logprobs=2,
        extra_headers={"openai-organization": "org-9", "x-mine": "1"}, extra_body={"nobody_knows": {"a": [1.5]}},
    )  # fmt: skip
    assert [choice.message.content for choice in reply.choices] == ["WHAT IS IT?"] * 3
    got = seen[-1]
    assert got["body"] == {
        "model": "gpt-4o", "messages": messages, "n": 3, "stop": ["x"], "seed": 7, "logprobs": True,
        "top_logprobs": 2, "nobody_knows": {"a": [1.5]},
    }  # fmt: skip
    assert got["headers"]["openai-organization"] == "org-9"
    assert got["headers"]["x-mine"] == "1"
    assert got["headers"]["user-agent"].startswith("OpenAI/Python")
    assert got["headers"]["authorization"] == "Bearer sk-mine"


def test_embeddings_responses_completions_and_models(client: openai.OpenAI) -> None:
    vectors = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert [each.embedding for each in vectors.data] == [[0.5, -0.5, 0.25, 1.0]] * 2
    assert client.responses.create(model="gpt-4o", input="hello").output_text == "HELLO"
    with client.responses.stream(model="gpt-4o", input="hello") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "HELLO"
    assert client.completions.create(model="gpt-4o", prompt="hello").choices[0].text == "HELLO"
    assert "org/small" in [model.id for model in client.models.list()]
    assert client.models.retrieve("org/small").id == "org/small"


async def test_async(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-mine", max_retries=0) as client:
        reply = await client.chat.completions.create(model="gpt-4o", messages=SAID)
        assert reply.choices[0].message.content == "HELLO"
        stream = await client.chat.completions.create(model="gpt-4o", messages=SAID, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "HELLO"
        assert (await client.responses.create(model="gpt-4o", input="hi")).output_text == "HI"
        parsed = await client.chat.completions.parse(model="gpt-4o", messages=SAID, response_format=Place)
        assert parsed.choices[0].message.parsed == Place(city="text", beds=3)


def test_errors_are_the_clients_own_classes(client: openai.OpenAI, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="gpt-4o", messages=SAID, extra_body={"puhui": {"needs": {"x": 1}}})
    assert bad.value.param == "puhui.needs"
    with pytest.raises(openai.UnprocessableEntityError) as unmet:
        client.chat.completions.create(model="gpt-4o", messages=SAID, extra_headers={"x-puhui-privacy": "device"})
    assert unmet.value.code == "needs_unmet"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.APIStatusError) as large:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x" * (9 << 20)}])
    assert large.value.status_code == 413
    with real_node(tmp_path, "http://127.0.0.1:9/v1", keys_required=True) as url:
        stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="pk-puhui-wrong", max_retries=0)
        with stranger, pytest.raises(openai.AuthenticationError) as wrong:
            stranger.chat.completions.create(model="m", messages=SAID)
        assert wrong.value.code == "invalid_api_key"


# --- an expert's answers, as a client sees them ---------------------------------------------------------------


def asked_of_the_expert(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": sample.SYSTEM}, {"role": "user", "content": question}]
    return {"model": "m", "messages": messages} | more


@pytest.fixture
def with_expert(tmp_path: Path) -> Iterator[openai.OpenAI]:
    """A client of a node with experts in place: for no settings, for one token, and for a JSON schema that its
    answers are not valid by. The big model cannot be reached."""
    key = load_or_create_key(tmp_path / "keys" / "node.key")
    store = open_store(sqlite_url(tmp_path / "puhui.db"))
    for settings in ({}, {"max_tokens": 1}, {"stop": ["mon"]}, {"response_format": {"type": "json_object"}}):
        found = sort_request(read_request(json.dumps(asked_of_the_expert("x", **settings)).encode(), {}))
        assert found is not None
        sample.promote(store, tmp_path / "experts", key, found.group)
    store.close()
    with real_node(tmp_path, "http://127.0.0.1:9/v1") as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)


def test_an_experts_answer_is_whole_or_streamed_with_usage(with_expert: openai.OpenAI) -> None:
    question = asked_of_the_expert("about my balance and cash")
    reply = with_expert.chat.completions.create(**question)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("money", "stop")
    assert reply.usage is not None
    assert reply.usage.total_tokens == 0  # of a big model: none was read or written
    chunks = list(with_expert.chat.completions.create(**question, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "money"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    without = list(with_expert.chat.completions.create(**question, stream=True))
    assert len(without) == len(chunks) - 1


def test_an_experts_answer_honours_the_settings_or_the_big_model_is_asked(with_expert: openai.OpenAI) -> None:
    question = "about my balance and cash"
    reply = with_expert.chat.completions.create(**asked_of_the_expert(question, max_tokens=1))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("money", "length")
    # "money" is known to be the big model's own word under each of these settings, so it is given.
    known = with_expert.chat.completions.create(**asked_of_the_expert(question, stop=["mon"]))
    assert known.choices[0].message.content == "money"
    for settings in ({"max_tokens": 7}, {"tools": TOOLS}, {"n": 2}, {"logprobs": True}):  # nobody learned these
        with pytest.raises(openai.InternalServerError) as down:
            with_expert.chat.completions.create(**asked_of_the_expert(question, **settings))
        assert down.value.status_code == 503
    with pytest.raises(openai.InternalServerError):
        with_expert.chat.completions.create(
            **asked_of_the_expert(question), extra_body={"puhui": {"needs": {"quality": 1}}}
        )


# --- others' clients ------------------------------------------------------------------------------------------


def test_an_agent_of_pydantic_ai(url: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=url, api_key="sk-mine")
    agent = Agent(OpenAIChatModel("gpt-4o", provider=provider))
    assert agent.run_sync("hello").output == "HELLO"
    told = Agent(OpenAIResponsesModel("gpt-4o", provider=provider))
    assert "HELLO" in told.run_sync("hello").output


async def test_an_agent_of_pydantic_ai_that_streams(url: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(base_url=url, api_key="sk-mine")))
    async with agent.run_stream("hello there") as answer:
        assert await answer.get_output() == "HELLO THERE"


def test_llm_chat(url: str, tmp_path: Path) -> None:
    """The chat program's own command, told of the node as its documentation says."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: puhui\n  model_name: gpt-4o\n  api_base: {url}\n  api_key_name: openai\n"
    )
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "sk-mine"}
    ran = subprocess.run(
        [sys.executable, "-m", "llm", "chat", "-m", "puhui"],
        input="hello\nand again\nexit\n",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "HELLO" in ran.stdout
    assert "AND AGAIN" in ran.stdout
