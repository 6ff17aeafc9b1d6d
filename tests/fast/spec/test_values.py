"""Single values: which characters are refused, and quantities read as Kubernetes reads them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils import parse_quantity

from poolkeeper.spec.values import SpecError, forbidden_character, quantity


@pytest.mark.parametrize("character", ["\n", "\r", "\x00", "\t", "\x7f", "\x85", "\u2028", "\u2029"])
def test_a_line_end_or_control_character_is_named(character: str) -> None:
    assert forbidden_character(f"a{character}b") == f"U+{ord(character):04X}"


@given(st.text())
def test_what_passes_is_one_line_for_every_reader(text: str) -> None:
    if forbidden_character(text) is None:
        assert text.splitlines() in ([text], [])
        assert text.isprintable() or not any(ord(character) < 0x20 for character in text)


@pytest.mark.parametrize("text", ["ä", "a b", "\u00a0", "'\"\\", "@:/?#%", "🐘"])
def test_ordinary_characters_pass(text: str) -> None:
    assert forbidden_character(text) is None


@given(
    st.decimals(0, 10**6, places=3).map(str),
    st.sampled_from(
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "E-3"]
    ),
)
def test_a_quantity_is_what_the_kubernetes_client_says(number: str, suffix: str) -> None:
    expected = Decimal(f"{number}{suffix}") if suffix in ("e3", "E-3") else parse_quantity(f"{number}{suffix}")
    assert quantity(f"{number}{suffix}") == expected


@pytest.mark.parametrize("text", ["", "-1", "1 Gi", "64MB", "Gi", "1e", "0x1", "1.2.3", "٣"])
def test_what_is_no_quantity_is_none(text: str) -> None:
    assert quantity(text) is None


def test_a_refusal_reads_field_problem_remedy() -> None:
    refusal = SpecError("spec.pooler.image", "is empty", "name an image")
    assert str(refusal) == "spec.pooler.image: is empty; name an image"
