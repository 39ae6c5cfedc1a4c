# environment: llama-index
"""LlamaIndex: OpenAILike, which it has for servers that speak OpenAI's API."""

from common import (
    CHAT,
    LONG,
    MODEL,
    SCENE,
    SCHEMA,
    TOKEN,
    URL,
    Client,
    holds,
    said,
    same,
    text,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

client = Client("LlamaIndex", "llama-index-llms-openai-like")
server = {
    "model": MODEL,
    "api_base": URL,
    "api_key": TOKEN,
    "max_retries": 0,
    "temperature": 0,
    "max_tokens": 16,
    "context_window": 2048,
}
writer = OpenAILike(is_chat_model=False, **server)
talker = OpenAILike(is_chat_model=True, **server)
TALK = [ChatMessage(role=m["role"], content=m["content"]) for m in CHAT]


@client.works("completion")
def completion():
    same(writer.complete(SCENE).text, text(prompt=SCENE))


@client.works("chat")
def talk():
    same(talker.chat(TALK).message.content, said(messages=CHAT, max_tokens=16))


@client.works("asynchronous")
async def asynchronous():
    same((await talker.achat(TALK)).message.content, said(messages=CHAT, max_tokens=16))


@client.works("stream")
def stream():
    parts = list(writer.stream_complete(SCENE))
    same("".join(p.delta for p in parts), text(prompt=SCENE))
    holds(len(parts) > 4, len(parts), "parts")
    whole = "".join(p.delta or "" for p in talker.stream_chat(TALK))
    same(whole, said(messages=CHAT, max_tokens=16))


@client.works("cached tokens")
def cached():
    talk = [ChatMessage(role="user", content=SCENE)]
    talker.chat(talk)
    details = talker.chat(talk).raw.usage.prompt_tokens_details
    holds(details.cached_tokens >= 64, details)


@client.works("stop")
def stop():
    whole = text(prompt=SCENE)
    same(writer.complete(SCENE, stop=[whole[8:12]]).text, whole[: whole.index(whole[8:12])])


@client.works("log-probabilities")
def logprobs():
    answer = talker.chat(TALK, logprobs=True, top_logprobs=2)
    same("".join(t[0].token for t in answer.logprobs), answer.message.content)


@client.refuses("context overflow", "This model's maximum context length is 2048 tokens")
def overflow():
    talker.chat([ChatMessage(role="user", content=LONG)])


@client.refuses("unknown model", "nobody")
def unknown_model():
    OpenAILike(is_chat_model=True, **{**server, "model": "nobody"}).chat(TALK)


@client.refuses("wrong token", "401")
def wrong_token():
    OpenAILike(is_chat_model=True, **{**server, "api_key": "wrong"}).chat(TALK)


@client.refuses("tools", "tools")
def tools():
    def weather(place: str) -> str:
        """The weather of a place."""
        return place

    caller = OpenAILike(is_chat_model=True, is_function_calling_model=True, **server)
    caller.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg="hear")


@client.refuses("json_schema", "json_schema")
def json_schema():
    talker.chat(TALK, response_format=SCHEMA)


if __name__ == "__main__":
    client.run()
