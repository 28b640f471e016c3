"""The table and the figure of a sweep: whose numbers count, and with which intervals."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests.helpers.configs import CONFIGS
from tests.helpers.run_folders import make_sweep, scored, write_run
from zerosearch.commands.report import report_sweep
from zerosearch.core.errors import InputError
from zerosearch.core.shown import shown
from zerosearch.core.sweep_folder import plan_jobs, read_job
from zerosearch.report.figures import save
from zerosearch.report.run_figure import draw_runs
from zerosearch.report.run_folder import find_runs
from zerosearch.report.sweep import mean_of, measures_of, settings_of, trials_of_sweep
from zerosearch.report.sweep_figure import draw_sweep
from zerosearch.report.sweep_files import show_sweep, write_sweep

HOSTILE = ["=cmd|' /C calc'!A0", r"$\frac{x$ a|b", "<script>alert(1)</script>\x1b[31m", "汉\u202e"]
FAILED = {"status": "failed", "error": "InputError: optimizer.lr=-1: give a number above 0"}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two strengths x two seeds; of the second strength one seed has failed."""
    axes = {"noise": ["0.5", "0"], "seed": ["0", "1"]}
    return make_sweep(tmp_path / "noise+seed", axes, [0.4, 0.6, 0.9, 0.0], {3: FAILED})


def lines_of(folder: Path) -> list[dict[str, str]]:
    write_sweep(folder, trials_of_sweep(folder))
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_several_seeds_have_the_interval_of_students_t() -> None:
    found = mean_of([0.4, 0.5, 0.6])
    assert found.value == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5 + 4.303 * 0.1 / 3**0.5)
    two = mean_of([0.4, 0.6], (0.0, 1.0))
    assert (two.low, two.high) == (0.0, 1.0), "12.7 standard errors, cut where no F1 is"
    many = mean_of([0.0, 1.0] * 50)
    assert many.high == pytest.approx(0.5 + 2.042 * (25 / 99) ** 0.5 / 10)


def test_seeds_that_agree_and_the_time_they_took_have_no_interval(tmp_path: Path) -> None:
    took = [scored(0.5) | {"seconds": 60.0 * minutes} for minutes in (2, 8)]
    folder = make_sweep(tmp_path, {"seed": ["0", "1"]}, [0.5, 0.5], dict(enumerate(took)))
    [line] = lines_of(folder)
    assert line["minutes"] == "5.0" and "minutes_low" not in line
    assert (line["test/bm25/f1"], line["test/bm25/f1_low"]) == ("0.5", "")
    page = (folder / "sweep.md").read_text()
    assert "| 0.500 |" in page and "| 5.0 |" in page, "without brackets"


def test_a_line_has_the_mean_over_seeds_or_the_interval_of_its_one_run(sweep: Path) -> None:
    one, several = lines_of(sweep)
    assert [each["noise"] for each in (one, several)] == ["0", "0.5"], "in ascending order"
    assert (several["seeds"], several["interval_over"], several["not_completed"]) == (
        *("2", "seeds"),
        "",
    )
    assert float(several["test/bm25/f1"]) == pytest.approx(0.5)
    assert float(several["reward/total"]) == pytest.approx(0.25)
    assert (one["seeds"], one["interval_over"]) == ("1", "test questions")
    assert (float(one["test/bm25/f1_low"]), float(one["test/bm25/f1_high"])) == (0.8, 1.0)
    assert one["reward/total_low"] == "", "the reward of a single run has no interval"
    assert one["not_completed"] == f"noise=0 seed=1: failed, {FAILED['error']}"


def test_the_page_says_what_failed_was_cut_and_has_not_begun(tmp_path: Path) -> None:
    axes = {"seed": ["0", "1", "2", "3"]}
    endings = {1: FAILED, 2: {"status": "running"}, 3: {}}
    folder = make_sweep(tmp_path, axes, [0.5] * 4, endings)
    assert lines_of(folder)[0]["seeds"] == "1"
    page = (folder / "sweep.md").read_text()
    assert "4 jobs: 1 completed, 1 failed, 1 interrupted, 1 not started." in page
    assert f"| seed=1 | failed | {FAILED['error']} |" in page
    assert "| seed=2 | interrupted | it was killed |" in page
    assert "| seed=3 | not started |  |" in page
    assert "| x | 1 |" in page, "what all jobs have in common"


def test_what_a_budget_has_stopped_does_not_count_as_trained(tmp_path: Path) -> None:
    endings = {1: scored(0.9) | {"status": "stopped: 5 USD"}}
    folder = make_sweep(tmp_path, {"seed": ["0", "1"]}, [0.5, 0.9], endings)
    [line] = lines_of(folder)
    assert (line["seeds"], line["test/bm25/f1"]) == ("1", "0.5")
    assert "2 jobs: 1 completed, 1 stopped." in (folder / "sweep.md").read_text()


def test_what_another_command_did_not_sweep_is_read_from_its_words(tmp_path: Path) -> None:
    """`lr=1` and then `lr=1,2`, into one folder: the first job is one of lr=1, and of one seed."""
    folder = make_sweep(tmp_path, {"seed": ["0"]}, [0.5])
    words, own, row = ["x=2", "seed=0"], {"x": "2", "seed": "0"}, {"reward/total": 0.5}
    for name, f1 in (("a", 0.7), ("b", 0.9)):
        write_run(folder / name, rows=[row], summary=scored(f1) | {"seed": 0}, overrides=words)
    plan_jobs(folder, [read_job(folder / name, words, own) for name in "ab"])
    first, second = lines_of(folder)
    assert (first["x"], first["seeds"], first["test/bm25/f1"]) == ("1", "1", "0.5")
    assert (second["x"], second["seeds"]) == ("2", "1"), "the same seed again is no other sample"


def test_a_seed_that_cost_nothing_counts_in_the_mean_cost(tmp_path: Path) -> None:
    axes, free = {"seed": ["0", "1"]}, scored(0.5) | {"cost/usd": 0.0}
    folder = make_sweep(tmp_path, axes, [0.5, 0.5], {0: free | {"cost/usd": 2.0}, 1: free})
    assert float(lines_of(folder)[0]["cost/usd"]) == 1.0
    folder = make_sweep(tmp_path / "free", axes, [0.5, 0.5], {0: free, 1: free})
    assert "cost/usd" not in lines_of(folder)[0]


def test_a_sweep_without_any_completed_run_has_its_failures_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_sweep(tmp_path, {"seed": ["0", "1"]}, [0, 0], {0: FAILED, 1: {}})
    report_sweep(folder)
    said = capsys.readouterr().out
    assert "2 jobs: 1 failed, 1 not started" in said and str(FAILED["error"]) in said
    assert (
        not (folder / "sweep.png").exists()
        and "## Results" not in (folder / "sweep.md").read_text()
    )


def test_a_console_of_80_columns_shows_keys_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    axes = {"simulator": ["scripted_good", "scripted_fair"], "curriculum": ["paper", "constant"]}
    folder = make_sweep(tmp_path, axes, [0.4, 0.5, 0.6, 0.7])
    report_sweep(folder)
    said = capsys.readouterr().out
    assert "4 jobs: 4 completed" in said and "sweep.md, sweep.csv, sweep.png" in said
    [line] = [each for each in said.splitlines() if "0.700 [0.600, 0.800]" in each]
    assert line.split()[:3] == ["scripted_fair", "constant", "1"]
    assert "report" in said.splitlines()[-1] and str(folder) in said.splitlines()[-1]


def test_values_of_others_are_text_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_sweep(tmp_path, {"_x": HOSTILE, "seed": ["0", "1"]}, [0.1 * n for n in range(8)])
    report_sweep(folder)
    values = [each["_x"] for each in lines_of(folder)]
    assert values[0] == f"'{HOSTILE[0]}" and values[2] == shown(HOSTILE[2])
    page, said = (folder / "sweep.md").read_text(), capsys.readouterr().out
    for text in (page, said, (folder / "sweep.svg").read_text()):
        assert "\x1b" not in text and "\u202e" not in text
    assert "<script" not in page and "<script" not in (folder / "sweep.svg").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and " [" in line]
    cells = [len(line.replace(r"\|", "").split("|")) for line in rows]
    assert len(rows) == 4 and len({*cells}) == 1
    figure = draw_sweep(settings_of(trials_of_sweep(folder)))
    assert figure is not None
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert r"$\frac{x$ a|b" in ticks and figure.axes[0].get_xlabel() == " _x"


@pytest.mark.parametrize(
    ("axes", "kind"),
    [
        ({"seed": ["0", "1", "2"]}, "bars"),
        ({"simulator": ["a", "b"]}, "bars"),
        ({"simulator": ["a", "b"], "curriculum": ["c", "d"], "seed": ["0", "1"]}, "bars"),
        ({"lr": ["1e-5", "1e-4", "1e-3"]}, "lines"),
        ({"lr": ["1", "2"], "simulator": ["a", "b"]}, "lines"),
        ({"lr": ["1", "2"], "simulator": ["a", "b"], "curriculum": ["c", "d"]}, "lines"),
        ({"word": [f"w{n}" for n in range(13)]}, "list"),
        ({"a": [f"w{n}" for n in range(8)], "b": [f"v{n}" for n in range(8)]}, "list"),
    ],
)
def test_a_figure_suits_what_was_swept(
    axes: dict[str, list[str]], kind: str, tmp_path: Path
) -> None:
    count = len([*product(*axes.values())])
    folder = make_sweep(tmp_path, axes, [n / count for n in range(count)])
    figure = draw_sweep(settings_of(trials_of_sweep(folder)))
    assert figure is not None
    first = figure.axes[0]
    shown_as = "bars" if first.patches else "list" if first.yaxis_inverted() else "lines"
    assert shown_as == kind
    if kind == "list":
        assert len(first.get_yticklabels()) == min(20, count)
        return
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "F1 after training (bm25)",
        "reward\nlast 5 steps",
        "searches per episode\nlast 5 steps",
    ]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[-1] == "before training"
    further = [key for key in axes if key != "seed"][1:]
    assert len(words) - 1 == (2 ** len(further) if further else 0)


def test_a_setting_without_a_completed_run_is_marked(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, {"simulator": ["a", "b"]}, [0.5, 0.0], {1: FAILED})
    figure = draw_sweep(settings_of(trials_of_sweep(folder)))
    assert figure is not None
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "no run completed" in words
    assert len(figure.axes[0].patches) == 1


def test_equal_sweeps_give_equal_files(sweep: Path) -> None:
    files = write_sweep(sweep, trials_of_sweep(sweep))
    before = [path.read_bytes() for path in files]
    assert [path.name for path in files] == ["sweep.md", "sweep.csv", "sweep.png", "sweep.svg"]
    write_sweep(sweep, trials_of_sweep(sweep))
    assert [path.read_bytes() for path in files] == before


def test_a_sweep_of_tunings_has_their_losses(tmp_path: Path) -> None:
    losses = {n: {"start/loss": 2.5, "test/loss": 1.0 + n / 10} for n in range(2)}
    folder = make_sweep(tmp_path, {"seed": ["0", "1"]}, [0, 0], losses)
    names = [each.name for each in measures_of(settings_of(trials_of_sweep(folder)))]
    assert names[:2] == ["test/loss", "start/loss"]
    assert float(lines_of(folder)[0]["test/loss"]) == pytest.approx(1.05)


# -- curves of runs --------------------------------------------------------------------------------


def test_the_figure_of_a_run_is_the_papers_with_held_out_f1(sweep: Path, tmp_path: Path) -> None:
    figure = draw_runs(find_runs([str(sweep / "0")]))
    reward, held_out, noise = figure.axes
    assert reward.get_xlabel() == "policy step" and noise.get_ylim() == (0, 1)
    assert noise.get_ylabel().startswith("noise probability")
    assert held_out.get_ylabel() == "F1 of held-out questions"
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["reward", "noise probability (right)", "bm25, test"]
    for end in ("png", "svg", "pdf"):
        save(figure, tmp_path / f"f.{end}")
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")


def test_runs_that_differ_in_their_seed_share_a_colour(sweep: Path) -> None:
    figure = draw_runs(find_runs([str(sweep / name) for name in "012"]))
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[:2] == ["noise=0", "noise=0.5"]
    bold = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    thin = [line for line in figure.axes[0].lines if line.get_linewidth() < 1]
    assert len(bold) == 2 and len(thin) == 2
    assert list(bold[1].get_ydata()) == [0.25, 0.25]  # type: ignore[arg-type]


def test_the_figure_of_a_collapse_shows_where_a_health_rule_ended_it(tmp_path: Path) -> None:
    rules = yaml.safe_load((CONFIGS / "health" / "default.yaml").read_text())
    rewards = [0.1, 0.4, 0.5, 0.5, 0.5, 0.5, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    rows = [{"reward/total": reward, "stop/answer": 1.0} for reward in rewards]
    rows[9]["val/bm25/f1"] = 0.0
    write_run(tmp_path / "run", rows=rows, config={"health": rules})
    figure = draw_runs(find_runs([str(tmp_path / "run")]))
    [axis] = figure.axes  # one validation is no curve
    assert [line.get_label() for line in axis.lines] == [
        "reward",
        "step 12: reward_collapse stops the run",
    ]
    assert axis.lines[1].get_xdata() == [12, 12] and axis.get_ylim()[0] == 0


def test_a_figure_names_the_run_in_which_nothing_differs(tmp_path: Path) -> None:
    long = "optimizer.lr=2e-2 schedule.warmup_fraction=1"
    for name, given in (("as_it_is", []), ("changed", long.split())):
        rows = [{"reward/total": 0.5}, {"reward/total": -0.5}]
        write_run(tmp_path / name, rows=rows, overrides=given)
    figure = draw_runs(find_runs([str(tmp_path / name) for name in ("as_it_is", "changed")]))
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["the experiment as it is", long.replace(" ", ", ")]
    assert figure.axes[0].get_ylim()[0] < 0


@pytest.mark.parametrize("seeds", [2, 3])
def test_two_seeds_are_drawn_as_they_are_and_three_have_an_interval(
    seeds: int, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    make_sweep(folder, {"seed": [str(n) for n in range(seeds)]}, [0.4, 0.6, 0.5][:seeds])
    figure = draw_runs(find_runs([str(folder / str(n)) for n in range(seeds)]))
    held_out = figure.axes[1]
    thin = [line for line in held_out.lines if line.get_alpha() == 0.35]
    assert (len(thin), len(held_out.collections)) == ((2, 0) if seeds == 2 else (0, 1))
    assert held_out.get_title(loc="left").startswith(
        "thin: single runs" if seeds == 2 else "95% intervals"
    )


def test_a_figure_that_cannot_be_is_refused(tmp_path: Path, sweep: Path) -> None:
    empty = write_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"there is no reward in its metrics\.csv yet"):
        draw_runs(find_runs([str(empty)]))
    with pytest.raises(InputError, match=r"f\.gif: a figure is \.png, \.svg, \.pdf"):
        save(draw_runs(find_runs([str(sweep / "0")])), tmp_path / "f.gif")
    many = make_sweep(tmp_path / "many", {"a": [f"v{n}" for n in range(22)]}, [0.5] * 22)
    with pytest.raises(InputError, match="22 settings are too many for a figure: give at most 21"):
        draw_runs(find_runs([str(many)]))


def test_show_names_the_files_from_the_working_directory(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sweep.parent)
    show_sweep(Path(sweep.name), trials_of_sweep(sweep), [sweep / "sweep.md"])
    assert capsys.readouterr().out.splitlines()[-1] == "sweep.md in noise+seed"
    assert json.loads((sweep / "jobs.json").read_text())[0]["differs"]["noise"] == "0.5"
