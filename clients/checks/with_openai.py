# environment: openai
"""OpenAI's client for Python."""

import openai
from common import (
    CHAT,
    LONG,
    MODEL,
    OTHERS,
    SCENE,
    SCHEMA,
    TOKEN,
    TOOL,
    URL,
    Client,
    chat,
    complete,
    holds,
    said,
    same,
    text,
    tokens,
)

client = Client("OpenAI, Python", "openai")
api = openai.OpenAI(base_url=URL, api_key=TOKEN, max_retries=0)
greedy = {"model": MODEL, "temperature": 0, "max_tokens": 16}


@client.works("models")
def models():
    same([m.id for m in api.models.list()], [MODEL])
    same(api.models.retrieve(MODEL).id, MODEL)


@client.works("completion")
def completion():
    same(api.completions.create(prompt=SCENE, **greedy).choices[0].text, text(prompt=SCENE))


@client.works("several prompts")
def several():
    answer = api.completions.create(prompt=[SCENE, *OTHERS], **greedy)
    same([c.index for c in answer.choices], [0, 1, 2])
    same([c.text for c in answer.choices], [text(prompt=p) for p in [SCENE, *OTHERS]])
    one = api.completions.create(prompt=[SCENE], **greedy)
    same([c.text for c in one.choices], [text(prompt=SCENE)])


@client.works("token ids")
def token_ids():
    answer = api.completions.create(prompt=tokens(SCENE), **greedy)
    same(answer.choices[0].text, text(prompt=SCENE))
    answer = api.completions.create(prompt=[tokens(p) for p in OTHERS], **greedy)
    same([c.text for c in answer.choices], [text(prompt=p) for p in OTHERS])


@client.works("chat")
def talk():
    answer = api.chat.completions.create(messages=CHAT, **greedy)
    same(answer.choices[0].message.content, said(messages=CHAT, max_tokens=16))
    same(answer.choices[0].message.role, "assistant")


@client.works("asynchronous")
async def asynchronous():
    async with openai.AsyncOpenAI(base_url=URL, api_key=TOKEN, max_retries=0) as other:
        answer = await other.chat.completions.create(messages=CHAT, **greedy)
    same(answer.choices[0].message.content, said(messages=CHAT, max_tokens=16))


@client.works("stream")
def stream():
    events = list(api.completions.create(prompt=SCENE, stream=True, **greedy))
    same("".join(e.choices[0].text for e in events), text(prompt=SCENE))
    holds(len(events) > 4, len(events), "events")
    events = list(api.chat.completions.create(messages=CHAT, stream=True, **greedy))
    whole = "".join(e.choices[0].delta.content or "" for e in events)
    same(whole, said(messages=CHAT, max_tokens=16))


@client.works("usage in streams")
def usage():
    options = {"include_usage": True}
    events = list(
        api.chat.completions.create(messages=CHAT, stream=True, stream_options=options, **greedy)
    )
    want = chat(messages=CHAT, max_tokens=16)["usage"]
    same(events[-1].choices, [])
    same(events[-1].usage.prompt_tokens, want["prompt_tokens"])
    same(events[-1].usage.completion_tokens, 16)
    options["continuous_usage_stats"] = True
    events = list(
        api.completions.create(prompt=SCENE, stream=True, stream_options=options, **greedy)
    )
    counts = [e.usage.completion_tokens for e in events]
    holds(counts == sorted(counts) and counts[-1] == 16, "tokens so far:", counts)


@client.works("cached tokens")
def cached():
    api.completions.create(prompt=SCENE, **greedy)
    found = api.completions.create(prompt=SCENE, **greedy).usage.prompt_tokens_details.cached_tokens
    holds(found >= 64, found, "cached tokens")


@client.works("stop")
def stop():
    whole = text(prompt=SCENE)
    answer = api.completions.create(prompt=SCENE, stop=[whole[8:12]], **greedy).choices[0]
    same((answer.text, answer.finish_reason), (whole[: whole.index(whole[8:12])], "stop"))


@client.works("n")
def n():
    wanted = {"prompt": SCENE, "max_tokens": 16, "n": 3, "seed": 7, "temperature": 1}
    answer = api.completions.create(model=MODEL, **wanted)
    texts = [c.text for c in answer.choices]
    same(texts, [c["text"] for c in complete(**wanted)["choices"]])
    holds(len(set(texts)) > 1, texts)


@client.works("log-probabilities")
def logprobs():
    got = api.completions.create(prompt=SCENE, logprobs=2, **greedy).choices[0].logprobs
    want = complete(prompt=SCENE, logprobs=2, max_tokens=16)["choices"][0]["logprobs"]
    same(got.model_dump(), want)
    got = api.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=2, **greedy)
    same("".join(t.token for t in got.choices[0].logprobs.content), got.choices[0].message.content)


@client.works("echo, log-probabilities")
def scoring():
    wanted = {**greedy, "max_tokens": 0, "prompt": SCENE, "echo": True, "logprobs": 1}
    got = api.completions.create(**wanted).choices[0]
    same((got.text, "".join(got.logprobs.tokens)), (SCENE, SCENE))
    same(len(got.logprobs.token_logprobs), len(tokens(SCENE)))
    same(got.logprobs.token_logprobs[0], None)
    # a token has the log-probability that it would have had as the answer to what stands before it
    before = api.completions.create(prompt=tokens(SCENE)[:-1], logprobs=5, **greedy).choices[0]
    same(max(before.logprobs.top_logprobs[0].values()), max(got.logprobs.top_logprobs[-1].values()))


@client.works("cache_salt")
def salt():
    mine = {"cache_salt": "openai-python"}
    first = api.completions.create(prompt=SCENE, extra_body=mine, **greedy)
    second = api.completions.create(prompt=SCENE, extra_body=mine, **greedy)
    same(first.usage.prompt_tokens_details.cached_tokens, 0)
    holds(second.usage.prompt_tokens_details.cached_tokens >= 64, second.usage)
    same(first.choices[0].text, second.choices[0].text)


@client.works("request id")
def request_id():
    answer = api.completions.create(
        prompt=SCENE, extra_headers={"X-Request-Id": "my-own-7"}, **greedy
    )
    same(answer._request_id, "my-own-7")
    holds(api.completions.create(prompt=SCENE, **greedy)._request_id, "no id of its own")


@client.works("context overflow")
def overflow():
    calls = {
        "prompt": lambda: api.completions.create(prompt=LONG, **greedy),
        "messages": lambda: api.chat.completions.create(
            messages=[{"role": "user", "content": LONG}], **greedy
        ),
    }
    for param, call in calls.items():
        try:
            call()
        except openai.BadRequestError as error:
            same((error.code, error.param), ("context_length_exceeded", param))
            holds("This model's maximum context length is 2048 tokens" in error.message, error)
            continue
        raise AssertionError("answered")


@client.refuses("unknown model", "nobody")
def unknown_model():
    api.chat.completions.create(messages=CHAT, **{**greedy, "model": "nobody"})


@client.refuses("wrong token", "401")
def wrong_token():
    openai.OpenAI(base_url=URL, api_key="wrong", max_retries=0).models.list()


@client.refuses("tools", "tools")
def tools():
    api.chat.completions.create(messages=CHAT, tools=[TOOL], **greedy)


@client.refuses("json_schema", "json_schema")
def json_schema():
    api.chat.completions.create(messages=CHAT, response_format=SCHEMA, **greedy)


@client.refuses("Responses API", "404")
def responses():
    api.responses.create(model=MODEL, input="hear")


@client.refuses("embeddings", "404")
def embeddings():
    api.embeddings.create(model=MODEL, input="hear")


if __name__ == "__main__":
    client.run()
