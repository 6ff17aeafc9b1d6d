"""Logins: how they are made, and that the Secret which keeps them may be damaged without harm."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace

import pytest

from poolkeeper.credentials import logins
from poolkeeper.credentials.logins import Logins
from poolkeeper.credentials.mint import authorities, mint
from poolkeeper.credentials.scram import verifier
from poolkeeper.upstream.target import Target

TARGET = Target("pg.data.svc", 5432, "shop", "shop_owner", "it's", "require", "PEM\n")


def decoded(data: dict[str, str]) -> dict[str, bytes]:
    return {key: base64.b64decode(value, validate=True) for key, value in data.items()}


def test_logins_survive_the_secret_and_its_keys_are_valid() -> None:
    whole = Logins(mint("poolkeeper"), {"web-a.b_c": mint("web-a.b_c")}, TARGET, authorities())
    data = logins.to_secret(whole)
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key) for key in data)
    assert logins.from_secret(decoded(data)) == whole
    assert logins.to_secret(logins.from_secret(decoded(data))) == data
    assert logins.from_secret({}) == Logins()
    assert logins.to_secret(Logins()) == {}


PERFECT = logins.to_secret(Logins(mint("poolkeeper"), {"web": mint("web")}, TARGET, authorities()))


@pytest.mark.parametrize("key", sorted(PERFECT))
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"password": 1}', b"[" * 9999, b'{"port": true}']
)
def test_an_unreadable_key_counts_as_absent_and_the_others_stay(key: str, content: bytes) -> None:
    read = logins.from_secret({**decoded(PERFECT), key: content})
    complete = logins.from_secret(decoded(PERFECT))
    lost = {
        "authorities": replace(complete, authorities=None),
        "console": replace(complete, console=None),
        "consumer.web": replace(complete, consumers={}),
        "upstream": replace(complete, upstream=None),
    }
    assert read == lost[key]


@pytest.mark.parametrize("field", ["password", "verifier", "check"])
def test_an_edit_of_one_field_of_a_login_makes_the_login_absent(field: str) -> None:
    edited = json.loads(decoded(PERFECT)["consumer.web"])
    edited[field] = mint("web").verifier if field == "verifier" else "edited"
    read = logins.from_secret({**decoded(PERFECT), "consumer.web": json.dumps(edited).encode()})
    assert read.consumers == {}


def test_authorities_with_exchanged_or_edited_keys_are_absent() -> None:
    stored = json.loads(decoded(PERFECT)["authorities"])
    exchanged = {**stored, "poolers": stored["keepers"], "keepers": stored["poolers"]}
    for value in (exchanged, {**stored, "poolers": "not a key"}):
        assert logins.from_secret({"authorities": json.dumps(value).encode()}) == Logins()


def test_the_console_login_of_a_consumers_keepers_is_its_own_and_never_stored() -> None:
    """One that is shared would let the keeper of one namespace pose as the operator to those of another."""
    mine, other = authorities().keepers, authorities().keepers
    web, api, elsewhere = (logins.keeper_console(*of) for of in ((mine, "web"), (mine, "api"), (other, "web")))
    assert web == logins.keeper_console(mine, "web")
    assert len({web.password, api.password, elsewhere.password}) == 3
    assert len({web.verifier, api.verifier, elsewhere.verifier}) == 3
    salt = base64.b64decode(web.verifier.split("$")[1].split(":")[1])
    assert verifier(web.password, salt, iterations=1) == web.verifier


def test_a_login_moved_to_another_name_is_absent() -> None:
    data = decoded(PERFECT)
    assert logins.from_secret({"consumer.api": data["consumer.web"]}).consumers == {}


def test_the_verifier_is_that_of_rfc_7677() -> None:
    """The RFC's example: password pencil, this salt; the two keys follow from its exchange."""
    assert verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ=="
        "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_minted_logins_are_all_different_and_need_no_quoting_anywhere() -> None:
    minted = [mint("web") for _ in range(20)]
    assert len({login.password for login in minted}) == len({login.verifier for login in minted}) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", login.password) for login in minted)
