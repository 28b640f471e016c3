import pytest

from zerosearch.algorithms.kl_control import AdaptiveKL


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.02, 0.5),  # on target
        (0.022, 0.5 * 1.01),  # a tenth above
        (9.0, 0.5 * 1.02),  # the error is clipped at 0.2
        (0.019, 0.5 * 0.995),
        (-0.01, 0.5 * 0.98),  # an estimate of the KL may be negative
    ],
)
def test_the_coefficient_follows_the_distance(kl: float, expected: float) -> None:
    assert AdaptiveKL(target=0.02, rate=0.1).next(0.5, kl) == pytest.approx(expected)


def test_the_distance_settles_at_the_target() -> None:
    """A policy whose KL is inversely proportional to the coefficient."""
    control, coefficient = AdaptiveKL(target=0.05, rate=1.0), 0.001
    for _ in range(300):
        coefficient = control.next(coefficient, 0.0005 / coefficient)
    assert coefficient == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("name", ["target", "rate"])
def test_settings_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"kl_control\.{name}=0"):
        AdaptiveKL(**{"target": 0.1, name: 0.0})
