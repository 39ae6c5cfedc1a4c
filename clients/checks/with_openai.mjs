// environment: js
// OpenAI's client for JavaScript. What a check is, common.py says.
import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const { KVTIER_WORKER, KVTIER_OTHER, KVTIER_MODEL, KVTIER_TOKEN, KVTIER_CLIENTS, KVTIER_REPORT } = process.env;
const require = createRequire(`${KVTIER_CLIENTS}/openai-js/`);
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));
const { version } = JSON.parse(fs.readFileSync(`${KVTIER_CLIENTS}/openai-js/node_modules/openai/package.json`));

const scene = `PETRUCHIO:
Good morrow, Kate; for that's your name, I hear.

KATHARINA:
Well have you heard, but something hard of hearing:
They call me Katharina that do talk of me.

PETRUCHIO:
You lie, in faith; for you are call'd plain Kate,
And bonny Kate and sometimes Kate the curst;
`;
const others = ["GREMIO:\n", "LUCENTIO:\nTranio, since for the great desire I had\n"];
const messages = [
  { role: "system", content: "Padua. A public place." },
  { role: "user", content: "They call me Katharina that do talk of me." },
];
const greedy = { model: KVTIER_MODEL, temperature: 0, max_tokens: 16 };
const api = new OpenAI({ baseURL: `${KVTIER_WORKER}/v1`, apiKey: KVTIER_TOKEN, maxRetries: 0 });

/** A plain request to the other worker, without any client. */
async function post(path, body) {
  const headers = { Authorization: `Bearer ${KVTIER_TOKEN}`, "Content-Type": "application/json" };
  const answer = await fetch(KVTIER_OTHER + path, { method: "POST", headers, body: JSON.stringify(body) });
  assert.equal(answer.status, 200);
  return answer.json();
}
const complete = (more) => post("/v1/completions", { ...greedy, ...more });
const text = async (prompt) => (await complete({ prompt })).choices[0].text;
const chat = () => post("/v1/chat/completions", { ...greedy, messages });
const said = async () => (await chat()).choices[0].message.content;
const tokens = async (prompt) => (await post("/v1/warm/tokens", { prompts: [prompt] })).tokens[0];

const works = {
  async models() {
    const names = [];
    for await (const model of api.models.list()) names.push(model.id);
    assert.deepEqual(names, [KVTIER_MODEL]);
    assert.equal((await api.models.retrieve(KVTIER_MODEL)).id, KVTIER_MODEL);
  },
  async completion() {
    const answer = await api.completions.create({ ...greedy, prompt: scene });
    assert.equal(answer.choices[0].text, await text(scene));
  },
  async "several prompts"() {
    const answer = await api.completions.create({ ...greedy, prompt: [scene, ...others] });
    const want = await Promise.all([scene, ...others].map(text));
    assert.deepEqual(answer.choices.map((c) => c.text), want);
  },
  async "token ids"() {
    const answer = await api.completions.create({ ...greedy, prompt: await tokens(scene) });
    assert.equal(answer.choices[0].text, await text(scene));
  },
  async chat() {
    const answer = await api.chat.completions.create({ ...greedy, messages });
    assert.equal(answer.choices[0].message.content, await said());
  },
  async stream() {
    let whole = "";
    for await (const event of await api.completions.create({ ...greedy, prompt: scene, stream: true })) whole += event.choices[0].text;
    assert.equal(whole, await text(scene));
    const stream = api.chat.completions.stream({ ...greedy, messages }); // collects the parts itself
    assert.equal(await stream.finalContent(), await said());
  },
  async "usage in streams"() {
    const options = { stream: true, stream_options: { include_usage: true } };
    let last;
    for await (const event of await api.chat.completions.create({ ...greedy, messages, ...options })) last = event;
    const { prompt_tokens, completion_tokens } = (await chat()).usage;
    assert.deepEqual([last.usage.prompt_tokens, last.usage.completion_tokens], [prompt_tokens, completion_tokens]);
  },
  async "cached tokens"() {
    await api.completions.create({ ...greedy, prompt: scene });
    const { usage } = await api.completions.create({ ...greedy, prompt: scene });
    assert.ok(usage.prompt_tokens_details.cached_tokens >= 64, `${usage.prompt_tokens_details.cached_tokens} cached tokens`);
  },
  async stop() {
    const whole = await text(scene);
    const answer = await api.completions.create({ ...greedy, prompt: scene, stop: whole.slice(8, 12) });
    assert.equal(answer.choices[0].text, whole.slice(0, whole.indexOf(whole.slice(8, 12))));
  },
  async n() {
    const wanted = { prompt: scene, n: 3, seed: 7, temperature: 1 };
    const answer = await api.completions.create({ ...greedy, ...wanted });
    assert.deepEqual(answer.choices.map((c) => c.text), (await complete(wanted)).choices.map((c) => c.text));
  },
  async "log-probabilities"() {
    const answer = await api.completions.create({ ...greedy, prompt: scene, logprobs: 2 });
    assert.deepEqual(answer.choices[0].logprobs, (await complete({ prompt: scene, logprobs: 2 })).choices[0].logprobs);
  },
  async "echo, log-probabilities"() {
    const answer = await api.completions.create({ ...greedy, prompt: scene, logprobs: 1, echo: true, max_tokens: 0 });
    const { logprobs } = answer.choices[0];
    assert.equal(logprobs.tokens.join(""), scene);
    assert.equal(logprobs.token_logprobs[0], null);
    assert.ok(logprobs.token_logprobs.slice(1).every((p) => p < 0));
  },
  async "cache_salt"() {
    const mine = { ...greedy, prompt: scene, cache_salt: "openai-js" };
    const first = await api.completions.create(mine);
    const second = await api.completions.create(mine);
    assert.equal(first.usage.prompt_tokens_details.cached_tokens, 0);
    assert.ok(second.usage.prompt_tokens_details.cached_tokens >= 64);
    assert.equal(first.choices[0].text, second.choices[0].text);
  },
  async "request id"() {
    const answer = await api.completions.create({ ...greedy, prompt: scene }, { headers: { "X-Request-Id": "my-own-8" } });
    assert.equal(answer._request_id, "my-own-8");
  },
  async "context overflow"() {
    const long = [{ role: "user", content: scene.repeat(40) }];
    const error = await api.chat.completions.create({ ...greedy, messages: long }).then(() => assert.fail("answered"), (e) => e);
    assert.ok(error instanceof OpenAI.BadRequestError, String(error));
    assert.deepEqual([error.code, error.param], ["context_length_exceeded", "messages"]);
  },
};

const tool = { type: "function", function: { name: "weather", parameters: { type: "object" } } };
const schema = { type: "json_schema", json_schema: { name: "name", schema: { type: "object" } } };
const refuses = {
  "unknown model": ["nobody", () => api.chat.completions.create({ ...greedy, messages, model: "nobody" })],
  "wrong token": ["401", () => new OpenAI({ baseURL: `${KVTIER_WORKER}/v1`, apiKey: "wrong", maxRetries: 0 }).models.list()],
  "tools": ["tools", () => api.chat.completions.create({ ...greedy, messages, tools: [tool] })],
  "json_schema": ["json_schema", () => api.chat.completions.create({ ...greedy, messages, response_format: schema })],
  "Responses API": ["404", () => api.responses.create({ model: KVTIER_MODEL, input: "hear" })],
  "embeddings": ["404", () => api.embeddings.create({ model: KVTIER_MODEL, input: "hear" })],
};

let failed = false;
const only = process.argv.slice(2);
function report(feature, result, ok) {
  failed ||= !ok;
  const line = JSON.stringify({ client: "OpenAI, JavaScript", version, feature, result, ok });
  if (KVTIER_REPORT) fs.appendFileSync(KVTIER_REPORT, line + "\n");
  else console.log(line);
}
const plainly = (error) => `${error.constructor.name}: ${error.message}`.replaceAll(/\s+/g, " ").replaceAll(KVTIER_WORKER, "http://worker");
for (const [feature, check] of Object.entries(works)) {
  if (only.length && !only.includes(feature)) continue;
  await check().then(() => report(feature, "works", true), (error) => {
    console.error(error);
    report(feature, plainly(error), false);
  });
}
for (const [feature, [word, call]] of Object.entries(refuses)) {
  if (only.length && !only.includes(feature)) continue;
  await call().then(() => report(feature, "no error", false), (error) => report(feature, plainly(error), String(error).includes(word)));
}
process.exitCode = failed ? 1 : 0;
