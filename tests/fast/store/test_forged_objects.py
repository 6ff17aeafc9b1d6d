"""Whatever tenants write into objects with our labels, the store takes it in: no exception ends a watch."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from poolkeeper import names
from poolkeeper.budget import allotments
from poolkeeper.credentials import logins
from poolkeeper.credentials.logins import Logins
from poolkeeper.observed.refs import Key
from poolkeeper.spec.values import SpecError
from poolkeeper.store.store import Store
from tests.fast.worlds import KEY, SETTINGS, UID, body

LONE = Key("tenant", "nothing")
"""A PooledDatabase that doesn't exist."""


def secret(
    role: str, name: str, data: Mapping[str, bytes], owner: Key = LONE, version: int = 1
) -> dict[str, Any]:
    return {
        "kind": "Secret",
        "metadata": {
            "namespace": owner.namespace,
            "name": name,
            "uid": "u",
            "resourceVersion": str(version),
            "labels": names.child_labels(*owner, UID, role),
            "annotations": {names.OWNER_ANNOTATION: "/".join(owner)},
        },
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }


def config(text: str | bytes, owner: Key = LONE) -> dict[str, Any]:
    value = text if isinstance(text, bytes) else text.encode()
    return secret(names.ROLE_CONFIG, names.config_name(owner.name), {allotments.RECORD_FILE: value}, owner)


def authorities(poolers: str, keepers: str) -> dict[str, Any]:
    """With the digest that belongs to it, which anybody can compute."""
    whole = {"poolers": poolers, "keepers": keepers, "check": logins._check(poolers, keepers)}
    return secret(
        names.ROLE_LOGINS,
        names.logins_name(LONE.name),
        {logins.AUTHORITIES_KEY: json.dumps(whole).encode()},
    )


def pem(key: Any, password: bytes = b"") -> str:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return text.decode()


RECORDS = [
    '{"pods":{},"epoch":1e999,"server":""}',
    '{"pods":{},"epoch":NaN,"server":""}',
    '{"pods":{},"epoch":' + "9" * 6000 + ',"server":""}',
    "[" * 100_000,
    '{"pods":' * 50_000,
    '{"pods":{"a":{"bound":1e400,"revision":1,"caps":{}}},"epoch":1,"server":""}',
    '{"pods":{"a":{"bound":1,"revision":1,"caps":[]}},"epoch":1,"server":""}',
    '{"pods":{"a":null},"epoch":1,"server":""}',
    '{"pods":[],"epoch":1,"server":""}',
    "null",
    "",
    b"\xff\xfe\0",
]


@pytest.mark.parametrize("text", RECORDS, ids=lambda text: str(text[:24]))
@pytest.mark.parametrize("owner", [LONE, KEY])
def test_a_forged_record_of_the_budget_is_no_record(text: str | bytes, owner: Key) -> None:
    store = Store(SETTINGS)
    assert store.observe(config(text, owner)) == {owner}
    found = store.secrets.stored(owner)
    assert found is not None
    assert found.record.allotments == {}
    assert found.record.epoch == 0


KEYS = {
    "no PEM": "x",
    "an empty PEM": "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
    "half a surrogate": "\ud800",
    "RSA": pem(rsa.generate_private_key(65537, 2048)),
    "DSA": pem(dsa.generate_private_key(2048)),
    "another curve": pem(ec.generate_private_key(ec.SECP384R1())),
    "encrypted": pem(ec.generate_private_key(ec.SECP256R1()), b"secret"),
    "megabytes": "A" * 1_000_000,
}


@pytest.mark.parametrize("kind", KEYS)
def test_forged_authorities_are_absent(kind: str) -> None:
    store = Store(SETTINGS)
    right = pem(ec.generate_private_key(ec.SECP256R1()))
    for pair in ((KEYS[kind], right), (right, KEYS[kind])):
        store.observe(authorities(*pair))
        assert store.secrets.logins(LONE).authorities is None


@pytest.mark.parametrize("user", ["\ud800", "a\udfff"])
def test_a_stored_upstream_that_no_file_can_hold_is_absent(user: str) -> None:
    target = {"host": "db", "port": 5432, "database": "d", "user": user, "password": "p", "sslmode": "require"}
    text = json.dumps({**target, "ca": None}).encode()
    store = Store(SETTINGS)
    store.observe(secret(names.ROLE_LOGINS, names.logins_name(LONE.name), {logins.UPSTREAM_KEY: text}))
    assert store.secrets.logins(LONE) == Logins()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KNOWN = st.sampled_from(
    ["pods", "epoch", "server", "poolers", "keepers", "check", "password", "verifier", "host", "port", "ca"]
)
CONTENTS = st.binary(max_size=40) | st.dictionaries(KNOWN, JSON, max_size=6).map(
    lambda value: json.dumps(value).encode()
)
FILES = st.sampled_from(
    [allotments.RECORD_FILE, logins.AUTHORITIES_KEY, logins.CONSOLE_KEY, logins.UPSTREAM_KEY, "consumer.a", "x"]
)
ROLES = st.sampled_from(
    [names.ROLE_CONFIG, names.ROLE_LOGINS, names.ROLE_KEEPER, names.ROLE_CONSUMER, names.ROLE_SOURCE, "other"]
)


@given(ROLES, st.sampled_from([LONE, KEY]), st.dictionaries(FILES, CONTENTS, max_size=4))
def test_any_secret_with_our_labels_is_taken_in(role: str, owner: Key, data: dict[str, bytes]) -> None:
    store = Store(SETTINGS)
    for name in (names.config_name(owner.name), names.logins_name(owner.name), "x"):
        store.observe(secret(role, name, data, owner))
    store.world(owner, store.secrets.logins(owner))


@given(st.sampled_from(["Pod", "Deployment", "Service", "Namespace", names.KIND]), JSON, JSON, JSON)
def test_any_object_is_taken_in_and_the_next_one_is_read(kind: str, spec: Any, status: Any, marks: Any) -> None:
    """What the API server would not store either: the operator may be older than it."""
    store = Store(SETTINGS)
    metadata = {"namespace": "data", "name": "odd", "uid": "u", "resourceVersion": "1"}
    for version, (labels, notes) in enumerate([(marks, marks), ({names.DATABASE_LABEL: "x"}, marks)]):
        odd = {**metadata, "resourceVersion": str(version), "labels": labels, "annotations": notes}
        store.observe({"kind": kind, "metadata": odd, "spec": spec, "status": status})
    store.observe({"kind": kind, "metadata": {**metadata, "resourceVersion": "9"}}, deleted=True)
    sound = body()
    sound["metadata"]["resourceVersion"] = "10"
    assert store.observe(sound) == {KEY}


def test_a_spec_that_the_parser_trips_over_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def trips(_: Any) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr("poolkeeper.store.reading.parse", trips)
    store = Store(SETTINGS)
    made = body()
    made["metadata"]["resourceVersion"] = "1"
    assert store.observe(made) == {KEY}
    resource = store.resource(KEY)
    assert resource is not None
    assert isinstance(resource.spec, SpecError)
    assert "RecursionError" in str(resource.spec)
