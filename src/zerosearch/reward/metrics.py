"""Answer metrics: exact match, cover match and token F1, alone and over a whole evaluation.

Normalisation is the one of SQuAD (arXiv 1606.05250), so numbers compare with the literature, after
what looks the same has been written the same (`plain_text`). Two departures from the reference
code: exact match is equality (not a substring test), and an answer whose normal form is empty
("The", "?!") matches nothing instead of everything. HotpotQA's guard of F1 is ours, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from zerosearch.core.errors import InputError
from zerosearch.core.text import normalize_answer

# Answers that are right or wrong as a whole: "yes" is no part of "yes and no". Source: `f1_score`
# of hotpot_evaluate_v1.py in github.com/hotpotqa/hotpot.
WHOLE_ANSWERS = frozenset({"yes", "no", "noanswer"})

# Bounds the index matrix of one bootstrap chunk to about 8 MB, whatever the number of questions.
_BOOTSTRAP_CELLS = 1_000_000


def exact_match(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if the normal form of the prediction equals that of any golden answer, else 0.0.

    Args:
        prediction: the answer, None where the policy gave none.
        golden_answers: accepted answers; best match counts.

    Raises:
        InputError: `golden_answers` is one string instead of a sequence of strings.
    """
    return _best(prediction, golden_answers, lambda guess, golden: float(guess == golden))


def cover_match(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if the normal form of any golden answer is contained in that of the prediction, else 0.0.

    Containment is that of characters, as in the sub-EM of Search-R1 (arXiv 2503.09516), not of
    whole tokens: "german" covers "man". Comparable with published numbers, too lax as a reward.

    Args:
        prediction: the answer, None where the policy gave none.
        golden_answers: accepted answers; best match counts.

    Raises:
        InputError: `golden_answers` is one string instead of a sequence of strings.
    """
    return _best(prediction, golden_answers, lambda guess, golden: float(golden in guess))


def token_f1(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """Best F1 over golden answers between bags of normalised tokens, in [0, 1].

    F1 = 2 * overlap / (|prediction| + |golden|), arXiv 2505.04588, reward design; 0 where either
    side is yes, no or noanswer and the other is not the same (HotpotQA's scorer).

    Args:
        prediction: the answer, None where the policy gave none.
        golden_answers: accepted answers; best match counts.

    Raises:
        InputError: `golden_answers` is one string instead of a sequence of strings.
    """
    return _best(prediction, golden_answers, _bag_f1)


def _bag_f1(guess: str, golden: str) -> float:
    if guess != golden and not WHOLE_ANSWERS.isdisjoint((guess, golden)):
        return 0.0
    guess_tokens, golden_tokens = guess.split(), golden.split()
    overlap = (Counter(guess_tokens) & Counter(golden_tokens)).total()
    return 2.0 * overlap / (len(guess_tokens) + len(golden_tokens))


def _best(
    prediction: str | None, golden_answers: Sequence[str], compare: Callable[[str, str], float]
) -> float:
    """Best `compare(guess, golden)` over pairs of non-empty normal forms; 0.0 if there is none."""
    if isinstance(golden_answers, str):
        raise InputError(
            f"golden_answers={golden_answers!r} is one string, whose characters would be taken for "
            "answers: pass a list, e.g. [answer]"
        )
    guess = normalize_answer(prediction) if prediction is not None else ""
    if not guess:
        return 0.0
    normal_forms = [golden for answer in golden_answers if (golden := normalize_answer(answer))]
    return max((compare(guess, golden) for golden in normal_forms), default=0.0)


class AnswerMetrics(Metric):
    """Scores of every question of an evaluation, with 95% bootstrap intervals.

    States hold one value per question and are concatenated over ranks, so ranks with different
    numbers of questions (also none) weigh every question the same.

    Args:
        resamples: bootstrap resamples behind each interval.
        seed: seed of the bootstrap; the same questions always give the same interval.
        kwargs: passed on to `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    f1: list[Tensor]
    em: list[Tensor]
    cover_em: list[Tensor]
    answered: list[Tensor]
    failed: list[Tensor]

    def __init__(self, resamples: int = 1000, seed: int = 0, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if resamples < 1:
            raise InputError(f"resamples={resamples}: the bootstrap needs at least 1")
        self.resamples = resamples
        self.seed = seed
        for name in ("f1", "em", "cover_em", "answered", "failed"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, prediction: str | None, golden_answers: Sequence[str], failed: bool = False
    ) -> None:
        """Add one question.

        Args:
            prediction: the extracted answer, None where there is none.
            golden_answers: accepted answers.
            failed: the episode broke for a reason outside the policy. The question still counts, as
                unanswered: an evaluation drops nothing.
        """
        if failed:
            prediction = None
        for name, value in (
            ("f1", token_f1(prediction, golden_answers)),
            ("em", exact_match(prediction, golden_answers)),
            ("cover_em", cover_match(prediction, golden_answers)),
            ("answered", float(prediction is not None)),
            ("failed", float(failed)),
        ):
            getattr(self, name).append(torch.tensor([value], device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Means over all questions of all ranks.

        Returns:
            0-dim tensors: `f1`, `em`, `cover_em`, each with `_low` and `_high` (95% interval),
            `answered` and `failed` (shares of questions), `count` (questions).

        Raises:
            InputError: no rank added a question.
        """
        scored = ("f1", "em", "cover_em")
        columns = {name: self._column(name) for name in (*scored, "answered", "failed")}
        scores = torch.stack([columns[name] for name in scored], dim=1)
        low, high = bootstrap_interval(scores, resamples=self.resamples, seed=self.seed)
        result = {name: column.mean() for name, column in columns.items()}
        for index, name in enumerate(scored):
            result[f"{name}_low"], result[f"{name}_high"] = low[index], high[index]
        result["count"] = torch.tensor(float(len(scores)))
        return {name: value.to(self.device, torch.float32) for name, value in result.items()}

    def _column(self, name: str) -> Tensor:
        state = getattr(self, name)
        values = dim_zero_cat(state) if len(state) else torch.empty(0)
        if values.numel() == 0:
            raise InputError(
                "AnswerMetrics has 0 questions on all ranks: call update() before compute(), or "
                "check that the evaluation data is not empty"
            )
        return values.detach().to("cpu", torch.float64)


def bootstrap_interval(
    scores: Tensor, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Percentile bootstrap interval of the mean of each column (Efron 1979).

    Questions are resampled as whole rows, so all columns see the same resamples. Rows are sorted
    first: the interval depends on the set of rows, not on their order or their split over ranks.

    Args:
        scores: [N, K], N >= 1 questions with K scores each, on the CPU.
        resamples: number of resamples.
        seed: seed of the draw.
        level: coverage of the interval.

    Returns:
        Lower and upper ends, [K] each.
    """
    distinct_rows, counts = torch.unique(scores, dim=0, return_counts=True)
    rows = distinct_rows.repeat_interleave(counts, dim=0)
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _BOOTSTRAP_CELLS // len(rows))
    means = []
    for start in range(0, resamples, chunk):
        size = (min(chunk, resamples - start), len(rows))
        picks = torch.randint(len(rows), size, generator=generator)
        means.append(rows[picks].mean(dim=1))
    tail = (1.0 - level) / 2.0
    ends = torch.tensor([tail, 1.0 - tail], dtype=scores.dtype)
    low, high = torch.quantile(torch.cat(means), ends, dim=0)
    return low, high
