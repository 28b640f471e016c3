"""From messages to prompt token ids: padding, end and begin tokens, chat templates.

The vocabulary is never changed: an added token has an untrained embedding, and resizing breaks the
exact resume and the reference policy. Padding is by mask, so pad = EOS is fine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import cast

from jinja2.exceptions import TemplateError
from tokenizers import processors
from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zerosearch.core.controls import disarm
from zerosearch.core.errors import InputError

Message = dict[str, str]

# Of chat templates: `strftime_now("%d %b %Y")`, and what of that name prints nothing.
_PRINTED_DATE = re.compile(r"""strftime_now\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)""")
_NO_DATE = re.compile(r"\{#.*?#\}|strftime_now\s+is\s+(?:not\s+)?defined", re.DOTALL)


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> PreTrainedTokenizerBase:
    """Give a tokenizer what training needs, in place: a pad token and the BOS of its family.

    Args:
        tokenizer: as loaded.
        config: configuration of the model it belongs to.

    Raises:
        InputError: no EOS token, or token ids of text beyond the model's embeddings.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer of model.path has no EOS token, so that no turn could end: set "
            "eos_token in its tokenizer_config.json"
        )
    top_id = max(_ids_in_use(tokenizer))
    vocabulary = config.get_text_config().vocab_size
    if top_id >= vocabulary:
        raise InputError(
            f"the tokenizer has token id {top_id} but the model only {vocabulary} embeddings: "
            "set model.path / model.tokenizer_path to a pair that belongs together"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if needs_bos(tokenizer, config) and not adds_bos(tokenizer):
        _add_bos_rule(tokenizer)
    return tokenizer


def _ids_in_use(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that a text may get.

    Texts of others hold no control tokens, see `disarm`; ours hold begin, end and padding, what a
    chat template writes, and tags, which come in pairs. Gemma 3 of one billion parameters and less
    has another one, for images, beyond its embeddings.
    """
    controls = {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    template = str(tokenizer.chat_template or "")
    own = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    unused = {
        token_id
        for content, token_id in controls.items()
        if token_id not in own and content not in template and _partner(content) not in controls
    }
    return set(tokenizer.get_vocab().values()) - unused


def _partner(tag: str) -> str:
    """The closing tag of an opening one, and the other way round."""
    return f"<{tag[2:]}" if tag.startswith("</") else f"</{tag[1:]}"


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a BOS before plain text (Llama does, Qwen has none)."""
    if tokenizer.bos_token_id is None:
        return False
    return tokenizer.encode("", add_special_tokens=True)[:1] == [tokenizer.bos_token_id]


def needs_bos(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> bool:
    """Whether the model was trained on text that starts with a BOS.

    The tokenizer says so itself, except where a conversion (GGUF) lost the rule: Gemma models are
    always fed a BOS and write nonsense without it.
    """
    if tokenizer.bos_token_id is None:
        return False
    return adds_bos(tokenizer) or config.model_type.startswith("gemma")


def fix_date(tokenizer: PreTrainedTokenizerBase, date: datetime) -> None:
    """Write a date into a chat template that would print today's (Llama 3.2), in place.

    Raises:
        InputError: it prints a date in a form that is not known beforehand.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        tokenizer.chat_template = {n: _with_date(each, date) for n, each in template.items()}
    elif template is not None:
        tokenizer.chat_template = _with_date(template, date)


def _with_date(template: str, date: datetime) -> str:
    def written(match: re.Match[str]) -> str:
        text = date.strftime(match[1] if match[1] is not None else match[2])
        return json.dumps(text, ensure_ascii=False)

    fixed = _PRINTED_DATE.sub(written, template)
    if "strftime_now" in _NO_DATE.sub("", fixed):
        raise InputError(
            "the chat template of the tokenizer prints today's date with strftime_now in another "
            'form than strftime_now("FORMAT"), so that prompts would change from day to day: '
            "write the date itself into its chat_template"
        )
    return fixed


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The strings that become control ids wherever they stand in a text, sorted.

    `all_special_tokens` alone lacks most of, for example, Llama 3's.
    """
    added = tokenizer.added_tokens_decoder.values()
    controls = {token.content for token in added if token.special}
    return tuple(sorted(controls.union(tokenizer.all_special_tokens)))


def without_own_controls(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[Message]:
    """Messages without the tokenizer's control strings that `disarm` does not know by itself.

    Those it knows have been disarmed where text entered the messages, by callers without the
    tokenizer; what is left of them is the prompt template's own.
    """
    own = [token for token in control_tokens(tokenizer) if disarm(token) == token]
    return [{**each, "content": disarm(each["content"], own)} for each in messages]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode plain text as the start of a sequence.

    The BOS is put there exactly once where the tokenizer is set to add it, also when the text
    already starts with it. An EOS or separator that a tokenizer would append is left out.

    Returns:
        Token ids [P].
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    bos = [cast(int, tokenizer.bos_token_id)] if adds_bos(tokenizer) else []
    return ids if ids[:1] == bos else bos + ids


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: bool
) -> list[int]:
    """Token ids of a prompt, up to the point where the policy starts to write.

    Args:
        tokenizer: prepared by `prepare_tokenizer`.
        messages: {"role", "content"} in order.
        chat: True applies the chat template, which alone decides about the BOS; False joins the
            contents with an empty line and encodes them as plain text (base models).

    Raises:
        InputError: chat without a chat template, or the template refuses the messages.
    """
    if not chat:
        return encode_prompt(tokenizer, "\n\n".join(message["content"] for message in messages))
    check_chat(tokenizer)
    try:
        ids = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise InputError(
            f"the chat template of the tokenizer refuses messages with the roles {roles} "
            f"({error}): change the roles of the prompt template, or set model.chat=false"
        ) from error
    return cast(list[int], ids)


def check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise an InputError when the tokenizer has no chat template."""
    if tokenizer.chat_template is None:
        raise InputError(
            "model.chat=true, but the tokenizer has no chat template: set model.chat=false (base "
            "models read plain text), or use the instruct version of the model"
        )


def _add_bos_rule(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a fast tokenizer put the BOS itself, so that the rule is exported with it."""
    backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    rule = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
    )
    earlier = backend.post_processor
    backend.post_processor = processors.Sequence([earlier, rule]) if earlier else rule
