"""Every part of the two chains of `make` that is killed and given again leaves what it always does.

Small here, through the command line.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from scripts.attack.moments import Moment, kill_at
from tests.helpers.processes import run_forked
from tests.helpers.runs import differing

# by name: the command with its words, {out} its own folder, {base} that of the whole chain
PARTS = {
    "episodes": "collect agent=rule episode=plain search=scripted noise_probability=0.5 "
    "documents_per_search=1 attempts=1 questions.limit=40 folder={out}",
    "cold_start": "tune experiment=cold_start_smollm2 made_for=null model=quickstart steps=6 "
    "data.files.train={base}/episodes/episodes.jsonl data.examples_per_step=4 "
    "callbacks.checkpoint.every_n_steps=2 trainer.val_check_interval=2",
    "scripted": "train experiment=smollm2_geography model.path={base}/cold_start/policy "
    "policy_steps=3 questions_per_step=2 algorithm.group_size=4 data.validation_limit=4 "
    "data.test_limit=4 callbacks.checkpoint.every_n_steps=1 trainer.val_check_interval=2",
    "evaluated": "evaluate checkpoint={base}/scripted limit=12 block=4",
    "searches": "collect questions.limit=24 attempts=2 folder={out}",
    "rows": "judge searches={base}/searches/episodes.jsonl judge.follow_ups=true "
    "only_correct=true rows.top_k=[1] rows.validation_share=0.2 folder={out}",
    "simulator": "tune experiment=simulator_sft_tiny data.files.train={base}/rows/train.jsonl "
    "data.files.validation={base}/rows/validation.jsonl data.examples_per_step=8 steps=6 "
    "module.fidelity_examples=4 callbacks.checkpoint.every_n_steps=2 "
    "trainer.val_check_interval=2 paths.log_dir={out}",
    "fidelity": "fidelity simulator=tiny_tuned data.split=test "
    "simulator.folder={base}/simulator/simulation/geography/simulator data.limit=4 top_k=1",
}
# Killed before one of the operations that change its files, by their share, or, where its work
# goes into a journal row by row, in the middle of one of these.
OPERATIONS = (0.1, 0.4, 0.8, 0.98)  # a run has one more or less at times
ROWS = {"episodes": 50, "evaluated": 7, "searches": 30, "rows": 15}
KILLS = [*itertools.product(PARTS, OPERATIONS), *ROWS.items()]


def words_of(part: str, base: Path, out: Path) -> list[str]:
    words = PARTS[part].format(base=base, out=out).split()
    place = [] if "folder={out}" in PARTS[part] else [f"hydra.run.dir={out}"]
    logs = [] if "paths.log_dir=" in PARTS[part] else [f"paths.log_dir={out.parent}/logs"]
    return [*words, *place, *logs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The chains as nobody disturbed them, and the number of operations of each part."""
    base, operations = tmp_path_factory.mktemp("whole"), {}
    for part in PARTS:
        counted = base / f"{part}.operations"
        watch = Moment(folder=base / part, counted=counted)
        done = run_forked(*words_of(part, base, base / part), first=watch)
        assert done.returncode == 0, done.stdout + done.stderr
        operations[part] = counted.stat().st_size
    return base, operations


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("part", "at"), KILLS)
def test_a_part_killed_and_given_again_leaves_what_it_always_does(
    part: str, at: float, whole: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    base, operations = whole
    words, out = words_of(part, base, tmp_path / part), tmp_path / part
    moment = Moment(folder=out, row=int(at))
    if isinstance(at, float):
        moment = Moment(folder=out, operation=max(1, round(at * operations[part])))
    kill_at(moment, *words)
    if at == OPERATIONS[1] and PARTS[part].startswith(("tune", "train", "evaluate")):
        words = [words[0], f"resume={out}"]
    again = run_forked(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert differing(out, base / part) == []
    shutil.rmtree(out)  # weights
