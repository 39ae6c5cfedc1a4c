# environment: gradio
"""A chat page of gradio that streams from a worker, used through gradio's own client."""

import logging

import gradio
import gradio_client
import openai
from common import CHAT, LONG, MODEL, TOKEN, URL, Client, holds, said, same

client = Client("gradio", "gradio")
api = openai.OpenAI(base_url=URL, api_key=TOKEN, max_retries=0)
USER = CHAT[1]["content"]


def respond(message: str, history: list[dict]):
    """What gradio's documentation shows for OpenAI-compatible servers."""
    messages = [{"role": m["role"], "content": m["content"]} for m in history]
    messages.append({"role": "user", "content": message})
    parts = ""
    try:
        for event in api.chat.completions.create(
            model=MODEL, messages=messages, stream=True, temperature=0, max_tokens=16
        ):
            parts += event.choices[0].delta.content or ""
            yield parts
    except openai.APIError as error:
        raise gradio.Error(error.message) from error


logging.getLogger("httpx").setLevel(logging.WARNING)
page = gradio.ChatInterface(respond, api_name="chat")
_, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
browser = gradio_client.Client(url, verbose=False)


@client.works("chat")
def chat():
    answer = browser.predict(USER, api_name="/chat")
    first = said(messages=[CHAT[1]], max_tokens=16)
    same(answer, first)
    # the page knows the conversation, with its parts as gradio keeps them
    turns = [CHAT[1], {"role": "assistant", "content": first}, {"role": "user", "content": "Why?"}]
    same(browser.predict("Why?", api_name="/chat"), said(messages=turns, max_tokens=16))


@client.works("stream")
def stream():
    browser.reset_session()
    job = browser.submit(USER, api_name="/chat")
    parts = list(job)
    same(parts[-1], said(messages=[CHAT[1]], max_tokens=16))
    holds(len(parts) > 4 and all(parts[-1].startswith(p) for p in parts), parts)


@client.refuses("context overflow", "This model's maximum context length is 2048 tokens")
def overflow():
    browser.reset_session()
    browser.predict(LONG, api_name="/chat")


if __name__ == "__main__":
    try:
        client.run()
    finally:
        page.close()
