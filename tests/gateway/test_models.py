"""GET /v1/models, and what a model's name means."""

from __future__ import annotations

import pytest

from tests.support.api import CHAT, SEED, Api, asking, error_of
from tests.support.stack import MODELS, Stack


def test_all_models_and_aliases_are_listed(api: Api) -> None:
    """The default provider's under their plain names, others' with their provider, on both prefixes."""
    answer = api.get("/v1/models")
    assert answer.json() == api.get("/api/v1/llm/models").json()
    body = answer.json()
    assert body["object"] == "list"
    owners = {model["id"]: model["owned_by"] for model in body["data"]}
    assert len(owners) == len(body["data"])
    for name in MODELS:
        assert owners[name] == "fake"
    assert owners["listed:only-here"] == "listed"
    assert owners["auto"] == owners["team/best"] == "alias"
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in body["data"])


def test_every_listed_model_can_be_retrieved_and_asked(api: Api) -> None:
    """The name in the list is the name to send."""
    for model in api.get("/v1/models").json()["data"]:
        if model["owned_by"] == "keyed":
            continue
        assert api.get(f"/v1/models/{model['id']}").json() == model
        if model["owned_by"] in ("fake", "listed", "alias"):
            assert api.plain(model=model["id"]).json()["model"] == model["id"]


@pytest.mark.parametrize("name", ["silent:anything/at:all", "org/model-1", "team/best", "ft:gpt-4o:org::id"])
def test_names_with_slashes_and_colons_are_names(api: Api, name: str) -> None:
    """Also those that no list has but a provider may take."""
    answer = api.get(f"/v1/models/{name}")
    assert answer.status_code == 200
    assert answer.json()["id"] == name


@pytest.mark.parametrize(
    "name", ["no-such-model", "fake:no-such", "listed:fake-b", "nobody:fake", "fake:", "listed:"]
)
def test_an_unknown_model_is_404_that_names_it(api: Api, name: str) -> None:
    """Before acceptance, wherever it is asked for."""
    for answer in (
        api.get(f"/v1/models/{name}"),
        api.post(SEED, json=asking(model=name)),
        api.post(CHAT, json=asking(model=name)),
        api.post(CHAT, json=asking(model=name, stream=True)),
    ):
        assert answer.status_code == 404
        error = error_of(answer)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert name.partition(":")[2] in error["message"]
        assert name.partition(":")[0] in error["message"]
        assert "x-completion-id" not in answer.headers


def test_a_provider_that_is_away_does_not_hide_the_others(api: Api) -> None:
    """Its models are not listed, and its names go through to fail where they are tried."""
    assert not any(m["owned_by"] == "nowhere" for m in api.get("/v1/models").json()["data"])
    answer = api.plain(model="nowhere:any")
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "provider_unreachable"


def test_an_alias_stands_for_its_first_target(api: Api, stack: Stack) -> None:
    """And is recorded with what it meant."""
    whole = api.seed(api.tenant, model="team/best")
    (received,) = api.provider_requests(api.tenant)
    assert received.body["model"] == "org/model-1"
    (row,) = stack.settled(whole.id)
    assert (row.model, row.provider, row.resolved_model) == ("team/best", "fake", "org/model-1")
