"""Messages and tools: the nested objects of a chat completion request.

They are shapes of plain dicts, whose unknown fields stay. A tag in angle brackets picks the one shape that a value is
checked against, so that an error speaks of that shape alone; where an error names the field, tags are left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict

Name = Annotated[str, Field(min_length=1)]


def type_of(value: Any) -> Any:
    """The ``type`` of an object; None without one."""
    return cast("dict[str, Any]", value).get("type") if isinstance(value, dict) else None


def text_or_list(value: Any) -> str | None:
    """The tag of what may be a string or an array."""
    return "<string>" if isinstance(value, str) else "<array>" if isinstance(value, list) else None


# -- Content


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class RefusalPart(TypedDict):
    type: Literal["refusal"]
    refusal: str


class ImageURL(TypedDict):
    url: Name
    detail: NotRequired[str | None]


class ImagePart(TypedDict):
    type: Literal["image_url"]
    image_url: ImageURL


class InputAudio(TypedDict):
    data: str
    format: str


class AudioPart(TypedDict):
    type: Literal["input_audio"]
    input_audio: InputAudio


class FileReference(TypedDict):
    file_id: NotRequired[str | None]
    file_data: NotRequired[str | None]
    filename: NotRequired[str | None]


class FilePart(TypedDict):
    type: Literal["file"]
    file: FileReference


class Other(TypedDict):
    """A part, a call or a tool of a type that only the provider knows, such as ``video_url``."""

    type: Name


_PART_TYPES = frozenset({"text", "refusal", "image_url", "input_audio", "file"})


def _part_tag(part: Any) -> str:
    kind = type_of(part)
    return f"<{kind}>" if isinstance(kind, str) and kind in _PART_TYPES else "<other>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[AudioPart, Tag("<input_audio>")]
    | Annotated[FilePart, Tag("<file>")]
    | Annotated[Other, Tag("<other>")],
    Discriminator(_part_tag),
]


Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Part], Field(fail_fast=True), Tag("<array>")],
    Discriminator(
        text_or_list,
        custom_error_type="content",
        custom_error_message="must be a string or an array of content parts",
    ),
]


# -- Messages


class FunctionCall(TypedDict):
    name: Name
    arguments: str


class CustomCall(TypedDict):
    name: Name
    input: str


class FunctionToolCall(TypedDict):
    id: Name
    type: NotRequired[Literal["function"] | None]
    function: FunctionCall


class CustomToolCall(TypedDict):
    id: Name
    type: Literal["custom"]
    custom: CustomCall


def _tool_tag(value: Any) -> str:
    kind = type_of(value)
    if kind is None or kind == "function":
        return "<function>"
    return "<custom>" if kind == "custom" else "<other>"


ToolCall = Annotated[
    Annotated[FunctionToolCall, Tag("<function>")]
    | Annotated[CustomToolCall, Tag("<custom>")]
    | Annotated[Other, Tag("<other>")],
    Discriminator(_tool_tag),
]


class PlainMessage(TypedDict):
    """A system, developer or user message; what has an unknown role or none is checked against it too."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content
    name: NotRequired[str | None]


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: NotRequired[Content | None]
    name: NotRequired[str | None]
    refusal: NotRequired[str | None]
    tool_calls: NotRequired[Annotated[list[ToolCall], Field(fail_fast=True)] | None]
    function_call: NotRequired[FunctionCall | None]


class ToolMessage(TypedDict):
    role: Literal["tool"]
    content: Content
    tool_call_id: Name


class FunctionMessage(TypedDict):
    role: Literal["function"]
    content: Content | None
    name: Name


def _message_tag(message: Any) -> str:
    role = cast("dict[str, Any]", message).get("role") if isinstance(message, dict) else None
    return f"<{role}>" if role in ("assistant", "tool", "function") else "<plain>"


Message = Annotated[
    Annotated[PlainMessage, Tag("<plain>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")]
    | Annotated[FunctionMessage, Tag("<function>")],
    Discriminator(_message_tag),
]

# -- Tools


class FunctionDefinition(TypedDict):
    name: Name
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


class FunctionTool(TypedDict):
    type: Literal["function"]
    function: FunctionDefinition


class CustomTool(TypedDict):
    type: Literal["custom"]
    custom: dict[str, Any]


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[CustomTool, Tag("<custom>")]
    | Annotated[Other, Tag("<other>")],
    Discriminator(_tool_tag),
]


class FunctionName(TypedDict):
    name: Name


class FunctionChoice(TypedDict):
    type: Literal["function"]
    function: FunctionName


def _tool_choice_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    if isinstance(value, dict):
        return "<function>" if type_of(value) == "function" else "<other>"
    return None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")]
    | Annotated[FunctionChoice, Tag("<function>")]
    | Annotated[Other, Tag("<other>")],
    Discriminator(
        _tool_choice_tag,
        custom_error_type="tool_choice",
        custom_error_message="must be 'none', 'auto', 'required' or an object that names a tool",
    ),
]
