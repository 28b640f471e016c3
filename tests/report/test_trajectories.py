from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.run_folders import episode, with_tokens, write_run, write_transcripts
from zerosearch.core.errors import InputError
from zerosearch.report.run_folder import find_runs
from zerosearch.report.token_values import shown_values
from zerosearch.report.trajectories import LONGEST, Transcripts, read_transcripts


def read(folder: Path, limit: int = 1000) -> Transcripts:
    return read_transcripts(find_runs([str(folder)]), limit)


def texts(found: Transcripts, place: int) -> dict[str, Any]:
    packed = found.chunks[found.columns["chunk"][place]]
    return json.loads(gzip.decompress(base64.b64decode(packed)))[found.columns["row"][place]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_trajectory_has_what_filters_need_and_its_texts_packed(folder: Path) -> None:
    siblings = [episode(), episode(sibling=1, noisy=True, answer=None)]
    write_transcripts(folder, "train", 3, [*siblings, episode(sibling=2, document=None)])
    found = read(folder)
    columns = found.columns
    assert columns["step"] == [3] * 3 and columns["sibling"] == [0, 1, 2]
    assert columns["reward"] == [1, 0, 1] and columns["advantage"] == [0.5, -0.5, -1.5]
    assert columns["quality"] == [1, 2, 0] and columns["searches"] == [1, 1, 0]
    assert [found.stops.values[n] for n in columns["stop"]] == ["answer", "eos", "answer"]
    assert found.questions.values == [{"text": "Capital of Italy?", "golden": ["Rome"]}]
    assert found.phases.values == ["train"] and len(found.chunks) == 1
    first, second = texts(found, 1)["turns"]
    assert first["noisy"] is True and (first["found"], first["asked"]) == (1, 1)
    assert "The capital is Rome." in first["read"] and second["read"] is None
    assert texts(found, 1)["noise"] == 0.25


def test_values_of_tokens_are_those_of_the_text_that_is_shown(folder: Path) -> None:
    line = with_tokens(episode(document=None, answer="é😀\x1b" + "x" * LONGEST))
    write_transcripts(folder, "train", 0, [line, episode(sibling=1)])
    found = read(folder)
    assert found.columns["tokens"] == [1, 0]
    [turn] = texts(found, 0)["turns"]
    units, logprobs = turn["values"]["units"], turn["values"]["logprobs"]
    assert len(units) == LONGEST and units[:12] == [1] * 9 + [2, 4, 1]
    assert len(logprobs) == LONGEST and logprobs[:99] == [-10 * n for n in range(99)]
    assert turn["values"]["entropies"] == [200] * LONGEST
    assert "values" not in texts(found, 1)["turns"][0]


@pytest.mark.parametrize(
    "tokens",
    [
        {"characters": [2], "logprobs": [-1]},
        {"characters": [3, 1], "logprobs": [-1, -1]},
        {"characters": [4, -1], "logprobs": [-1, -1]},
        {"characters": [True, 2], "logprobs": [-1, -1]},
        {"characters": [3], "logprobs": []},
        {"characters": [3], "logprobs": [None]},
        {"characters": [3], "logprobs": ["</script>"]},
        {"characters": [3], "entropies": [1]},
        {"characters": [3], "logprobs": [-1], "entropies": [float("nan")]},
        {"characters": "3", "logprobs": [-1]},
        [3],
    ],
    ids=str,
)
def test_values_that_do_not_fit_the_text_are_left_out(tokens: Any) -> None:
    assert shown_values(tokens, "abc", 10, str) is None


def test_half_characters_add_up_and_the_end_of_the_text_has_no_place() -> None:
    tokens = {"characters": [1, 0, 2, 0], "logprobs": [-1, -0.5, -0.25, -3], "entropies": [1] * 4}
    assert shown_values(tokens, "abc", 10, str) == {
        "units": [1, 2],
        "logprobs": [-100, -75],
        "entropies": [100, 200],
    }
    assert shown_values(tokens, "abc", 2, str) == {
        "units": [1, 1],
        "logprobs": [-100, -75],
        "entropies": [100, 200],
    }


def test_what_would_act_in_a_terminal_or_turn_text_around_is_written_out(folder: Path) -> None:
    hostile = "\x1b[31mred\x1b[0m \u202egnirts\u202c \x00"
    write_transcripts(folder, "train", 0, [episode(document=hostile, question=hostile)])
    found = read(folder)
    shown = r"\x1b[31mred\x1b[0m \u202egnirts\u202c \x00"
    assert found.questions.values[0]["text"] == shown
    assert shown in texts(found, 0)["turns"][0]["read"]


def test_a_document_of_a_megabyte_is_cut_and_says_where_it_is(folder: Path) -> None:
    write_transcripts(folder, "train", 0, [episode(document="x" * 1_000_000)])
    shown = texts(read(folder), 0)["turns"][0]["read"]
    assert len(shown) < LONGEST + 100
    assert shown.endswith("980,038 more characters: step_000000.jsonl, line 1]")


def test_of_too_many_whole_groups_are_taken_and_both_sides_of_an_evaluation(folder: Path) -> None:
    for step in range(20):
        group = [episode(uid=f"q{step}", sibling=n) for n in range(4)]
        write_transcripts(folder, "train", step, group)
    for phase in ("start/bm25", "test/bm25"):
        write_transcripts(
            folder, phase, 0, [episode(uid=f"t{n}", question=f"{n}?") for n in range(60)]
        )
    found = read(folder, limit=80)
    assert found.written == 200 and 40 < found.count < 120
    columns = found.columns
    of = {name: n for n, name in enumerate(found.phases.values)}
    steps = [s for s, p in zip(columns["step"], columns["phase"], strict=True) if p == of["train"]]
    assert all(steps.count(step) == 4 for step in {*steps})
    asked = {
        name: {q for q, p in zip(columns["question"], columns["phase"], strict=True) if p == n}
        for name, n in of.items()
    }
    assert asked["start/bm25"] == asked["test/bm25"] != set()
    assert read(folder, limit=0).count == 0


def test_files_of_several_processes_and_of_older_versions_are_read(folder: Path) -> None:
    for rank in (0, 1):
        write_transcripts(folder, "train", 0, [episode(group=rank)])
        file = folder / "transcripts" / "train" / "step_000000.jsonl"
        file.rename(file.with_name(f"step_000000.rank{rank}.jsonl"))
    old = {"step": 0, "question": "Q?", "turns": [{"text": "<answer>A</answer>"}], "reward": None}
    file = folder / "transcripts" / "validation" / "bm25" / "step_000000.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(old) + "\n")
    found = read(folder)
    assert found.columns["group"] == [0, 1, 0]
    assert found.columns["reward"] == [1, 1, None]


def test_a_damaged_line_is_named(folder: Path) -> None:
    write_transcripts(folder, "train", 0, [episode()])
    file = folder / "transcripts" / "train" / "step_000000.jsonl"
    file.write_text(file.read_text() + '{"step": 0, "quest\n')
    with pytest.raises(InputError, match=r"step_000000\.jsonl, line 2: no transcript"):
        read(folder)
