# environment: litellm
"""LiteLLM, which programs and its proxy call servers of many kinds with."""

import litellm
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
    complete,
    holds,
    said,
    same,
    text,
    tokens,
)

client = Client("LiteLLM", "litellm")
server = {"api_base": URL, "api_key": TOKEN, "max_retries": 0}
greedy = {"temperature": 0, "max_tokens": 16, **server}
TALKER, WRITER = f"openai/{MODEL}", f"text-completion-openai/{MODEL}"


@client.works("models")
def models():
    same(litellm.get_valid_models(check_provider_endpoint=True, custom_llm_provider="openai",
                                  api_base=URL, api_key=TOKEN), [MODEL])  # fmt: skip


@client.works("completion")
def completion():
    got = litellm.text_completion(model=WRITER, prompt=SCENE, **greedy).choices[0].text
    same(got, text(prompt=SCENE))


@client.works("several prompts")
def several():
    answer = litellm.text_completion(model=WRITER, prompt=[SCENE, *OTHERS], **greedy)
    same([c.text for c in answer.choices], [text(prompt=p) for p in [SCENE, *OTHERS]])


@client.works("token ids")
def token_ids():
    answer = litellm.text_completion(model=WRITER, prompt=[tokens(p) for p in OTHERS], **greedy)
    same([c.text for c in answer.choices], [text(prompt=p) for p in OTHERS])


@client.works("chat")
def talk():
    answer = litellm.completion(model=TALKER, messages=CHAT, **greedy)
    same(answer.choices[0].message.content, said(messages=CHAT, max_tokens=16))


@client.works("asynchronous")
async def asynchronous():
    answer = await litellm.acompletion(model=TALKER, messages=CHAT, **greedy)
    same(answer.choices[0].message.content, said(messages=CHAT, max_tokens=16))


@client.works("stream")
def stream():
    parts = list(litellm.completion(model=TALKER, messages=CHAT, stream=True, **greedy))
    whole = "".join(p.choices[0].delta.content or "" for p in parts)
    same(whole, said(messages=CHAT, max_tokens=16))
    parts = list(litellm.text_completion(model=WRITER, prompt=SCENE, stream=True, **greedy))
    same("".join(p.choices[0].text or "" for p in parts), text(prompt=SCENE))


@client.works("usage in streams")
def usage():
    options = {"include_usage": True}
    parts = list(
        litellm.completion(
            model=TALKER, messages=CHAT, stream=True, stream_options=options, **greedy
        )
    )
    counts = [p.usage.completion_tokens for p in parts if getattr(p, "usage", None)]
    same(counts, [16])


@client.works("cached tokens")
def cached():
    talk = [{"role": "user", "content": SCENE}]
    litellm.completion(model=TALKER, messages=talk, **greedy)
    details = litellm.completion(model=TALKER, messages=talk, **greedy).usage.prompt_tokens_details
    holds(details.cached_tokens >= 64, details)


@client.works("stop")
def stop():
    whole = said(messages=CHAT, max_tokens=16)
    answer = litellm.completion(model=TALKER, messages=CHAT, stop=[whole[8:12]], **greedy)
    same(answer.choices[0].message.content, whole[: whole.index(whole[8:12])])


@client.works("n")
def n():
    wanted = {"prompt": SCENE, "max_tokens": 16, "n": 3, "seed": 7, "temperature": 1}
    answer = litellm.text_completion(model=WRITER, **wanted, **server)
    same([c.text for c in answer.choices], [c["text"] for c in complete(**wanted)["choices"]])


@client.works("log-probabilities")
def logprobs():
    answer = litellm.completion(
        model=TALKER, messages=CHAT, logprobs=True, top_logprobs=2, **greedy
    ).choices[0]
    same("".join(t.token for t in answer.logprobs.content), answer.message.content)


@client.works("context overflow")
def overflow():
    long = [{"role": "user", "content": LONG}]
    try:
        litellm.completion(model=TALKER, messages=long, **greedy)
    except litellm.ContextWindowExceededError:
        # and the router goes on to the model that is named for this case
        router = litellm.Router(
            model_list=[
                {"model_name": "small", "litellm_params": {"model": TALKER, **greedy}},
                {
                    "model_name": "large",
                    "litellm_params": {"model": TALKER, "mock_response": "I am large.", **greedy},
                },
            ],
            context_window_fallbacks=[{"small": ["large"]}],
            num_retries=0,
        )
        got = router.completion(model="small", messages=long).choices[0].message.content
        same(got, "I am large.")
        return
    raise AssertionError("answered")


@client.refuses("unknown model", "nobody")
def unknown_model():
    litellm.completion(model="openai/nobody", messages=CHAT, **greedy)


@client.refuses("wrong token", "token")
def wrong_token():
    litellm.completion(model=TALKER, messages=CHAT, **{**greedy, "api_key": "wrong"})


@client.refuses("tools", "tools")
def tools():
    litellm.completion(model=TALKER, messages=CHAT, tools=[TOOL], **greedy)


@client.refuses("json_schema", "json_schema")
def json_schema():
    litellm.completion(model=TALKER, messages=CHAT, response_format=SCHEMA, **greedy)


if __name__ == "__main__":
    client.run()
