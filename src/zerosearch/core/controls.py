"""Text from outside loses what a tokenizer or a chat server would read as control tokens.

A prompt is encoded as a whole, its template's own control tokens with the text that it shows. So
text is disarmed where it enters, before it is put into a template, and not when it is encoded.
Marks are rewritten into look-alikes instead of deleted: a deletion could join its neighbours into
a new mark. Text without marks stays as it is, so that its token ids do, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from zerosearch.core.errors import InputError

THINK = ("<think>", "</think>")  # a model may read these again in what it wrote itself

_LOOKALIKES = str.maketrans("<>[]{}|", "‹›❲❳❴❵¦")
# with the other characters that NFKC makes these of
_ALL_LOOKALIKES = _LOOKALIKES | str.maketrans("＜﹤＞﹥［﹇］﹈｛﹛︷｝﹜︸｜", "‹‹››❲❲❳❳❴❴❴❵❵❵¦")
_SEPARATOR = "·"

# As the chat templates and tokenizers of the families have them (tokenizer_config.json, 2026-11):
# a bar inside one bracket or both (Qwen, Llama 3, Phi, DeepSeek, Gemma 4), without a space at it,
# as a pipe of F# or Elixir has,
_BARRED = r"</?[|｜](?!\s)[^<>|｜\n]{1,64}(?<!\s)[|｜]?>|<(?!\s)[^<>|｜\n]{1,64}(?<!\s)[|｜]>"
# names in angle brackets (Llama 2, Gemma, Qwen and Hermes, SmolLM2, T5, GLM),
_ANGLED = (
    r"</?(?:s|bos|eos|pad|unk|mask|cls|sep|sop|eop|bos_token|eos_token|think"
    r"|tools?|tool_calls?|tool_response|start_of_[a-z]+|end_of_[a-z]+|(?:image|audio)_soft_token"
    r"|unused\d+|reserved_\d+|special_\d+|extra_id_\d+|2mass|repo_?name|file_sep|gh_stars"
    r"|fim_[a-z]+|issue_[a-z]+|jupyter_[a-z_]+|commit_[a-z]+|empty_output)>"
    r"|<</?SYS>>"
)
# and names in square ones (Mistral, Llama 2, BERT, GLM).
_SQUARE = (
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID"
    r"|THINK|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE|PREFIX|MIDDLE|SUFFIX"
    r"|MODEL_SETTINGS|CLS|SEP|MASK|gMASK|sMASK|PAD|UNK|BOS|EOS|EOT|@BOS@|multimodal)\]"
)
_FAMILIES = rf"{_BARRED}|(?i:{_ANGLED})|{_SQUARE}"


def disarm(text: str, extra: Sequence[str] = (), *, keep: Sequence[str] = ()) -> str:
    """Rewrite the control marks in a text; other text stays as it is, to the character.

    Marks of the Qwen, Llama, Gemma, Mistral and DeepSeek families get typographic brackets and
    bars. So do the marks of `extra`; those without a bracket get middle dots. A mark in characters
    that a tokenizer's normal form (NFKC) would turn into plain ones counts as well; where such a
    mark has no bracket, the whole text is put into that form. Idempotent.

    Args:
        text: of a question, an answer, a query, a document or a reply.
        extra: the control strings of the tokenizer that will read it, where it is at hand.
        keep: marks that stay, as the text's own grammar has them.

    Raises:
        InputError: a string of `extra` contains the middle dot that is used to break others up.
    """
    pattern = _pattern(tuple(extra), tuple(keep))
    # Marks may overlap, so disarming one can leave another whole. Each pass has fewer brackets or
    # fewer neighbouring letters than the one before, so the loop ends.
    while pattern.search(text):
        text = pattern.sub(_rewritten, text)
    if not text.isascii() and not unicodedata.is_normalized("NFKC", text):
        normal = unicodedata.normalize("NFKC", text)
        if pattern.search(normal):
            text = text.translate(_ALL_LOOKALIKES)
            normal = unicodedata.normalize("NFKC", text)
            if pattern.search(normal):  # a mark of other characters than brackets and bars
                return disarm(normal, extra, keep=keep)
    return text


def marks_in(text: str) -> tuple[str, ...]:
    """The control marks of all families that stand in a text, each once."""
    return tuple(dict.fromkeys(found[0] for found in _pattern((), ()).finditer(text)))


@lru_cache(maxsize=32)
def _pattern(extra: tuple[str, ...], keep: tuple[str, ...]) -> re.Pattern[str]:
    tokens = sorted({token for token in extra if token} - set(keep), key=len, reverse=True)
    for token in tokens:
        if _SEPARATOR in token:
            raise InputError(f"special_tokens: {token!r} contains {_SEPARATOR!r}; leave it out")
    marks = "|".join([*(re.escape(token) for token in tokens), _FAMILIES])
    kept = "|".join(re.escape(mark) for mark in keep)
    return re.compile(rf"(?!{kept})(?:{marks})" if keep else marks)


def _rewritten(match: re.Match[str]) -> str:
    mark = match[0]
    rewritten = mark.translate(_ALL_LOOKALIKES)
    if rewritten != mark:
        return rewritten
    return _SEPARATOR.join(mark) if len(mark) > 1 else _SEPARATOR
