"""What keys, options and commands of 0.1 are called now: said to whoever uses an old name.

Looked up only where a name is not known, so that options of one's own may be called anything.
"""

from __future__ import annotations

KEYS = {  # a key with all below it; * is any one name
    "agent.chat": "agent.client",
    "agent.decoding": "agent.sampling",
    "curriculum.schedule": "curriculum.shape",
    "data.lag": "rollout.lag",
    "data.spare_rounds": "algorithm.resampling_rounds",
    "engines.*.engine": "engines.*.search",
    "evaluation.*.decoding": "evaluation.*.sampling",
    "generator.engine": "generator.engine_args",
    "generator.lora": "generator.lora_sync",
    "judge.chat": "judge.client",
    "module.decoding": "module.sampling",
    "sets.*.files.*.rows": "sets.*.files.*.min_rows",
    "sets.*.files.*.source": "sets.*.files.*.path",
    "simulator.chat": "simulator.client",
}
WORDS = {  # of a command line, or the key of one, and what to do
    "experiment=simulator_sft": "is `zerosearch tune model=NAME` now, without an experiment",
    "job": "leave it out, the command says it: zerosearch train or zerosearch tune",
    "made_for.task": "is made_for.train or made_for.tune now, by the command",
    "task=train_policy": "leave it out: zerosearch train trains a policy",
    "task=tune_simulator": "is the command zerosearch tune now",
}
COMMANDS = {  # modules that were started with python -m zerosearch.NAME, and targets of make
    "fetch": "data",
    "generator": "generate",
    "retriever": "retrieve",
    "serve_generator": "generate",
    "serve_policy": "serve",
    "simulator": "simulate",
}


def explain_word(word: str) -> str | None:
    """What is given now in place of a word of a command line; None where it is no old one."""
    key = word.partition("=")[0].lstrip("+~")
    if name := new_key(key):
        return f"{key}: is {name} now"
    for old in (word, key):
        if old in WORDS:
            return f"{old}: {WORDS[old]}"
    return None


def new_key(key: str) -> str | None:
    """What a key of 0.1 is called; None where it is called the same, or never was one."""
    parts = key.split(".")
    for old, new in KEYS.items():
        before = old.split(".")
        pairs = list(zip(before, parts, strict=False))
        if len(pairs) == len(before) and all(name in ("*", part) for name, part in pairs):
            kept = iter(part for name, part in pairs if name == "*")
            after = [next(kept) if name == "*" else name for name in new.split(".")]
            return ".".join(after + parts[len(before) :])
    return None
