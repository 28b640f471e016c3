"""Noise curriculum: searches of the simulator get worse as the policy gets better.

The exponential shape is the paper's (arXiv 2505.04588, the equation for p_i); the others are the
baselines it is compared with.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, Trainer

from zerosearch.callbacks.policy_module import PolicyModule
from zerosearch.core.errors import InputError
from zerosearch.core.ranges import Positive, Share

log = logging.getLogger(__name__)

CurriculumShape = Literal["exponential", "linear", "constant", "reversed"]


def noise_probability(
    step: float, total_steps: int, start: float, end: float, base: float = 4.0
) -> float:
    """Probability that a simulated search is noisy: p_s + (b^(i/m) - 1)/(b - 1) * (p_e - p_s).

    Args:
        step: i, policy steps completed; clamped to [0, total_steps].
        total_steps: m, policy steps of the run.
        start: p_s, probability at step 0.
        end: p_e, probability at step m.
        base: b; above 1 the probability changes late, below 1 early, 1 is linear.

    Returns:
        A probability between `start` and `end`.

    Raises:
        InputError: an argument is out of its range.

    Source: arXiv 2505.04588, the curriculum's equation; b = 4 is the paper's default.
    """
    _check_settings(start, end, base)
    if total_steps < 1:
        raise InputError(f"total_steps={total_steps}: a curriculum needs at least one policy step")
    if math.isnan(step):
        raise InputError("step=nan: count policy steps from 0")
    progress = min(max(step / total_steps, 0.0), 1.0)
    if progress == 1.0:
        return float(end)
    # expm1 keeps its precision for bases close to 1, where both differences vanish
    rate = math.log(base)
    weight = progress if rate == 0 else math.expm1(progress * rate) / math.expm1(rate)
    low, high = sorted((float(start), float(end)))
    return min(max(start + weight * (end - start), low), high)


class NoiseCurriculum(Callback):
    """Sets the noise probabilities of each policy step and the one after, before the step.

    Args:
        start: noise probability of the first policy step, in [0, 1].
        end: noise probability that the curriculum moves towards, in [0, 1].
        base: of the exponential and the reversed shape.
        shape: "exponential" is the paper's; "linear" ignores `base`; "constant" stays at
            `start`; "reversed" runs the exponential one backwards in time (step i gets what step
            m - i would get), from `end` to `start`: hard to easy, the steep part first.

    Raises:
        InputError: a setting is out of its range or the shape is unknown.
    """

    def __init__(
        self, start: Share, end: Share, base: Positive = 4.0, shape: CurriculumShape = "exponential"
    ) -> None:
        _check_settings(start, end, base)
        if shape not in get_args(CurriculumShape):
            raise InputError(f"shape={shape!r} is none of {', '.join(get_args(CurriculumShape))}")
        self.start, self.end, self.base = float(start), float(end), float(base)
        self.shape = shape
        self._total_steps: int | None = None
        self._saved: dict[str, Any] | None = None

    def value(self, step: int, total_steps: int) -> float:
        """Noise probability of the policy step that follows `step` completed ones."""
        if self.shape == "constant":
            return self.start
        base = 1.0 if self.shape == "linear" else self.base
        if self.shape == "reversed":
            step = total_steps - step
        return noise_probability(step, total_steps, self.start, self.end, base)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._total_steps = pl_module.policy_steps
        self._check_resumed()
        self._set(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self._set(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {**self._settings(), "total_steps": self._total_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict

    def _set(self, pl_module: PolicyModule) -> None:
        step, steps = pl_module.policy_step, pl_module.policy_steps
        pl_module.noise_probability = self.value(step, steps)
        pl_module.next_noise_probability = self.value(step + 1, steps)

    def _settings(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "end": self.end,
            "base": self.base,
            "shape": self.shape,
        }

    def _check_resumed(self) -> None:
        """Compare with the run that is resumed.

        Not in `load_state_dict`: that also runs when a checkpoint is only evaluated.
        """
        saved, self._saved = self._saved, None
        if saved is None:
            return
        for name, value in self._settings().items():
            if saved[name] != value:
                raise InputError(
                    f"curriculum {name}={value!r}, but the resumed run was trained with "
                    f"{saved[name]!r}: set it to that value, or start a new run from the exported "
                    "policy"
                )
        if saved["total_steps"] not in (None, self._total_steps):
            log.warning(
                "policy_steps=%s stretches the noise curriculum of the resumed run, which was "
                "planned for %s: its noise probability jumps here",
                self._total_steps,
                saved["total_steps"],
            )


def _check_settings(start: float, end: float, base: float) -> None:
    for name, value in (("start", start), ("end", end)):
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name}={value} is not a probability: set it between 0 and 1")
    if not (base > 0 and math.isfinite(base)):
        raise InputError(f"base={base} must be positive and finite (1 is linear, the paper's is 4)")
