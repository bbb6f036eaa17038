"""The ``openai`` SDK as it comes, with nothing but another base URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.support.api import Api, ordered
from tests.support.orders import TOOL_CALLS
from tests.support.stack import Stack

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def client(api: Api, stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=api.api_key, base_url=f"{stack.url}/v1", max_retries=2, timeout=30) as client:
        yield client


@pytest.fixture
async def async_client(api: Api, stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=api.api_key, base_url=f"{stack.url}/v1", timeout=30) as client:
        yield client


def order(**fake: Any) -> dict[str, Any]:
    """``extra_body`` that orders from the fake backend."""
    return {"fake": fake}


class TestAnswers:
    def test_a_plain_completion(self, client: openai.OpenAI) -> None:
        """Content, finish reason and usage, typed."""
        answer = client.chat.completions.create(model="fake", messages=HI, temperature=0.3, max_tokens=50)
        assert answer.choices[0].message.content == ordered()
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage
        assert answer.usage.total_tokens == 20
        assert answer.id.startswith("chatcmpl-")

    def test_a_stream(self, client: openai.OpenAI) -> None:
        """Chunks as they come; the SDK stops at [DONE]."""
        stream = client.chat.completions.create(model="fake", messages=HI, stream=True)
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == ordered()
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert all(c.usage is None for c in chunks)

    def test_a_stream_with_usage(self, client: openai.OpenAI) -> None:
        """Asked for, it is the last chunk, without choices."""
        stream = client.chat.completions.create(
            model="fake", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        *_, last = stream
        assert last.usage
        assert (last.usage.completion_tokens, last.choices) == (10, [])

    async def test_a_stream_of_the_async_client(self, async_client: openai.AsyncOpenAI) -> None:
        """Many at once, each its own."""

        async def one(number: int) -> str:
            stream = await async_client.chat.completions.create(
                model="fake", messages=HI, stream=True, extra_body=order(text=f"answer number {number}")
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        assert await asyncio.gather(*(one(n) for n in range(20))) == [f"answer number {n}" for n in range(20)]

    def test_the_stream_helper(self, client: openai.OpenAI) -> None:
        """``chat.completions.stream`` puts the whole completion together itself."""
        with client.chat.completions.stream(model="fake", messages=HI) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        assert "".join(deltas) == final.choices[0].message.content == ordered()

    @pytest.mark.parametrize("stream", [True, False])
    def test_tool_calls(self, client: openai.OpenAI, stream: bool) -> None:
        """Whole in the plain answer; put together by the SDK's helper from the stream."""
        if stream:
            with client.chat.completions.stream(
                model="fake", messages=HI, tools=[WEATHER], extra_body=order(tool_calls=True)
            ) as events:
                calls: Any = events.get_final_completion().choices[0].message.tool_calls
        else:
            answer = client.chat.completions.create(
                model="fake", messages=HI, tools=[WEATHER], extra_body=order(tool_calls=True)
            )
            assert answer.choices[0].finish_reason == "tool_calls"
            calls = answer.choices[0].message.tool_calls
        assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
            (call_id, name, "".join(arguments)) for call_id, name, arguments in TOOL_CALLS
        ]

    def test_several_choices_and_logprobs(self, client: openai.OpenAI) -> None:
        """As asked for."""
        answer = client.chat.completions.create(
            model="fake", messages=HI, n=2, logprobs=True, top_logprobs=2, extra_body=order(logprobs=True)
        )
        assert [choice.index for choice in answer.choices] == [0, 1]
        logprobs = answer.choices[0].logprobs
        assert logprobs
        assert logprobs.content
        assert [row.token for row in logprobs.content] == [f" tok{i}" for i in range(10)]

    def test_reasoning_is_there_beside_the_content(self, client: openai.OpenAI) -> None:
        """Fields that the SDK's types don't know come as extra ones."""
        answer = client.chat.completions.create(model="fake", messages=HI, extra_body=order(reasoning=2))
        message: Any = answer.choices[0].message
        assert message.reasoning_content == message.reasoning == " think0 think1"

    def test_headers_of_the_raw_response(self, client: openai.OpenAI) -> None:
        """The completion's id, ours and the request's."""
        raw = client.chat.completions.with_raw_response.create(model="fake", messages=HI)
        assert raw.headers["x-completion-id"] == raw.parse().id
        assert raw.headers["x-request-id"] == raw.request_id
        assert raw.headers["x-cache"] == "bypass"

    def test_an_early_close_of_a_stream(self, client: openai.OpenAI, api: Api, stack: Stack) -> None:
        """Leaving a stream leaves the completion to be finished."""
        stream = client.chat.completions.create(
            model="fake", messages=HI, stream=True, extra_body=order(chunks=30, interval_ms=20)
        )
        first = next(iter(stream))
        stream.close()
        assert stack.settled(first.id)[0].status == "completed"


class TestErrors:
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, openai.BadRequestError),
            (404, openai.NotFoundError),
            (422, openai.UnprocessableEntityError),
            (429, openai.RateLimitError),
            (401, openai.InternalServerError),
            (500, openai.InternalServerError),
        ],
    )
    def test_a_providers_refusal_is_the_sdks_own_exception_and_is_not_repeated(
        self, client: openai.OpenAI, api: Api, status: int, error: type[openai.APIStatusError], stream: bool
    ) -> None:
        """With message, code and param; x-should-retry keeps the SDK from asking (and paying) again."""
        detail = {"message": "as ordered", "param": "top_k", "code": "some_code"}
        with pytest.raises(error) as caught:
            client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": api.tenant}],
                stream=stream,
                extra_body=order(status=status, error=detail),
            )
        assert "as ordered" in caught.value.message
        if status != 401:
            assert (caught.value.code, caught.value.param) == ("some_code", "top_k")
        assert len(api.provider_requests(api.tenant)) == 1

    def test_a_failure_in_the_stream_is_an_api_error(self, client: openai.OpenAI) -> None:
        """After the chunks that came."""
        stream = client.chat.completions.create(
            model="fake", messages=HI, stream=True, extra_body=order(error_event_after=3)
        )
        text = ""
        with pytest.raises(openai.APIError) as caught:
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text == ordered(3)
        assert caught.value.message == "ordered failure"
        assert caught.value.code == "ordered"

    def test_a_cut_stream_is_an_api_error_too(self, client: openai.OpenAI) -> None:
        """It can't be taken for a finished one."""
        stream = client.chat.completions.create(
            model="fake", messages=HI, stream=True, extra_body=order(cut_at_byte=1200)
        )
        with pytest.raises(openai.APIError, match="broke"):
            list(stream)

    def test_a_wrong_key(self, stack: Stack) -> None:
        """AuthenticationError."""
        wrong = openai.OpenAI(api_key="sk-wrong", base_url=f"{stack.url}/v1")
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()

    def test_an_unknown_model(self, client: openai.OpenAI) -> None:
        """NotFoundError that names it."""
        with pytest.raises(openai.NotFoundError, match="no-such") as caught:
            client.chat.completions.create(model="no-such", messages=HI)
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"

    @pytest.mark.parametrize(
        ("bad", "param"),
        [({"temperature": 3}, "temperature"), ({"messages": []}, "messages"), ({"n": 0}, "n")],
    )
    def test_a_bad_parameter(self, client: openai.OpenAI, bad: dict[str, Any], param: str) -> None:
        """BadRequestError with the parameter's name."""
        arguments: dict[str, Any] = {"model": "fake", "messages": HI, **bad}
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**arguments)
        assert caught.value.param == param


class TestStored:
    def test_completions_are_listed_page_by_page(self, client: openai.OpenAI, stack: Stack) -> None:
        """The SDK's own paging goes through all of them."""
        ids = [
            client.chat.completions.create(
                model="fake", messages=HI, store=True, metadata={"run": "a" if n % 2 else "b"}
            ).id
            for n in range(5)
        ]
        stack.settled(*ids)
        assert [c.id for c in client.chat.completions.list(limit=2)] == ids
        assert [c.id for c in client.chat.completions.list(limit=2, order="desc")] == ids[::-1]
        assert [c.id for c in client.chat.completions.list(metadata={"run": "a"})] == ids[1::2]
        assert [c.id for c in client.chat.completions.list(model="other")] == []
        assert [c.id for c in client.chat.completions.list(after=ids[2])] == ids[3:]

    def test_one_is_read_changed_and_deleted(self, client: openai.OpenAI) -> None:
        """By its id, with the SDK's own methods."""
        made = client.chat.completions.create(model="fake", messages=HI, store=True)
        found = client.chat.completions.retrieve(made.id)
        assert found.choices == made.choices
        changed: Any = client.chat.completions.update(made.id, metadata={"k": "v"})
        assert changed.metadata == {"k": "v"}
        deleted = client.chat.completions.delete(made.id)
        assert (deleted.id, deleted.deleted) == (made.id, True)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.retrieve(made.id)

    def test_models(self, client: openai.OpenAI) -> None:
        """Listed and read, slashes and all."""
        names = [model.id for model in client.models.list()]
        assert "fake" in names
        assert client.models.retrieve("fake").owned_by == "fake"
        assert client.models.retrieve("org/model-1").id == "org/model-1"


class TestFiles:
    @pytest.fixture(params=["/v1", "/api/v1/llm"])
    def client(self, request: pytest.FixtureRequest, api: Api, stack: Stack) -> Iterator[openai.OpenAI]:
        url = f"{stack.url}{request.param}"
        with openai.OpenAI(api_key=api.api_key, base_url=url, timeout=30) as client:
            yield client

    def test_from_upload_to_deletion(self, client: openai.OpenAI, tmp_path: Path) -> None:
        """As OpenAI's guides do it."""
        path = tmp_path / "batch input.jsonl"
        path.write_bytes(b'{"custom_id": "request-1"}\n')
        with path.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        assert (uploaded.filename, uploaded.bytes, uploaded.purpose) == (path.name, 27, "batch")
        assert (uploaded.object, uploaded.status, uploaded.expires_at) == ("file", "processed", None)
        assert client.files.wait_for_processing(uploaded.id) == uploaded
        assert client.files.retrieve(uploaded.id) == uploaded
        assert client.files.content(uploaded.id).read() == path.read_bytes()
        deleted = client.files.delete(uploaded.id)
        assert (deleted.id, deleted.object, deleted.deleted) == (uploaded.id, "file", True)
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(uploaded.id)

    def test_an_expiring_file(self, client: openai.OpenAI) -> None:
        file = client.files.create(
            file=("x.txt", b"x"),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert file.expires_at == file.created_at + 7200

    def test_the_pages_of_a_list(self, client: openai.OpenAI) -> None:
        """The SDK goes on from page to page by itself."""
        ids = [client.files.create(file=(f"{n}", b"x"), purpose="evals").id for n in range(5)]
        assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
        assert [file.id for file in client.files.list(purpose="evals")] == ids[::-1]
        assert [*client.files.list(purpose="batch")] == []

    def test_a_wrong_purpose(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="'purpose' must be one of") as refused:
            client.files.create(file=("x", b"x"), purpose="fine-tune")
        assert refused.value.param == "purpose"
