import pytest

from tests.helpers.waiting import guarded
from zerosearch.reward.answer import extract_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>so</think><answer>Oslo</answer>", "Oslo"),
        ("<answer>\n  Oslo \t</answer> trailing", "Oslo"),
        ("<answer>first</answer> or <answer>second</answer>", "second"),
        ("<answer>Oslo\nNorway</answer>", "Oslo\nNorway"),
        ("<answer></answer>", ""),
        ("<answer>   </answer>", ""),
        ("", None),
        ("Oslo", None),
        ("<answer>Oslo", None),
        ("Oslo</answer>", None),
        ("</answer>Oslo<answer>", None),
        ("<answer>kept</answer> and <answer>cut off", "kept"),
        ("<answer>outer <answer>inner</answer>", "inner"),
        ("<answer>outer <answer>inner</answer> rest</answer>", "inner"),
        ("<answer>kept</answer> stray </answer>", "kept"),
        ("<answer>kept</answer></answer><answer>", "kept"),
        ("<answer>1 < 2 > 0</answer>", "1 < 2 > 0"),
        ("<answer>Oslo</search>", None),
        ("<answer >Oslo</answer >", None),
        ("<ans<answer>Oslo</answer>wer>", "Oslo"),
    ],
)
def test_extracts_the_last_complete_pair(text: str, expected: str | None) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize("tag", ["<answer>", "</answer>", "<answer>x</answer>", "<answer"])
def test_time_grows_linearly_with_repeated_tags(tag: str) -> None:
    with guarded():  # about 10 ms; hours if it were quadratic
        extract_answer(tag * 500_000)
