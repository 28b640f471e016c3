"""A chat template that prints today's date: a run that goes on reads the prompts it began with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.sharded_training import Job, make_job_module
from tests.helpers.words import save_word_policy
from zerosearch.core.errors import InputError
from zerosearch.core.run_date import keep_run_date, run_date, set_run_date
from zerosearch.training.module import SearchPolicyModule

TEMPLATE = '{{ strftime_now("%d %b %Y") }} {{ messages[0].content }}'


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    folder = Path(save_word_policy(tmp_path / "policy"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def started(policy: Path, date: str) -> SearchPolicyModule:
    """The module of a run that begins on a day."""
    set_run_date(date)
    module = make_job_module(Job(policy=policy, out=policy / "out"))
    module.policy_source.chat = True
    module.tokenizer = module.policy_source.load_tokenizer()
    return module


def test_the_date_of_the_run_is_in_its_checkpoint_and_goes_on(policy: Path) -> None:
    first = started(policy, "2026-02-03T10:00:00")
    saved = first.progress()
    assert saved["date"] == "2026-02-03T10:00:00"
    second = started(policy, "2026-02-04T09:00:00")
    assert second.tokenizer is not None and "04 Feb" in str(second.tokenizer.chat_template)
    second.restore_progress({}, saved)
    assert second.tokenizer.chat_template == '{{ "03 Feb 2026" }} {{ messages[0].content }}'
    assert run_date().isoformat() == saved["date"], "for simulators of this process, too"


def test_a_checkpoint_of_before_keeps_todays(policy: Path) -> None:
    module = started(policy, "2026-02-03T10:00:00")
    saved = module.progress()
    del saved["date"]
    module.restore_progress({}, saved)
    assert module.tokenizer is not None and "03 Feb" in str(module.tokenizer.chat_template)


@pytest.mark.parametrize("started_on", [None, "2026-02-04T09:00:00"])
def test_rows_of_a_folder_go_on_under_the_date_they_began_with(
    started_on: str | None, tmp_path: Path
) -> None:
    keep_run_date(tmp_path / "rows")
    began = run_date()
    set_run_date(started_on)  # a process of another day
    keep_run_date(tmp_path / "rows")
    assert run_date() == began
    for written, said in ((b"yesterday", "yesterday"), (b"\xff\xfe", "\ufffd\ufffd")):
        (tmp_path / "rows" / "prompt_date.txt").write_bytes(written)
        with pytest.raises(
            InputError, match=rf"prompt_date\.txt: the date is .{said}.: it should be"
        ):
            keep_run_date(tmp_path / "rows")
