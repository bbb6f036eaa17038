"""What inspect_ai and lm-evaluation-harness send, and what they read in the answers.

The requests are what inspect_ai 0.3.285 and lm-eval 0.4.13 sent when they ran the tasks of ``examples/engines``; model,
key and question are the test's own.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.support.api import CHAT, Api, dump, ordered
from tests.support.valkey import wait_until

#: inspect_ai, by ``--model openai-api/tailrace/smollm2``. ``x-irid`` is new in each request.
INSPECT = b"""{"model":"smollm2","messages":[{"role":"system","content":"Answer in one short sentence."},\
{"role":"user","content":"What is 8 - 8?"}],"max_tokens":64,"stop":["\\n"],"temperature":0.0}"""
INSPECT_HEADERS = {
    "Accept": "application/json",
    "User-Agent": "AsyncOpenAI/Python 3.57.0",
    "x-stainless-lang": "python",
    "x-stainless-package-version": "3.57.0",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "CPython",
    "x-stainless-runtime-version": "3.11.7",
    "x-stainless-async": "async:asyncio",
    "x-irid": "DTCUqXEcHjwWQT5i6w5xrU",
    "x-sample": "1",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600.0",
}
#: With ``-M stream=true``.
INSPECT_STREAM = b"""{"model":"smollm2","stream":true,"messages":[{"role":"system","content":"Answer in one short \
sentence."},{"role":"user","content":"What is 2 + 3?"}],"max_tokens":64,"stop":["\\n"],"stream_options":\
{"include_usage":true},"temperature":0.0}"""
#: With ``--logprobs --top-logprobs 2 --num-choices 2 --seed 7``.
INSPECT_LOGPROBS = b"""{"model":"smollm2","messages":[{"role":"system","content":"Answer in one short sentence."},\
{"role":"user","content":"What is 2 + 3?"}],"logprobs":true,"max_tokens":64,"n":2,"seed":7,"stop":["\\n"],\
"temperature":0.0,"top_logprobs":2}"""
#: lm-eval's ``local-chat-completions``.
LM_EVAL = b"""{"messages": [{"role": "system", "content": "Answer in one short sentence."}, {"role": "user", \
"content": "What is 9 + 1?"}], "model": "smollm2", "max_tokens": 64, "temperature": 0.0, "stop": ["\\n"], \
"seed": 1234}"""
LM_EVAL_HEADERS = {"Accept": "*/*", "User-Agent": "Python/3.11 aiohttp/3.14.5"}


class Engine:
    """Sends what an engine sent, with the test's own question, to the fake backend."""

    def __init__(self, api: Api, sent: bytes, headers: dict[str, str]) -> None:
        self.api = api
        self.headers = headers
        self.body: dict[str, Any] = json.loads(sent)
        self.body["model"] = "fake"
        self.body["messages"][-1]["content"] = api.tenant

    def ask(self, *, sample: int | None = None, **more: Any) -> httpx.Response:
        headers = self.headers if sample is None else {**self.headers, "x-sample": str(sample)}
        answer = self.api.post(CHAT, content=dump({**self.body, **more}), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def ask_and_leave(self, **more: Any) -> None:
        """Close the connection as soon as the model has been asked."""
        url = self.api.base_url
        connection = HTTPConnection(url.host, url.port, timeout=30)
        headers = {**self.headers, "Authorization": f"Bearer {self.api.api_key}"}
        connection.request("POST", CHAT, dump({**self.body, **more}), headers)
        wait_until(lambda: bool(self.asked()), what="request at the model")
        connection.close()

    def outcomes(self, samples: list[int | None], **more: Any) -> list[str]:
        return [self.ask(sample=sample, **more).headers["x-cache"] for sample in samples]

    def asked(self) -> list[dict[str, Any]]:
        """The bodies that the model was asked with."""
        return [received.body for received in self.api.provider_requests(self.api.tenant)]


@pytest.fixture
def inspect(api: Api) -> Engine:
    return Engine(api, INSPECT, INSPECT_HEADERS)


@pytest.fixture
def lm_eval(api: Api) -> Engine:
    return Engine(api, LM_EVAL, LM_EVAL_HEADERS)


@pytest.fixture(params=["inspect_ai", "lm-eval"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue("inspect" if request.param == "inspect_ai" else "lm_eval")


def whole(stream: httpx.Response) -> ChatCompletion:
    """A stream put together as inspect_ai does it."""
    *chunks, done = [
        line.removeprefix("data: ") for line in stream.text.splitlines() if line.startswith("data: ")
    ]
    assert done == "[DONE]"
    state: ChatCompletionStreamState[Any] = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(chunk))
    return state.get_final_completion()


def content(answer: httpx.Response) -> str:
    """The text as lm-eval takes it from an answer."""
    (choice,) = answer.json()["choices"]
    assert choice["index"] == 0
    return choice["message"]["content"]


def test_inspect_gets_text_stop_reason_model_and_usage(inspect: Engine) -> None:
    """All that it keeps in its log, typed as the SDK types it."""
    answer = ChatCompletion.model_validate_json(inspect.ask().content)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", ordered())
    assert choice.finish_reason == "stop"
    assert answer.model == "fake"
    assert answer.system_fingerprint == "fp_fake"
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        10,
        10,
        20,
    )
    assert answer.usage.prompt_tokens_details
    assert answer.usage.completion_tokens_details


def test_inspect_gets_the_same_from_a_stream(api: Api) -> None:
    """What it puts together of the chunks equals the whole answer, and both have one place in the cache."""
    streaming = Engine(api, INSPECT_STREAM, INSPECT_HEADERS)
    streamed = streaming.ask()
    assert streamed.headers["content-type"].startswith("text/event-stream")
    plain = Engine(api, INSPECT, INSPECT_HEADERS).ask()
    assert [streamed.headers["x-cache"], plain.headers["x-cache"]] == ["miss", "hit"]
    again = whole(streaming.ask())
    first, second = whole(streamed), ChatCompletion.model_validate_json(plain.content)
    for found in (first, again):
        assert found.choices[0].message.content == second.choices[0].message.content == ordered()
        assert found.choices[0].finish_reason == second.choices[0].finish_reason == "stop"
        assert found.usage == second.usage
        assert found.model == second.model


@pytest.mark.parametrize("stream", [False, True])
def test_inspect_gets_log_probabilities_of_each_choice(api: Api, stream: bool) -> None:
    """Each token has its own and those of the alternatives; the rerun has the very same."""
    engine = Engine(api, INSPECT_LOGPROBS, INSPECT_HEADERS)
    more: dict[str, Any] = {"fake": {"logprobs": True, "chunks": 3}}
    if stream:
        more |= {"stream": True, "stream_options": {"include_usage": True}}
    answers = [engine.ask(**more) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit"]
    first, second = [whole(a) if stream else ChatCompletion.model_validate_json(a.content) for a in answers]
    assert len(first.choices) == 2
    for one, two in zip(first.choices, second.choices, strict=True):
        assert one.logprobs == two.logprobs
        assert one.logprobs
        assert [token.token for token in one.logprobs.content or ()] == [" tok0", " tok1", " tok2"]
        assert all(len(token.top_logprobs) == 2 for token in one.logprobs.content or ())


def test_lm_eval_gets_its_text(lm_eval: Engine) -> None:
    """A stop list and a seed reach the model as they were sent."""
    assert content(lm_eval.ask()) == ordered()
    (asked,) = lm_eval.asked()
    assert (asked["seed"], asked["stop"], asked["max_tokens"]) == (1234, ["\n"], 64)


def test_a_rerun_asks_no_model(engine: Engine) -> None:
    """The same question again is a hit with the same text, whatever the SDK says about itself this time."""
    first = engine.ask()
    engine.headers = {**engine.headers, "x-irid": "SBuZoxp4AeTcfmvosajUY5", "User-Agent": "another"}
    second = engine.ask()
    assert [first.headers["x-cache"], second.headers["x-cache"]] == ["miss", "hit"]
    assert content(first) == content(second)
    assert first.json()["usage"] == second.json()["usage"]
    assert len(engine.asked()) == 1


def test_epochs_with_their_number_are_samples_of_their_own(inspect: Engine) -> None:
    """Three epochs at a temperature are three answers, and the rerun finds each where it was."""
    order: dict[str, Any] = {"temperature": 0.7, "fake": {"sampled": True}, "fake_id": inspect.api.tenant}
    runs = [[inspect.ask(sample=epoch, **order) for epoch in (1, 2, 3)] for _ in range(2)]
    assert [[answer.headers["x-cache"] for answer in run] for run in runs] == [["miss"] * 3, ["hit"] * 3]
    first, second = [[content(answer) for answer in run] for run in runs]
    assert len(set(first)) == 3
    assert first == second
    assert len(inspect.asked()) == 3


def test_repeats_at_a_temperature_are_drawn_anew_each_time(lm_eval: Engine) -> None:
    """lm-eval as it comes: nothing is kept, and the model gets the same seed each time."""
    assert lm_eval.outcomes([None] * 3, temperature=0.7) == ["bypass"] * 3
    assert [asked["seed"] for asked in lm_eval.asked()] == [1234] * 3


def test_numbered_repeats_are_drawn_once_each(lm_eval: Engine) -> None:
    """lm-eval by ``harness.py``: each repeat with its own seed and sample, all found again by the rerun."""
    repeats = range(3)
    for outcome in ("miss", "hit"):
        for k in repeats:
            assert lm_eval.outcomes([k], temperature=0.7, seed=1234 + k) == [outcome]
    assert [asked["seed"] for asked in lm_eval.asked()] == [1234, 1235, 1236]


def test_equal_repeats_without_sampling_are_one_answer(lm_eval: Engine) -> None:
    """Sent at once, at temperature 0: the model is asked once, and all get its text."""
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: lm_eval.ask(fake={"interval_ms": 20}), range(3)))
    outcomes = sorted(answer.headers["x-cache"] for answer in answers)
    assert outcomes.count("miss") == 1
    assert set(outcomes) <= {"join", "hit", "miss"}
    assert [content(answer) for answer in answers] == [ordered()] * 3
    assert len(lm_eval.asked()) == 1


def test_an_engine_that_gave_up_waiting_finds_its_answer(engine: Engine) -> None:
    """Its time ran out, the completion went on, and the second try joins it: the model is asked once."""
    order: dict[str, Any] = {"fake": {"chunks": 40, "interval_ms": 30}}
    engine.ask_and_leave(**order)
    second = engine.ask(**order)
    assert second.headers["x-cache"] in ("join", "hit")
    assert content(second) == ordered(40)
    assert len(engine.asked()) == 1
