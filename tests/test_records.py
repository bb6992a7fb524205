"""Records become JSON with the names, the order and the absences that a file is to have."""

from dataclasses import dataclass, field

import pytest

from pneumo_ray.records import ABSENT, INLINE, json_of, named


@dataclass(frozen=True)
class Inner:
    low: float
    high: float | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class Outer:
    images: int = field(metadata=named("pictures"))
    parts: dict[str, Inner]
    ends: tuple[Inner, ...] = ()
    also: Inner | None = field(default=None, metadata=INLINE)
    last: str | None = None


def test_fields_keep_order_and_names_in_files():
    found = json_of(Outer(3, {"a": Inner(1.0, 2.0)}, (Inner(0.5),), Inner(7.0, 8.0), "z"))
    assert list(found) == ["pictures", "parts", "ends", "low", "high", "last"]
    assert found["parts"] == {"a": {"low": 1.0, "high": 2.0}}
    assert found["ends"] == [{"low": 0.5}]
    assert (found["low"], found["high"]) == (7.0, 8.0)


def test_none_is_null_or_left_out():
    assert json_of(Outer(0, {})) == {"pictures": 0, "parts": {}, "ends": [], "last": None}


@pytest.mark.parametrize("value", [{"a": 1}, 3, Inner])
def test_only_a_record_has_json(value):
    with pytest.raises(TypeError, match="no record"):
        json_of(value)
