"""The allow-list of PgBouncer's settings: what it lets through, in which form, and the CRD's rules for it."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from docs import parameter_rules
from poolkeeper.spec.parameters import OPERATOR_OWNED, OWNED_REMEDIES, PARAMETERS, SpecError, validate
from poolkeeper.spec.values import forbidden_character

CRD = Path(__file__).parents[3] / "crds" / "pooleddatabases.yaml"

values = st.one_of(
    st.integers(),
    st.text(max_size=2000),
    st.booleans(),
    st.none(),
    st.floats(),
    st.lists(st.integers(), max_size=2),
    st.decimals(0, 100000, places=2).map(str),
)


def outcome(name: str, value: object) -> tuple[str, SpecError | None]:
    try:
        return validate(name, value), None
    except SpecError as refusal:
        return "", refusal


def test_the_rules_in_the_crd_are_those_of_the_table() -> None:
    crd = CRD.read_text()
    assert parameter_rules.render(crd) == crd, "run: python docs/generate_reference.py"

    spec = yaml.safe_load(crd)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    in_crd = spec["properties"]["pooler"]["properties"]["parameters"]["x-kubernetes-validations"]
    assert in_crd == list(parameter_rules.rules())


def test_a_changed_range_would_change_the_crd(monkeypatch: pytest.MonkeyPatch) -> None:
    wider = replace(PARAMETERS["stats_period"], maximum=7200)
    monkeypatch.setattr(parameter_rules, "PARAMETERS", {**PARAMETERS, "stats_period": wider})
    assert parameter_rules.render(CRD.read_text()) != CRD.read_text()


def test_a_setting_is_either_for_users_or_the_operators() -> None:
    assert not OPERATOR_OWNED & PARAMETERS.keys()
    # As many as SHOW CONFIG of PgBouncer 1.26.1 lists, and suspend_timeout, which older ones have.
    assert len(OPERATOR_OWNED | PARAMETERS.keys()) == 99 + 1


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_explains_itself(name: str) -> None:
    parameter = PARAMETERS[name]
    assert parameter.description.endswith(".")
    assert parameter.expectation
    assert parameter.remedy
    assert parameter.minimum < parameter.maximum


@pytest.mark.parametrize("name", sorted(OPERATOR_OWNED))
def test_an_operator_owned_setting_is_refused_with_what_to_use_instead(name: str) -> None:
    with pytest.raises(SpecError) as refusal:
        validate(name, 1)
    assert refusal.value.field == f"spec.pooler.parameters.{name}"
    assert refusal.value.remedy == OWNED_REMEDIES[name]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("query_wait_notify", 20, "20"),
        ("query_wait_timeout", 30, "30"),
        ("query_wait_timeout", "0.5", "0.5"),
        ("query_wait_timeout", "01.50", "1.5"),
        ("query_wait_timeout", "2.0", "2"),
        ("query_wait_timeout", "999.999", "999.999"),
        ("tcp_keepalive", 0, "0"),
        ("server_check_query", "", ""),
        ("server_check_query", " select 1 ", "select 1"),
        ("login_notify_message", "100% of 'us' say \"hällo\" \\o/", "100% of 'us' say \"hällo\" \\o/"),
        ("server_tls_protocols", "secure", "secure"),
        ("server_tls_protocols", "tlsv1.2,tlsv1.3", "tlsv1.2,tlsv1.3"),
        ("server_tls_ciphers", "fast", "fast"),
        ("server_tls_ciphers", "AES128-GCM-SHA256:AES256-GCM-SHA384", "AES128-GCM-SHA256:AES256-GCM-SHA384"),
    ],
)
def test_a_good_value_becomes_the_text_that_pgbouncer_shows(name: str, value: object, text: str) -> None:
    assert validate(name, value) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server_tls_ciphers", "NONSENSE"),  # PgBouncer would not start
        ("server_tls_ciphers", "fast:AES128-GCM-SHA256"),
        ("server_tls13_ciphers", "TLS_AES_128_GCM_SHA256:"),
        ("server_tls_protocols", "tlsv1x2"),
        ("login_notify_message", "x" * 1025),
        ("login_notify_message", "ä" * 513),
        ("query_wait_timeout", "1000.5"),  # SHOW CONFIG could not show all its digits
        ("query_wait_timeout", "1e3"),
        ("query_wait_timeout", "٣.٥"),  # digits, but not those that PgBouncer reads
        ("query_wait_notify", "٣"),
    ],
)
def test_a_value_that_only_looks_right_is_refused(name: str, value: object) -> None:
    with pytest.raises(SpecError) as refusal:
        validate(name, value)
    assert PARAMETERS[name].expectation in refusal.value.problem


@given(name=st.sampled_from(sorted(PARAMETERS)), value=values)
def test_whatever_is_written_becomes_one_harmless_line_or_a_refusal(name: str, value: object) -> None:
    text, refusal = outcome(name, value)
    if refusal is not None:
        assert refusal.field == f"spec.pooler.parameters.{name}"
        assert PARAMETERS[name].remedy in refusal.remedy or "control character" in refusal.problem
    else:
        assert forbidden_character(text) is None
        assert text == text.strip(" ")
        assert validate(name, int(text) if isinstance(value, int) else value) == text


@given(name=st.text(max_size=40))
def test_an_unknown_name_is_refused_by_its_name(name: str) -> None:
    if name in PARAMETERS or name in OPERATOR_OWNED:
        return
    with pytest.raises(SpecError) as refusal:
        validate(name, 1)
    assert refusal.value.field == f"spec.pooler.parameters.{name}"


@given(st.integers(0, 999999))
def test_a_fraction_keeps_its_value(thousandths: int) -> None:
    written = f"{thousandths // 1000}.{thousandths % 1000:03}"
    assert float(validate("query_wait_timeout", written)) == float(written)
