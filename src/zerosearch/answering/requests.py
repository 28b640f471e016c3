"""What a request to the server asks, and why one is refused."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ValidationError


class Refused(Exception):
    """A request that is not answered, as the API says it."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = _error(message, code)


def error_of(status: int, message: str) -> dict[str, Any]:
    """The body of a refusal that concerns HTTP alone."""
    return _error(message, HTTPStatus(status).phrase.lower().replace(" ", "_"))


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": code, "code": code}}


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(BaseModel):
    """What is read of a request; other fields of the API are not used."""

    messages: list[ChatMessage]
    model: str | None = None
    stream: bool = False
    n: int | None = None


def parse_chat(body: bytes) -> ChatRequest:
    """What a body asks.

    Raises:
        Refused: it is no request of the API, or one for several answers.
    """
    try:
        chat = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Refused(400, f"{place}: {first['msg']}", "invalid_request_error") from error
    if chat.n not in (None, 1):
        raise Refused(400, f"n={chat.n}: one answer per request", "invalid_request_error")
    return chat


def question_of(chat: ChatRequest, limit: int) -> str:
    """The last message of the user.

    Raises:
        Refused: there is none with text, or it is longer than `limit` characters.
    """
    asked = [message for message in chat.messages if message.role == "user"]
    content = asked[-1].content if asked else None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    question = (content or "").strip()
    if not question:
        raise Refused(400, "messages: no user message with text", "invalid_request_error")
    if len(question) > limit:
        raise Refused(
            400,
            f"messages: the question has {len(question)} characters, at most {limit} are read",
            "invalid_request_error",
        )
    return question
