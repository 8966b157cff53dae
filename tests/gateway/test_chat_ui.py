"""The client code of chat pages: Vercel's AI SDK, which they use to speak to any OpenAI-compatible server, in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from bench.stand_in import stand_in

from browsing import ROOT
from real_nodes import real_node

WEB = ROOT / "build" / "web"
pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed"),
    pytest.mark.skipif(not (WEB / "node_modules" / "ai").is_dir(), reason="the AI SDK: `make browser` fetches it"),
]
BEGIN = """
  import { generateText, streamText, tool } from "ai";
  import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
  import { z } from "zod";
  const where = { name: "puhui", baseURL: process.argv[1], apiKey: "sk-mine", includeUsage: true };
  const node = createOpenAICompatible(where);
  const model = node("gpt-4o");
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with stand_in() as upstream, real_node(tmp_path_factory.mktemp("node"), upstream) as served:
        yield f"{served}/v1"


def told(url: str, script: str) -> Any:
    """What the script prints, as JSON."""
    ran = subprocess.run(
        ["node", "--input-type=module", "-e", BEGIN + script, url],
        cwd=WEB,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_page_that_streams(url: str) -> None:
    """As a page's route does it: messages of several turns in, the events of its own protocol out."""
    found = told(
        url,
        """
        const messages = [{ role: "user", content: "hello" }, { role: "assistant", content: "HELLO" },
                          { role: "user", content: "and again" }];
        const answer = streamText({ model, messages });
        const events = (await new Response(answer.toUIMessageStreamResponse().body).text()).split("\\n\\n");
        const objects = events.filter((event) => event.startsWith("data: {"));
        const kinds = objects.map((event) => JSON.parse(event.slice(6)).type);
        console.log(JSON.stringify({ text: await answer.text, usage: await answer.usage, kinds }));
        """,
    )
    assert found["text"] == "AND AGAIN"
    assert found["usage"]["totalTokens"] > 0
    assert found["kinds"][0] == "start"
    assert {"text-delta", "finish"} <= set(found["kinds"])


def test_whole_answers_and_tools(url: str) -> None:
    found = told(
        url,
        """
        const { text, finishReason } = await generateText({ model, prompt: "hello" });
        const weather = tool({ description: "The weather of a city", inputSchema: z.object({ city: z.string() }) });
        const { toolCalls } = await generateText({ model, prompt: "call the tool", tools: { weather } });
        console.log(JSON.stringify({ text, finishReason, tools: toolCalls.map(({ toolName }) => toolName) }));
        """,
    )
    assert (found["text"], found["finishReason"]) == ("HELLO", "stop")
    assert found["tools"] == ["weather"]


def test_an_error_is_understood(url: str) -> None:
    found = told(
        url,
        """
        try {
          await generateText({ model: node("x".repeat(3000)), prompt: "hello", maxRetries: 0 });
        } catch (error) {
          console.log(JSON.stringify({ status: error.statusCode, message: error.message }));
        }
        """,
    )
    assert found["status"] == 400
    assert "model" in found["message"]
