# environment: openai
"""LangChain: ChatOpenAI, and OpenAI for completions."""

from common import (
    LONG,
    MODEL,
    OTHERS,
    SCENE,
    TOKEN,
    URL,
    Client,
    complete,
    holds,
    said,
    same,
    text,
    tokens,
)
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

client = Client("LangChain", "langchain-openai")
server = {"model": MODEL, "base_url": URL, "api_key": TOKEN, "max_retries": 0}
llm = OpenAI(temperature=0, max_tokens=16, **server)
talker = ChatOpenAI(temperature=0, max_tokens=16, **server)
TALK = [SystemMessage("Padua. A public place."), HumanMessage("They call me Katharina.")]
PLAIN_TALK = [
    {"role": "system", "content": "Padua. A public place."},
    {"role": "user", "content": "They call me Katharina."},
]


@client.works("completion")
def completion():
    same(llm.invoke(SCENE), text(prompt=SCENE))


@client.works("several prompts")
def several():
    want = [text(prompt=p) for p in [SCENE, *OTHERS]]
    same(llm.batch([SCENE, *OTHERS]), want)
    same([g[0].text for g in llm.generate([SCENE, *OTHERS]).generations], want)  # in one request


@client.works("token ids")
def token_ids():
    same(llm.client.create(prompt=tokens(SCENE), model=MODEL, temperature=0).choices[0].text,
         text(prompt=SCENE))  # fmt: skip


@client.works("chat")
def talk():
    same(talker.invoke(TALK).content, said(messages=PLAIN_TALK, max_tokens=16))


@client.works("asynchronous")
async def asynchronous():
    same((await talker.ainvoke(TALK)).content, said(messages=PLAIN_TALK, max_tokens=16))
    same(await llm.ainvoke(SCENE), text(prompt=SCENE))


@client.works("stream")
def stream():
    parts = list(llm.stream(SCENE))
    same("".join(parts), text(prompt=SCENE))
    holds(len(parts) > 4, len(parts), "parts")
    same("".join(p.content for p in talker.stream(TALK)), said(messages=PLAIN_TALK, max_tokens=16))


@client.works("usage in streams")
def usage():
    counts = [p.usage_metadata for p in talker.stream(TALK, stream_usage=True) if p.usage_metadata]
    same([u["output_tokens"] for u in counts], [16])


@client.works("cached tokens")
def cached():
    talk = [HumanMessage(SCENE)]
    talker.invoke(talk)
    details = talker.invoke(talk).usage_metadata["input_token_details"]
    holds(details["cache_read"] >= 64, details)


@client.works("stop")
def stop():
    whole = text(prompt=SCENE)
    same(llm.bind(stop=[whole[8:12]]).invoke(SCENE), whole[: whole.index(whole[8:12])])


@client.works("n")
def n():
    three = OpenAI(temperature=1, max_tokens=16, n=3, best_of=3, seed=7, **server)
    got = [g.text for g in three.generate([SCENE]).generations[0]]
    want = complete(prompt=SCENE, max_tokens=16, n=3, seed=7, temperature=1)["choices"]
    same(got, [c["text"] for c in want])


@client.works("log-probabilities")
def logprobs():
    answer = talker.bind(logprobs=True, top_logprobs=2).invoke(TALK)
    got = answer.response_metadata["logprobs"]["content"]
    same("".join(t["token"] for t in got), answer.content)
    same([len(t["top_logprobs"]) for t in got], [2] * 16)


@client.works("cache_salt")
def salt():
    mine = ChatOpenAI(
        temperature=0, max_tokens=16, extra_body={"cache_salt": "langchain"}, **server
    )
    talk = [HumanMessage(SCENE)]
    first, second = mine.invoke(talk), mine.invoke(talk)
    same(first.usage_metadata["input_token_details"]["cache_read"], 0)
    holds(second.usage_metadata["input_token_details"]["cache_read"] >= 64)
    same(first.content, second.content)


@client.works("context overflow")
def overflow():
    try:
        talker.invoke(LONG)
    except ContextOverflowError:
        return
    raise AssertionError("answered")


@client.refuses("unknown model", "nobody")
def unknown_model():
    ChatOpenAI(**{**server, "model": "nobody"}).invoke(TALK)


@client.refuses("wrong token", "401")
def wrong_token():
    ChatOpenAI(**{**server, "api_key": "wrong"}).invoke(TALK)


@client.refuses("tools", "tools")
def tools():
    def weather(place: str) -> str:
        """The weather of a place."""
        return place

    talker.bind_tools([weather]).invoke(TALK)


@client.refuses("json_schema", "json_schema")
def json_schema():
    class Name(BaseModel):
        name: str

    talker.with_structured_output(Name, method="json_schema").invoke(TALK)


if __name__ == "__main__":
    client.run()
