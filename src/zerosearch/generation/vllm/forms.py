"""The forms of what a vLLM server sends; a reply of another form is a failure of the call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(max_length=300)]
Token = Annotated[int, Field(ge=0)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]


class Form(BaseModel):
    """Fields that are read; others may be there."""

    model_config = ConfigDict(strict=True)


class _Model(Form):
    id: Name
    max_model_len: Annotated[int, Field(ge=1)]


class Models(Form):
    """Of `/v1/models`."""

    data: Annotated[list[_Model], Field(min_length=1)]


class Tokens(Form):
    """Of `/tokenize`."""

    tokens: list[Token]


class WeightInfo(Form):
    """Of `/weight_info`."""

    weight_version: Name


class Results(Form):
    """Of `/collective_rpc`: one value per worker."""

    results: Annotated[list[Any], Field(min_length=1)]


class _Worker(Form):
    rank: int
    vllm: Annotated[str, Field(pattern=r"^\d+(\.\d+)*[\w.+-]{0,60}$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    sizes: dict[Name, Any]
    link: Name | None


class Workers(Form):
    """Of `/collective_rpc` with `describe_policy`."""

    results: Annotated[list[_Worker], Field(min_length=1)]


class _Logprobs(Form):
    token_logprobs: list[FiniteNumber]


class _Choice(Form):
    token_ids: list[Token] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: Name | None = None


class _Usage(Form):
    prompt_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    prompt_tokens_details: Any = None


class Completion(Form):
    """Of `/v1/completions`."""

    id: Name
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage
