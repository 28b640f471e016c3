"""Episodes in a terminal, as they happen, or as lines of JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from zerosearch.answering.events import Ended, Event, Found, Searching, Wrote
from zerosearch.answering.sections import Section, Sections
from zerosearch.core.shown import shown, shown_json

_STYLES: dict[Section, str] = {"text": "dim", "think": "dim italic", "answer": "bold green"}
_SHOWN_CHARS = 300  # of a document


class Screen:
    """Shows the events of one episode after another."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._sections = Sections()
        self._within_line = False

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Wrote(text=text):
                for section, part in self._sections.feed(text):
                    self._write(section, part)
            case Searching(query=query):
                self._flush()
                self._console.print(f"[bold cyan]search[/] {escape(shown(query))}")
            case Found(result=result):
                for number, document in enumerate(result.documents, start=1):
                    text = " ".join(f"{document.title} {document.text}".split())
                    cut = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ..."
                    self._console.print(
                        f"  [cyan]{number}[/] {escape(shown(cut))}", highlight=False
                    )
                if not result.documents:
                    self._console.print("  [yellow]nothing found[/]")
            case Ended():
                self._flush()
                self._console.print(_verdict(event))

    def _write(self, section: Section, text: str) -> None:
        if section == "search":  # shown when the query is sent
            return
        if not self._within_line:
            text = text.lstrip()
        if text:
            style = {"style": _STYLES[section], "markup": False, "highlight": False}
            self._console.print(shown(text, lines=True), end="", **style)
            self._within_line = not text.endswith("\n")

    def _flush(self) -> None:
        for section, part in self._sections.end():
            self._write(section, part)
        if self._within_line:
            self._console.print()
        self._within_line = False


def _verdict(event: Ended) -> str:
    played, trajectory = event.played, event.played.trajectory
    count = len(trajectory.searches)
    took = f"[dim]({count} search{'' if count == 1 else 'es'}, {event.seconds:.1f} s)[/]"
    if trajectory.error is not None:
        return f"[bold red]failed[/] {escape(shown(trajectory.error))} {took}"
    if played.answer is None:
        return f"[bold red]no answer[/] (it ended by: {trajectory.stop_reason}) {took}"
    return f"[bold green]answer[/] {escape(shown(played.answer))} {took}"


def as_json(question: str, event: Ended) -> str:
    """One episode as a line."""
    trajectory = event.played.trajectory
    turns: list[dict[str, Any]] = []
    for turn in trajectory.turns:
        shown: dict[str, Any] = {"text": turn.text}
        if turn.query is not None and turn.result is not None:
            shown["query"] = turn.query
            shown["documents"] = [
                {"title": each.title, "text": each.text} for each in turn.result.documents
            ]
        turns.append(shown)
    return shown_json(
        {
            "question": question,
            "answer": event.played.answer if trajectory.valid else None,
            "stop": trajectory.stop_reason,
            "error": trajectory.error,
            "searches": len(trajectory.searches),
            "seconds": round(event.seconds, 3),
            "turns": turns,
        }
    )
