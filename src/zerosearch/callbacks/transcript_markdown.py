"""A trajectory as Markdown, for TensorBoard's tab Text.

What others wrote is text there: no markup, links or pictures come of it, and nothing that a reader
does not see.
"""

from __future__ import annotations

import re

from zerosearch.core.shown import shown_markdown
from zerosearch.reward.answer import extract_answer
from zerosearch.training.step_record import StepRecord
from zerosearch.types import Turn

LONGEST = 4_000  # characters of one text; the file of transcripts has all of it
_TAG = re.compile(r"&#60;/?(?:think|search|answer|information)&#62;")  # as `shown_markdown` has it


def transcript_markdown(record: StepRecord, index: int) -> str:
    """One trajectory: the question as a heading, what was scored, and each turn as a quotation.

    Documents stand one level deeper than what the policy wrote.
    """
    trajectory, score = record.trajectories[index], record.scores[index]
    answer = extract_answer(trajectory.final_text)
    told = {
        "answer": "(none)" if answer is None else answer,
        "golden": " | ".join(trajectory.question.golden_answers),
    }
    if score is None:
        told["invalid"] = trajectory.error or ""
    else:
        told["reward"] = f"{score.total:.3f} (F1 {score.f1:.3f}, EM {score.em:.0f})"
    if record.advantages:
        told["advantage"] = f"{record.advantages[index]:+.3f}"
    told["stop"] = trajectory.stop_reason or ""
    facts = [f"**{name}** {_line(value)}" for name, value in told.items()]
    parts = [f"#### {_line(trajectory.question.text)}", "  \n".join(facts)]
    for number, turn in enumerate(trajectory.turns, start=1):
        parts += [f"**turn {number}: {_turn_title(turn)}**", _quoted(turn.text, ">")]
        if turn.observation is not None:
            parts.append(_quoted(turn.observation, "> >"))
    return "\n\n".join(parts)


def _turn_title(turn: Turn) -> str:
    if turn.result is None:
        return turn.action
    quality = {None: "", True: "noisy ", False: "useful "}[turn.result.noisy]
    found, asked = len(turn.result.documents), turn.result.requested
    return f"{turn.action}, {found} of {asked} {quality}documents"


def _line(text: str) -> str:
    return shown_markdown(_short(" ".join(text.split())))


def _quoted(text: str, mark: str) -> str:
    """Line by line as it was written, with the tags in bold."""
    lines = shown_markdown(_short(text.strip("\n"))).split("\n")
    marked = [_TAG.sub(r"**\g<0>**", line) for line in lines]
    return "\n".join(f"{mark} {line}  " for line in marked)


def _short(text: str) -> str:
    left_out = len(text) - LONGEST
    return f"{text[:LONGEST]} ... ({left_out} characters more)" if left_out > 0 else text
