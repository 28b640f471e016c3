"""Rows of a simulation-tuning data set -> prompt and reply of each, as the tuned model saw them.

Accepted are the two forms in which such sets are published: alpaca (`instruction`, `input`,
`output`) and chat (`messages` or `conversations`, with `role`/`content` or `from`/`value`), and
any other set whose prompt is one text, by naming the field.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zerosearch.core.controls import THINK, disarm, marks_in
from zerosearch.core.errors import InputError
from zerosearch.data.json_text import check_writable
from zerosearch.data.readers import hub_file, local_files
from zerosearch.tuning.template.alignment import SYSTEM_END

CHAT_KEYS = ("messages", "conversations")
TEXT_KEYS = ("instruction", "prompt")
REPLY_KEYS = ("output", "response", "completion")  # beside a prompt that is one text
_USER_ROLES = ("user", "human")
_MODEL_ROLES = ("assistant", "gpt")
# Fields that rows may carry beside the prompt, by the template's name for them.
FIELD_KEYS = {
    "query": ("query", "search_query"),
    "question": ("question", "problem"),
    "golden_answers": ("golden_answers", "golden_answer", "ground_truth", "answer", "answers"),
}

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class TuningRow:
    """One example."""

    location: str
    prompt: str
    system: str  # "" where there is none
    reply: str = ""  # "" where there is none
    fields: dict[str, str | list[str]] = field(default_factory=dict)  # of FIELD_KEYS, where given

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the tuned model was asked, as `role` and `content`."""
        user = {"role": "user", "content": self.prompt}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]

    @property
    def text(self) -> str:
        """The messages as one text."""
        return SYSTEM_END.join(message["content"] for message in self.messages)


def read_rows(
    path: str, *, prompt_key: str | None, joiner: str, reply_key: str | None = None
) -> list[TuningRow]:
    """Read a data set, as it is written: see `without_controls`.

    Args:
        path: .json, .jsonl or .parquet file, or hub name.
        prompt_key: field that holds the prompt, as text or as a list of messages; None: the first
            of `messages`, `conversations`, `instruction`, `prompt` that a row has.
        joiner: stands between `instruction` and a non-empty `input`.
        reply_key: field that holds the reply where the prompt is a text; None: the first of
            `output`, `response`, `completion` that a row has. The reply of a chat is its last
            message.

    Raises:
        InputError: no such file, no row, a row without a prompt, or a system message that only
            some of the rows have.
    """
    files = local_files(path) or [hub_file(path, None, "train", streaming=False)]
    rows = [
        _read_row(row, location, prompt_key, joiner, reply_key)
        for file in files
        for _, location, row in file.read_all()
    ]
    if not rows:
        raise InputError(f"{path} holds no rows; check the file")
    lacking = [row.location for row in rows if not row.system]
    if 0 < len(lacking) < len(rows):
        raise InputError(
            f"{len(lacking)} of {len(rows)} rows have no system message, such as {lacking[0]}: "
            "a template sends one with every prompt or with none, give rows of one kind"
        )
    return rows


def without_controls(path: str, rows: Sequence[TuningRow], template: str) -> list[TuningRow]:
    """Rows without control tokens but those of their template; how many had some is logged.

    Args:
        path: of the rows, for the log.
        rows: of `read_rows`.
        template: of their prompts, which is trusted.
    """
    keep = (*THINK, *marks_in(template))
    harmless = [_disarmed(row, keep) for row in rows]
    log_disarmed(path, sum(a != b for a, b in zip(rows, harmless, strict=True)), len(rows))
    return harmless


def log_disarmed(path: str, count: int, rows: int) -> None:
    """Say how many rows of a file held control tokens."""
    if count:
        log.warning(
            "%s: %d of %d rows hold control tokens of a chat model, such as <|im_end|>; they are "
            "trained on as text, in look-alike brackets",
            path,
            count,
            rows,
        )


def _disarmed(row: TuningRow, keep: tuple[str, ...]) -> TuningRow:
    def harmless(text: str) -> str:
        return disarm(text, keep=keep)

    return replace(
        row,
        prompt=harmless(row.prompt),
        system=harmless(row.system),
        reply=harmless(row.reply),
        fields={
            name: harmless(value) if isinstance(value, str) else [harmless(each) for each in value]
            for name, value in row.fields.items()
        },
    )


def _read_row(
    row: Mapping[str, Any],
    location: str,
    prompt_key: str | None,
    joiner: str,
    reply_key: str | None,
) -> TuningRow:
    keys = [prompt_key] if prompt_key else [key for key in (*CHAT_KEYS, *TEXT_KEYS) if row.get(key)]
    if not keys or not row.get(keys[0]):
        raise InputError(
            f"{location}: no prompt in {keys or [*CHAT_KEYS, *TEXT_KEYS]}; it has the fields "
            f"{sorted(row)}; name the right one with --prompt-key"
        )
    key, value = keys[0], row[keys[0]]
    system = str(row.get("system") or "")
    reply_keys = [reply_key] if reply_key else REPLY_KEYS
    reply = next((str(row[key]) for key in reply_keys if row.get(key)), "")
    if not isinstance(value, str):
        prompt, own_system, own_reply = _from_chat(value, location, key)
        system, reply = own_system or system, own_reply or reply
    elif key == "instruction" and row.get("input"):
        prompt = f"{value}{joiner}{row['input']}"
    else:
        prompt = value
    fields = _fields(row, prompt_key)
    check_writable([prompt, system, reply, fields], f"{location}: the row")
    return TuningRow(location=location, prompt=prompt, system=system, reply=reply, fields=fields)


def _from_chat(messages: Any, location: str, key: str) -> tuple[str, str, str]:
    """The one user message, then the system message and the reply, or ""."""
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
        raise InputError(f"{location}: field '{key}' is neither a text nor a list of messages")
    texts: dict[str, list[str]] = {}
    for message in messages:
        role = str(message.get("role") or message.get("from"))
        texts.setdefault(role, []).append(str(message.get("content") or message.get("value") or ""))
    users = [text for role in _USER_ROLES for text in texts.get(role, [])]
    if len(users) != 1:
        raise InputError(
            f"{location}: field '{key}' holds {len(users)} user messages (roles "
            f"{sorted(texts)}); a simulator is asked once, give rows with one"
        )
    replies = [text for role in _MODEL_ROLES for text in texts.get(role, [])]
    return users[0], "".join(texts.get("system", [])), replies[-1] if replies else ""


def _fields(row: Mapping[str, Any], prompt_key: str | None) -> dict[str, str | list[str]]:
    found: dict[str, str | list[str]] = {}
    for name, keys in FIELD_KEYS.items():
        for key in keys:
            value = row.get(key)
            if key == prompt_key or name in found or value is None:
                continue
            if isinstance(value, str):
                found[name] = value
            elif isinstance(value, Sequence):
                found[name] = [str(item) for item in value if item is not None]
    return found
