"""The forms of what a vLLM server sends; a reply of another form is a failure of the call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(max_length=300)]
Token = Annotated[int, Field(ge=0)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]


class ReplyForm(BaseModel):
    """Fields that are read; others may be there."""

    model_config = ConfigDict(strict=True)


class _Model(ReplyForm):
    id: Name
    max_model_len: Annotated[int, Field(ge=1)]


class Models(ReplyForm):
    """Of `/v1/models`."""

    data: Annotated[list[_Model], Field(min_length=1)]


class Tokens(ReplyForm):
    """Of `/tokenize`."""

    tokens: list[Token]


class WeightInfo(ReplyForm):
    """Of `/weight_info`."""

    weight_version: Name


class ResultsForm(ReplyForm):
    """Of `/collective_rpc`: one value per worker."""

    results: Annotated[list[Any], Field(min_length=1)]


class _Worker(ReplyForm):
    rank: int
    vllm: Annotated[str, Field(pattern=r"^\d+(\.\d+)*[\w.+-]{0,60}$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    sizes: dict[Name, Any]
    link: Name | None


class Workers(ReplyForm):
    """Of `/collective_rpc` with `describe_policy`."""

    results: Annotated[list[_Worker], Field(min_length=1)]


class _Logprobs(ReplyForm):
    token_logprobs: list[FiniteNumber]


class _Choice(ReplyForm):
    token_ids: list[Token] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: Name | None = None


class _Usage(ReplyForm):
    prompt_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    prompt_tokens_details: Any = None


class CompletionForm(ReplyForm):
    """Of `/v1/completions`."""

    id: Name
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage
