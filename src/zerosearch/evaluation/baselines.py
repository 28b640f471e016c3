"""The prompted methods of the paper's table, over the interface of every agent.

Direct answer, chain of thought and RAG reply once (`OneReply`); the tool-calling agent (RA-Agent)
and Search-o1 (arXiv 2501.05366) search while they reason. Prompts are our own, one jinja2 file
each, named by `episode.prompt_template`. An answer stands in answer tags; where a prompt asks for
the answer alone, a reply without tags is the answer.
"""

from __future__ import annotations

import json
from typing import Any

from zerosearch.clients.chat import ChatModel
from zerosearch.core.controls import THINK, disarm
from zerosearch.core.text import whole_characters
from zerosearch.reward.answer import CLOSE_TAG, OPEN_TAG, extract_answer
from zerosearch.rollout.agent import OnText
from zerosearch.rollout.chat_agent import CHARS_PER_TOKEN, ChatAgent, Talk, close_tag, fit
from zerosearch.rollout.environment import Step, show_documents
from zerosearch.rollout.settings import EpisodeSettings
from zerosearch.rollout.tags import ANSWER, INFORMATION, SEARCH
from zerosearch.types import SearchError, SearchRequest, Trajectory, Turn

TOOL_CALL = ("<tool_call>", "</tool_call>")  # as Qwen and Hermes models are trained to write it
TOOL_RESPONSE = ("<tool_response>", "</tool_response>")
O1_QUERY = ("<|begin_search_query|>", "<|end_search_query|>")  # arXiv 2501.05366, section 3.3
O1_RESULT = ("<|begin_search_result|>", "<|end_search_result|>")
DIGEST_PROMPT = """\
Someone reasons about a question and has looked something up. Read the documents and write down, \
in a few sentences, what in them helps with the next step of the reasoning. Use nothing but the \
documents; if nothing in them helps, write: nothing helpful was found.

Reasoning so far:
{reasoning}

Query: {query}

Documents:
{documents}
"""


class OneReply(ChatAgent):
    """One prompt, one reply; with `retrieves`, the question is looked up first.

    Args:
        client: the model.
        episode: prompt and budgets; of a search too.
        retrieves: whether documents found for the question precede the prompt.
        answer_alone: whether the prompt asks for nothing but the answer.
        temperature: of the reply.
        turn_timeout_s: bound of the reply, all attempts together.
    """

    stop = (CLOSE_TAG,)

    def __init__(
        self,
        client: ChatModel,
        episode: EpisodeSettings,
        *,
        retrieves: bool = False,
        answer_alone: bool = False,
        temperature: float = 0.0,
        turn_timeout_s: float = 120.0,
    ) -> None:
        super().__init__(client, episode, temperature=temperature, turn_timeout_s=turn_timeout_s)
        self.retrieves = retrieves
        self.answer_alone = answer_alone

    def settings(self) -> dict[str, Any]:
        """See `Agent`."""
        own = {"retrieves": self.retrieves, "answer_alone": self.answer_alone}
        return super().settings() | own

    async def converse(
        self, talk: Talk, trajectory: Trajectory, on_text: OnText | None
    ) -> str | None:
        """See `ChatAgent`."""
        prompt = self.episode.render_prompt(trajectory.question)
        if self.retrieves:
            found = await self._look_up(talk, trajectory)
            if found is None:
                return None
            prompt = f"{found}\n\n{prompt}"
        talk.messages.append({"role": "user", "content": prompt})
        reply = await self.ask(talk, talk.messages)
        text = close_tag(reply.text)
        if on_text is not None:
            on_text(text)
        answer = extract_answer(text)
        if answer is None and self.answer_alone:
            lines = [line.strip() for line in reply.text.replace(OPEN_TAG, "").splitlines()]
            answer = next((line for line in lines if line), None)
        action = "invalid" if answer is None else "answer"
        trajectory.turns.append(Turn(text=text, action=action, sampled_tokens=reply.sampled))
        ended = "turn_budget" if reply.finish_reason == "length" else "eos"
        trajectory.stop_reason = ended if answer is None else "answer"
        return answer

    async def _look_up(self, talk: Talk, trajectory: Trajectory) -> str | None:
        question, environment = trajectory.question, talk.environment
        request = SearchRequest(
            query=question.text,
            question=question.text,
            golden_answers=question.golden_answers,
            top_k=self.episode.top_k,
            seed=environment.position.seed_of(question, 0, "search"),
            timeout_s=self.episode.search_timeout_s,
        )
        turn = Turn(text="", action="search", query=question.text)
        trajectory.turns.append(turn)
        try:
            turn.result = await environment.engine.search(request)
        except SearchError as error:
            trajectory.end("search_failed", error)
            return None
        observation = show_documents(turn.result, self.episode)
        limit = self.episode.max_observation_tokens * CHARS_PER_TOKEN
        turn.observation = fit(observation, limit).strip()
        return turn.observation


class ToolAgent(ChatAgent):
    """Calls a tool `search` in the form that chat models know: JSON between tool-call tags."""

    stop = (TOOL_CALL[1], ANSWER[1])
    marks = (*THINK, *TOOL_CALL)

    def close(self, text: str) -> str:
        """See `ChatAgent`."""
        return _closed(text, TOOL_CALL)

    def to_tags(self, text: str) -> str:
        """See `ChatAgent`; a call that is no JSON or names no query stays as it is."""
        before, opening, call = text.rpartition(TOOL_CALL[0])
        if not opening or not call.endswith(TOOL_CALL[1]):
            return text
        query = _query_of(call.removesuffix(TOOL_CALL[1]))
        return text if query is None else f"{before}{SEARCH[0]}{query}{SEARCH[1]}"

    async def show(self, talk: Talk, step: Step) -> str:
        """See `ChatAgent`."""
        shown = await super().show(talk, step)
        for ours, theirs in zip(INFORMATION, TOOL_RESPONSE, strict=True):
            shown = shown.replace(ours, theirs)
        return shown


class SearchO1(ChatAgent):
    """Search-o1: what a search finds is first reasoned over in a prompt of its own."""

    stop = (O1_QUERY[1], ANSWER[1])
    marks = (*THINK, *O1_QUERY)

    def close(self, text: str) -> str:
        """See `ChatAgent`."""
        return _closed(text, O1_QUERY)

    def to_tags(self, text: str) -> str:
        """See `ChatAgent`."""
        before, opening, query = text.rpartition(O1_QUERY[0])
        if not opening or not query.endswith(O1_QUERY[1]):
            return text
        return f"{before}{SEARCH[0]}{query.removesuffix(O1_QUERY[1])}{SEARCH[1]}"

    async def show(self, talk: Talk, step: Step) -> str:
        """See `ChatAgent`; after a search, the digest of its documents."""
        shown = await super().show(talk, step)
        if step.turn.query is None:
            return shown
        documents = shown.removeprefix(INFORMATION[0]).removesuffix(INFORMATION[1]).strip()
        reasoning = "\n".join(m["content"] for m in talk.messages if m["role"] == "assistant")
        prompt = DIGEST_PROMPT.format(
            reasoning=reasoning, query=disarm(step.turn.query), documents=documents or "none"
        )
        reply = await self.ask(talk, [{"role": "user", "content": prompt}], purpose="digest")
        step.turn.sampled_tokens += reply.sampled
        return f"{O1_RESULT[0]}{disarm(reply.text.strip())}{O1_RESULT[1]}"


def _query_of(call: str) -> str | None:
    """The query of a tool call; its arguments may be JSON text, as in OpenAI's replies."""
    try:
        arguments = json.loads(call)["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        query = arguments["query"]
    except (ValueError, RecursionError, LookupError, TypeError):  # whatever the model wrote
        return None
    return whole_characters(query) if isinstance(query, str) else None


def _closed(text: str, call: tuple[str, str]) -> str:
    """A turn with the closing tag that servers leave out, of a call or of an answer."""
    opening, closing = call
    start = text.rfind(opening)
    if start > text.rfind(ANSWER[0]) and closing not in text[start:]:
        return text + closing
    return close_tag(text)
