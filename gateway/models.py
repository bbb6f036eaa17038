"""The models that can be asked for."""

from __future__ import annotations

from gateway.caller import authenticate
from gateway.http import Call, Reply
from schemas.errors import ModelNotFound


async def listing(call: Call) -> Reply:
    """GET /v1/models: the providers' models and the aliases."""
    await authenticate(call)
    return Reply({"object": "list", "data": await call.context.catalog.all()})


async def retrieve(call: Call) -> Reply:
    """GET /v1/models/{model}: also for names that no list has but a provider may take."""
    await authenticate(call)
    model = call.path("model")
    if not model:
        raise ModelNotFound("Name a model, as in /v1/models/<model>.", param="model")
    resolved = await call.context.catalog.resolve(model)
    owner = "alias" if model in call.context.catalog.providers.aliases else resolved.provider
    return Reply({"id": model, "object": "model", "created": 0, "owned_by": owner})
