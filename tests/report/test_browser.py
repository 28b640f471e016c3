"""The page in a real browser: curves drawn, filters and search by clicks, hostile text inert."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.chromium import Opened, browser
from tests.helpers.run_folders import (
    episode,
    make_sweep,
    with_tokens,
    write_run,
    write_transcripts,
)
from tests.helpers.waiting import wait_until
from zerosearch.report.page import write_page
from zerosearch.report.run_folder import find_runs
from zerosearch.report.sweep import trials_of_sweep

HOSTILE = (
    "<script>document.title='taken'; alert(1)</script><img src=x onerror=\"alert(2)\">"
    "</div></article><table><tr><b <i <!-- ]]> ${alert(1)} {{alert(1)}} \x1b[31mred\x1b[0m "
    "\u202eevil\u202c \u2028"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


def make_run(folder: Path, shift: float = 0.0) -> Path:
    """Ten steps of two groups of four, and evaluations before and after."""
    rows = [
        {
            "reward/total": shift + (7 * n % 10) / 20,
            "curriculum/noise_probability": n / 10,
            "loss/entropy": 1 - n / 20,
            "time/wait_s": 1.0,
            "time/train_s": 2.0,
        }
        for n in range(10)
    ]
    tested = {"start/bm25/f1": 0.0, "test/bm25/f1": 0.75, "test/bm25/count": 4}
    write_run(folder, rows=rows, summary=tested, overrides=[f"noise={shift}"])
    for step in range(10):
        group = [
            episode(
                uid=f"q{g}",
                question=f"Question {g} of step {step}?",
                answer=("Rome", "Paris", "Oslo", None)[n],
                noisy=n == 1,
                document=None if n == 2 else "The capital is Rome.",
                group=g,
                sibling=n,
            )
            for g in range(2)
            for n in range(4)
        ]
        write_transcripts(folder, "train", step, group)
    for phase, step, right in (("start/bm25", 0, 0), ("test/bm25", 10, 3)):
        answers = ["Rome" if n < right else "Paris" for n in range(4)]
        asked = [
            episode(uid=f"t{n}", question=f"Held out {n}?", answer=answers[n]) for n in range(4)
        ]
        write_transcripts(folder, phase, step, asked)
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("report") / "run")
    target = folder / "report.html"
    write_page(find_runs([str(folder)]), target, 1000)
    return target


@pytest.fixture(scope="module")
def opened_once(chromium: Any, report: Path) -> Opened:
    view = Opened(chromium, report)
    view.page.wait_for_selector("body[data-ready]")
    return view


@pytest.fixture
def opened(opened_once: Opened) -> Iterator[Opened]:
    """The page without filters, in which nothing goes wrong."""
    opened_once.page.get_by_role("button", name="Clear filters").click()
    assert found(opened_once) == 80
    yield opened_once
    assert opened_once.wrong == []


def found(view: Opened) -> int:
    """The number of trajectories that the page says it found, once it is done."""
    said = view.page.locator("#found[aria-busy=false]").inner_text()
    return int(said.partition(" of ")[0].replace(",", ""))


def test_curves_are_drawn_and_a_name_hides_its_curve(opened: Opened) -> None:
    chart = opened.page.locator("#charts figure").first
    chart.scroll_into_view_if_needed()
    curves = chart.locator(".plot .scatterlayer .trace")
    curves.first.wait_for()
    assert curves.count() == 2
    assert curves.first.locator("path.js-line").count() == 1
    assert curves.first.locator(".points path").count() == 10, "ten steps"
    assert "reward 0.000 at step 1, 0.150 at step 10" in str(
        chart.locator(".plot").get_attribute("aria-label")
    )
    chart.get_by_role("button", name="noise probability").click()
    wait_until(lambda: curves.count() == 1)


def test_numbers_and_any_metric_by_clicks(opened: Opened) -> None:
    chart = opened.page.locator("#charts figure").first
    chart.get_by_text("Numbers").click()
    chart.locator("tbody tr").nth(9).wait_for()
    opened.page.select_option("#metric", "loss/entropy")
    opened.page.locator("#any .scatterlayer .trace").first.wait_for()


@pytest.mark.parametrize(
    ("field", "value", "count"),
    [
        ("phase", "training", 80),
        ("phase", "all phases", 88),
        ("phase", "before training, bm25", 4),
        ("from", "9", 16),
        ("to", "1", 8),
        ("least", "0.5", 20),
        ("most", "0.5", 60),
        ("stop", "ended without an answer", 20),
        ("documents", "some noisy", 20),
        ("documents", "some useful", 40),
        ("documents", "no search", 20),
        ("text", "question 1 of STEP 3", 4),
        ("text", "I do not know", 20),
        ("text", "capital is rome", 60),
    ],
)
def test_filters_find_what_they_say(field: str, value: str, count: int, opened: Opened) -> None:
    name = "quality" if field == "documents" else field
    control = opened.page.locator(f"#filters [name={name}]")
    if control.evaluate("e => e.tagName") == "SELECT":
        control.select_option(label=value)
    else:
        control.fill(value)
    assert found(opened) == count


def test_siblings_stand_side_by_side_with_their_colours(opened: Opened) -> None:
    page = opened.page
    page.locator("#filters [name=text]").fill("Question 1 of step 3")
    assert found(opened) == 4
    page.locator("#rows button").nth(1).click()
    page.get_by_role("heading", name="Question 1 of step 3?").wait_for()
    cards = page.locator("#reader .sibling")
    assert cards.count() == 4
    assert page.locator("#reader .sibling.chosen h4").inner_text() == "Sibling 2"
    first = cards.first
    assert "reward 1.00 · advantage +0.50 · answered" in first.inner_text()
    kinds = [each.get_attribute("class") for each in first.locator(".part").all()]
    assert kinds == ["part k-think", "part k-search", "part k-useful read", "part k-answer"]
    assert "masked, not trained on" in first.locator(".read").inner_text()
    assert first.locator("mark.golden").all_inner_texts() == ["Rome", "Rome"]
    assert cards.nth(1).locator(".k-noisy").count() == 1


def test_answers_before_and_after_training_stand_side_by_side(opened: Opened) -> None:
    page = opened.page
    page.locator("#filters [name=phase]").select_option(label="before and after training, bm25")
    assert found(opened) == 4
    page.locator("#filters [name=change]").select_option(label="better")
    assert found(opened) == 3
    assert "F1 0.00 → 1.00" in page.locator("#rows button").first.inner_text()
    page.locator("#rows button").first.click()
    page.locator("#reader h4", has_text="After training").wait_for()
    assert page.locator("#reader h4").all_inner_texts() == [
        "Before training, bm25",
        "After training, bm25",
    ]


def test_the_keyboard_goes_through_the_list(opened: Opened) -> None:
    opened.page.locator("#rows button").first.focus()
    for _ in range(30):
        opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("Enter")
    current = opened.page.locator("#rows li", has=opened.page.locator("[aria-current=true]"))
    assert current.get_attribute("aria-posinset") == "31"


def test_dark_and_narrow(chromium: Any, report: Path) -> None:
    view = Opened(chromium, report, viewport={"width": 390, "height": 844}, color_scheme="dark")
    view.page.wait_for_selector("body[data-ready]")
    background = "getComputedStyle(document.body).backgroundColor"
    assert view.page.evaluate(background) == "rgb(13, 17, 23)"
    view.page.get_by_role("button", name="Dark or light").click()
    assert view.page.evaluate(background) == "rgb(255, 255, 255)"
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert view.wrong == []


def test_several_runs_share_charts_and_a_run_can_be_hidden(chromium: Any, tmp_path: Path) -> None:
    folders = [str(make_run(tmp_path / str(n), shift=n / 10)) for n in range(2)]
    write_page(find_runs(folders), tmp_path / "both.html", 1000)
    view = Opened(chromium, tmp_path / "both.html")
    view.page.wait_for_selector("body[data-ready]")
    chart = view.page.locator("#charts figure").first
    chart.scroll_into_view_if_needed()
    curves = chart.locator(".scatterlayer .trace")
    wait_until(lambda: curves.count() == 4)
    view.page.locator("#runs").get_by_role("button", name="noise=0.1").click()
    wait_until(lambda: curves.count() == 2)
    view.page.locator("#filters [name=run]").select_option(label="noise=0.1")
    assert found(view) == 80
    assert view.wrong == []


def test_a_click_colours_tokens_by_log_prob_and_by_entropy(chromium: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows=[{"reward/total": 0.5}])
    answer = "Rome 😀 \u202e<b>Rome</b> " + "x" * 60
    known = with_tokens(episode(answer=answer))
    write_transcripts(folder, "train", 0, [known, episode(sibling=1)])
    write_transcripts(folder, "train", 1, [episode(uid="geo:2", question="And of Peru?")])
    write_page(find_runs([str(folder)]), tmp_path / "page.html", 1000)
    view = Opened(chromium, tmp_path / "page.html")
    page = view.page
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#reader .heat").count() == 0, "the later step has none"
    page.locator("#filters [name=tokens]").select_option(label="recorded")
    assert found(view) == 1
    page.locator("#rows button").first.click()
    tokens = page.locator("#reader .sibling").first.locator(".token")
    page.get_by_role("radio", name="log-prob").wait_for()
    plain = page.locator("#reader .siblings").inner_text()
    assert tokens.count() == 0 and "Rome 😀 \\u202e<b>Rome</b>" in plain

    page.get_by_role("radio", name="log-prob").click()
    tokens.first.wait_for()
    assert page.locator("#reader .siblings").inner_text() == plain
    texts = sum(len(turn.text) for turn in known.turns)
    assert tokens.count() == texts, "one character each, and none twice"
    assert page.locator("#reader .sibling").nth(1).locator(".token").count() == 0
    said = [each.get_attribute("title") or "" for each in tokens.all()[:3]]
    assert [each.partition(":")[0][9:] for each in said] == ["0.00", "-0.10", "-0.20"]
    assert "probability of 90.5%" in said[1]
    smile = page.locator("#reader .k-answer .token", has_text="😀")
    mark = page.locator("#reader .k-answer .token", has_text="\\u202e")
    place = known.turns[1].text.index("😀")
    assert f"log-prob {-place / 10:.2f}:" in str(smile.get_attribute("title"))
    assert f"log-prob {-(place + 2) / 10:.2f}:" in str(mark.get_attribute("title"))
    shade = "e => getComputedStyle(e).backgroundColor"
    assert tokens.first.evaluate(shade) == "rgba(255, 120, 40, 0.04)"
    assert tokens.last.evaluate(shade) == "rgba(255, 120, 40, 0.75)"
    assert page.locator("#reader .sibling").first.locator("mark.golden").count() == 3

    page.get_by_role("radio", name="entropy").click()
    page.locator(".token[title^='entropy 2.00 nats']").first.wait_for()
    assert tokens.first.evaluate(shade) == tokens.last.evaluate(shade)
    page.get_by_role("radio", name="none").click()
    wait_until(lambda: tokens.count() == 0)
    assert page.locator("#reader .siblings").inner_text() == plain
    assert view.wrong == []


def test_the_figure_and_the_table_of_a_sweep_are_on_its_page(chromium: Any, tmp_path: Path) -> None:
    axes = {"simulator": ["<b>good", "fair"], "seed": ["0", "1"]}
    sweep = make_sweep(tmp_path / "sweep", axes, [0.9, 0.8, 0.5, 0.0], {3: {}})
    trials, target = trials_of_sweep(sweep), tmp_path / "page.html"
    write_page(find_runs([str(sweep)]), target, 0, trials)
    view = Opened(chromium, target, color_scheme="dark")
    view.page.wait_for_selector("body[data-ready]")
    result = view.page.locator("#result")
    assert "4 jobs: 3 completed, 1 not started." in result.inner_text()
    row = result.locator("table").first.locator("tbody tr").first
    assert row.locator("td").all_inner_texts()[:2] == ["<b>good", "2"]
    assert "simulator=fair seed=1: not started" in result.locator("li").all_inner_texts()
    figure = view.page.locator("#sweep")
    assert figure.evaluate("each => each.complete && each.naturalWidth") > 300
    bars = """each => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [each.naturalWidth, each.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(each, 0, 0);
        const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
        let blue = 0;
        for (let n = 0; n < pixels.length; n += 4)
            blue += pixels[n] < 110 && pixels[n + 1] > 100 && pixels[n + 2] > 160;
        return blue / (canvas.width * canvas.height);
    }"""
    assert figure.evaluate(bars) > 0.02, "bars in their blue"
    assert view.wrong == []


def test_a_hostile_transcript_does_nothing(chromium: Any, tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run",
        rows=[{"reward/total": 0.5}, {"reward/total": 0.6}],
        summary={"error": HOSTILE, "choices": {"experiment": HOSTILE}},
        overrides=[f"note={HOSTILE}"],
    )
    big = HOSTILE + "x" * 1_000_000
    each = episode(question=HOSTILE, golden=HOSTILE, answer=HOSTILE, document=big)
    write_transcripts(folder, "train", 0, [each, episode(question=HOSTILE, sibling=1)])
    other = write_run(tmp_path / "other", rows=[{"reward/total": 0.1}])
    write_page(find_runs([str(folder), str(other)]), tmp_path / "page.html", 1000)
    view = Opened(chromium, tmp_path / "page.html")
    page = view.page
    page.wait_for_selector("body[data-ready]")
    title = page.title()
    page.locator("#charts figure").first.scroll_into_view_if_needed()
    page.locator("#charts figure .scatterlayer .trace").first.wait_for()
    page.locator("#charts .plot").first.hover()
    page.locator("#rows button").first.click()
    page.locator("#reader .part.read").first.wait_for()
    page.locator("#filters [name=text]").fill("<script>")
    assert found(view) == 2
    shown = page.locator("#reader .part.read").first.inner_text()
    assert "<script>document.title='taken'; alert(1)</script><img src=x" in shown
    assert r"\x1b[31mred\x1b[0m \u202eevil\u202c \u2028" in shown
    assert "more characters: step_000000.jsonl, line 1]" in shown
    assert page.locator("main img:not(#sweep), main article table, main script").count() == 0
    assert page.title() == title
    assert view.wrong == []
