"""Numbers as text that says no more than what was found: nothing is rounded to 0, or to all, that is not exactly there."""


def number_text(value: float | None, decimals: int = 3, full: float = 1.0) -> str:
    """Return a number as text.

    Args:
        value: None where it is undefined.
        decimals: as long as they show that it is neither 0 nor all; up to three more otherwise.
        full: what all of it is: 1 of a share or coefficient, 100 of per cents.
    """
    if value is None:
        return "undefined"
    for digits in range(decimals, decimals + 4):
        shown = f"{value:.{digits}f}"
        if (abs(float(shown)) in (0.0, full)) == (abs(value) in (0.0, full)):
            return shown
    return f"{value:.{decimals}f}"


def percent_text(value: float | None, decimals: int = 1) -> str:
    """Return a share in per cent, as `number_text`."""
    return "undefined" if value is None else f"{number_text(100 * value, decimals, 100.0)} %"
