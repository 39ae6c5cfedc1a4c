# environment: pydantic-ai
"""pydantic-ai: agents on a chat model of an OpenAI-compatible server."""

from common import LONG, MODEL, SCENE, TOKEN, URL, Client, holds, said, same
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelContextWindowExceededError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

client = Client("pydantic-ai", "pydantic-ai-slim")
GREEDY = {"temperature": 0, "max_tokens": 16}


def agent(model: str = MODEL, token: str = TOKEN, **options) -> Agent:
    api = AsyncOpenAI(base_url=URL, api_key=token, max_retries=0)
    chat = OpenAIChatModel(model, provider=OpenAIProvider(openai_client=api))
    return Agent(chat, system_prompt="Padua.", model_settings=GREEDY, **options)


def expected(*turns: str) -> str:
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
    return said(messages=[{"role": "system", "content": "Padua."}, *messages], max_tokens=16)


@client.works("chat")
async def chat():
    first = await agent().run("They call me Katharina.")
    same(first.output, expected("They call me Katharina."))
    second = await agent().run("You lie.", message_history=first.all_messages())
    same(second.output, expected("They call me Katharina.", first.output, "You lie."))


@client.works("stream")
async def stream():
    async with agent().run_stream("They call me Katharina.") as answer:
        parts = [p async for p in answer.stream_text(delta=True, debounce_by=None)]
    same("".join(parts), expected("They call me Katharina."))
    holds(len(parts) > 4, len(parts), "parts")


@client.works("usage in streams")
async def usage():
    async with agent().run_stream("They call me Katharina.") as answer:
        async for _ in answer.stream_text():
            pass
    same(answer.usage.output_tokens, 16)


@client.works("cached tokens")
async def cached():
    await agent().run(SCENE)
    found = (await agent().run(SCENE)).usage.cache_read_tokens
    holds(found >= 64, found, "cached tokens")


@client.works("stop")
async def stop():
    whole = expected("They call me Katharina.")
    settings = {**GREEDY, "stop_sequences": [whole[8:12]]}
    answer = await agent().run("They call me Katharina.", model_settings=settings)
    same(answer.output, whole[: whole.index(whole[8:12])].strip())


@client.works("context overflow")
async def overflow():
    try:
        await agent().run(LONG)
    except ModelContextWindowExceededError as error:
        holds("This model's maximum context length is 2048 tokens" in str(error), error)
        return
    raise AssertionError("answered")


@client.refuses("unknown model", "nobody")
async def unknown_model():
    await agent(model="nobody").run("hear")


@client.refuses("wrong token", "401")
async def wrong_token():
    await agent(token="wrong").run("hear")


@client.refuses("tools", "tools")
async def tools():
    def weather(place: str) -> str:
        """The weather of a place."""
        return place

    await agent(tools=[weather]).run("hear")


class Name(BaseModel):
    name: str


@client.refuses("json_schema", "json_schema")
async def json_schema():
    await agent(output_type=NativeOutput(Name)).run("hear")


if __name__ == "__main__":
    client.run()
