"""Words of the command line that are turned into Hydra's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.helpers.runs import saved_run
from zerosearch.command_line.arguments import (
    expand_null_groups,
    expand_resume,
    expand_simulator,
    keep_override,
    quote_paths,
    refuse_two_modes,
)
from zerosearch.commands import ask, train
from zerosearch.core.runs import link_latest
from zerosearch.core.sweep_folder import plan_jobs, read_job

# -- simulator= on the command line ---------------------------------------------------------------


def test_the_folder_of_a_tuned_simulator_is_a_simulator(tmp_path: Path) -> None:
    exported = tmp_path / "my export"
    exported.mkdir()
    (exported / "prompt.j2").touch()
    given = ["seed=1", f"simulator={exported}", "simulator.endpoints=[http://a:1/v1]"]
    assert expand_simulator(given) == [
        "seed=1",
        "simulator=exported",
        f"simulator.folder='{exported}'",
        "simulator.endpoints=[http://a:1/v1]",
    ]


@pytest.mark.parametrize("name", ["prompted_7b", "scripted,scripted_fair"])
def test_other_simulators_are_names(name: str) -> None:
    assert expand_simulator([f"simulator={name}"]) == [f"simulator={name}"]


def test_a_path_without_a_tuned_simulator_is_refused() -> None:
    with pytest.raises(ValueError, match="simulator=no/such is no folder of a tuned simulator"):
        expand_simulator(["simulator=no/such"])


def test_null_switches_off_a_group_and_stays_the_value_of_a_key() -> None:
    given = ["logger=null", "model/lora=null", "resume=null", "health.gibberish=null", "seed=1"]
    expected = ["~logger", "~model/lora", "resume=null", "health.gibberish=null", "seed=1"]
    assert expand_null_groups(given) == expected


# -- resume= on the command line ------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["resume=null"], ["resume="]])
def test_without_resume_nothing_changes(arguments: list[str]) -> None:
    assert expand_resume(list(arguments)) == arguments


def test_a_run_folder_brings_its_overrides_back(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "experiment=quickstart", "seed=3", "+a.b=c", "~debug")
    resume = f"resume={run}"
    assert expand_resume([resume]) == [
        "experiment=quickstart",
        "seed=3",
        "+a.b=c",
        "~debug",
        resume,
        "hydra.mode=RUN",  # it may have been a job of a sweep
        f"hydra.run.dir='{run}'",
    ]


def test_overrides_given_again_win(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "seed=3", "+a.b=c", "policy_steps=5", "resume=elsewhere")
    given = ["policy_steps=9", f"resume={run}", "++a.b=d"]
    here = ["hydra.mode=RUN", f"hydra.run.dir='{run}'"]
    assert expand_resume(given) == ["seed=3", *given, *here]


def test_the_link_to_the_latest_run_is_resumed_under_its_own_name(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "runs" / "2026-01-01")
    link_latest(run, tmp_path)
    assert expand_resume([f"resume={tmp_path}/latest"])[-1] == f"hydra.run.dir='{run}'"


def test_runs_that_begin_at_once_all_link_themselves(tmp_path: Path) -> None:
    """Also on hosts that share the folder, where processes may have the same number."""

    def begin(number: int) -> None:
        for _ in range(50):
            link_latest(tmp_path / "runs" / str(number), tmp_path)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(begin, range(4)))
    assert [each.name for each in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_latest_is_the_commands_newest_run_that_has_begun(command: str, tmp_path: Path) -> None:
    run = saved_run(tmp_path / command / "runs" / "2026-01-01", "seed=3")
    place = f"paths.log_dir='{tmp_path}'"
    with pytest.raises(ValueError, match=rf"resume=latest: no run of .*{command} has begun"):
        expand_resume(["resume=latest", place], command)
    link_latest(run, tmp_path / command)
    assert expand_resume(["resume=latest", place], command) == [
        "seed=3",
        f"resume='{run}'",
        place,
        "hydra.mode=RUN",
        f"hydra.run.dir='{run}'",
    ]


def test_further_ranks_of_a_run_read_the_words_of_the_first(tmp_path: Path) -> None:
    """Lightning starts them with the words that Hydra got, which are read once more."""
    run = saved_run(tmp_path / "train" / "runs" / "my run", "seed=3")
    link_latest(run, tmp_path / "train")
    first = expand_resume(["resume=latest", f"paths.log_dir='{tmp_path}'"])
    again = expand_resume(first)
    assert again[: len(first)] == first and set(again) == set(first)


def test_a_run_of_another_command_is_not_resumed(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run")
    (run / ".hydra" / "hydra.yaml").write_text("hydra: {job: {config_name: evaluate}}")
    with pytest.raises(ValueError, match=r"run is a run of evaluate, and this is train"):
        expand_resume([f"resume={run}"])
    assert expand_resume([f"resume={run}"], "evaluate")[-1] == f"hydra.run.dir='{run}'"


@pytest.mark.parametrize("place", ["run", "run/checkpoints/last.ckpt", "latest"])
def test_a_run_of_0_1_is_told_with_which_version_it_goes_on(place: str, tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run")
    link_latest(run, tmp_path / "train")
    given = [f"resume={place if place == 'latest' else tmp_path / place}"]
    given.append(f"paths.log_dir='{tmp_path}'")
    config = run / ".hydra" / "config.yaml"
    config.write_text("seed: 0\ntask_name: train\nmodel: {job: 1}\njob: of an own experiment\n")
    assert expand_resume(given)  # of this version
    config.write_text("seed: 0\njob: zerosearch.train.train_policy\n")
    (run / "summary.json").write_text('{"git_commit": "abc12"}')
    said = rf"^resume=.*{place}.* is of ZeroSearch 0\.1.*go on with 0\.1 \(commit abc12\)"
    with pytest.raises(ValueError, match=said.replace("latest", "run")):
        expand_resume(given)


@pytest.mark.parametrize("words", [["--cfg", "job", "-m"], ["seed=0,1", "--multirun", "-i", "x"]])
def test_what_shows_and_what_sweeps_exclude_one_another(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^(--cfg|-i) shows one configuration .* leave one of"):
        refuse_two_modes(words, "train", sweeps=True)
    refuse_two_modes([w for w in words if w not in ("-m", "--multirun")], "train", sweeps=True)


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_command_that_runs_once_is_not_swept(flag: str) -> None:
    with pytest.raises(ValueError, match=r"^hydra.mode=MULTIRUN: zerosearch collect runs once"):
        refuse_two_modes(["hydra.mode=MULTIRUN", "seed=0,1"], "collect", sweeps=False)
    with pytest.raises(ValueError, match=rf"^{flag}: zerosearch ask runs once and is not swept"):
        ask.main.words(["In which country is Lyon?", "seed=0,1", flag])
    assert flag in train.main.words(["seed=0,1", flag])


def saved_sweep(folder: Path, command: str = "train") -> Path:
    job = read_job(folder / "seed=0,x=1", ["steps=2", "seed=0", "x=1"], {"seed": "0", "x": "1"})
    plan_jobs(folder, [job])
    saved_run(job.folder, *job.overrides)
    given = {"task": ["seed=0,1", "x=1,2", "steps=2"], "hydra": ["hydra.mode=MULTIRUN"]}
    given["hydra"] += ["hydra/launcher=side_by_side", "hydra.sweep.dir=elsewhere"]
    saved = {"hydra": {"overrides": given, "job": {"config_name": command}}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(saved))
    return folder


def test_a_sweep_is_resumed_by_its_folder(tmp_path: Path) -> None:
    sweep = saved_sweep(tmp_path / "seed+x-0a1b2c")
    words = expand_resume(["hydra.launcher.n_jobs=2", f"resume={sweep}"])
    assert words == [
        "seed=0,1",
        "x=1,2",
        "steps=2",
        "hydra/launcher=side_by_side",
        "hydra.launcher.n_jobs=2",
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir='{sweep}'",
    ]
    assert expand_resume([f"resume={sweep}", "seed=5"])[:2] == ["x=1,2", "steps=2"]
    with pytest.raises(ValueError, match="is a sweep of train, and this is tune"):
        expand_resume([f"resume={sweep}"], "tune")
    (sweep / "sweep.yaml").write_text("[]")
    with pytest.raises(ValueError, match=r"sweep\.yaml does not say how the sweep was started"):
        expand_resume([f"resume={sweep}"])
    (sweep / "sweep.yaml").unlink()
    with pytest.raises(ValueError, match=r"has no sweep\.yaml: give the sweep's command again"):
        expand_resume([f"resume={sweep}"])


def test_paths_of_what_is_there_need_no_quotes(tmp_path: Path) -> None:
    job = saved_sweep(tmp_path / "sweep") / "seed=0,x=1"
    words = [f"checkpoint={job}", "seed=0,1", f"data.files=[{job},{job}]", f"x={job}/none,a"]
    found = quote_paths(words)
    assert found == [f"checkpoint='{job}'", *words[1:]]
    assert OverridesParser.create().parse_override(found[0]).value() == str(job)
    assert quote_paths(found) == found
    assert expand_resume(quote_paths([f"resume={job}"]))[:3] == ["steps=2", "seed=0", "x=1"]
    (job / "prompt.j2").touch()
    assert expand_simulator(quote_paths([f"simulator={job}"]))[0] == "simulator=exported"


def test_a_sweep_is_no_run(tmp_path: Path) -> None:
    job = saved_run(tmp_path / "sweep" / "0", "seed=1")
    (tmp_path / "sweep" / "multirun.yaml").touch()
    with pytest.raises(ValueError, match=r"is a sweep: name one of its runs, such as .*sweep/0"):
        expand_resume([f"resume={tmp_path / 'sweep'}"])
    assert expand_resume([f"resume={job}"])[0] == "seed=1"


def test_what_a_setting_came_to_mean_is_kept_for_a_resumed_run(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "my run", "seed=3", "checkpoint=latest")
    keep_override(run, "checkpoint", "/logs/a run")
    assert expand_resume([f"resume={run}"])[:2] == ["seed=3", "checkpoint='/logs/a run'"]
    keep_override(tmp_path / "new", "checkpoint", "x")  # composed by a test: nothing to keep


def test_a_run_without_overrides_can_be_resumed(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run")
    (run / ".hydra" / "overrides.yaml").write_text("[]\n")
    assert expand_resume([f"resume={run}"])[-1] == f"hydra.run.dir='{run}'"


def test_a_checkpoint_file_starts_a_run_of_its_own(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", "seed=3")
    arguments = [f"resume={run / 'checkpoints' / 'last.ckpt'}"]
    assert expand_resume(list(arguments)) == arguments


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_nothing_to_resume(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"resume=.*{name} is neither .* nor a run folder"):
        expand_resume([f"resume={tmp_path / name}"])


def test_overrides_that_were_lost_are_not_taken_for_none(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run")
    (run / ".hydra" / "overrides.yaml").write_text("")
    with pytest.raises(ValueError, match=r"overrides\.yaml is empty; give a \.ckpt"):
        expand_resume([f"resume={run}"])


@pytest.mark.parametrize("name", ["it's", "a,b", "[x]{y}", "lr=1", "back\\slash'", "two  words"])
def test_a_run_folder_of_any_name_is_resumed(name: str, tmp_path: Path) -> None:
    """Also by further ranks, which read the words that are made here."""
    run = saved_run(tmp_path / name, "seed=3")
    words = expand_resume([f"resume={run}"])
    assert expand_resume(words)[: len(words)] == words
    parsed = OverridesParser.create().parse_overrides(words)
    values = {each.key_or_group: each.value() for each in parsed}
    assert values["resume"] == values["hydra.run.dir"] == str(run)
    assert values["seed"] == 3
