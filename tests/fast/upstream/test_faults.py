"""What is understood of a failed connection's text, and what of it is told."""

from __future__ import annotations

import pytest

from poolkeeper.upstream import faults, tls


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('FATAL:  password authentication failed for user "owner"', faults.AUTHENTICATION_FAILED),
        ('FATAL:  role "owner" does not exist', faults.AUTHENTICATION_FAILED),
        ('FATAL:  database "shop" does not exist', faults.DATABASE_MISSING),
        ("FATAL:  no such database: shop", faults.DATABASE_MISSING),
        ("FATAL:  sorry, too many clients already", faults.TOO_MANY_CONNECTIONS),
        ("FATAL:  the database system is starting up", faults.UNAVAILABLE),
        ("server closed the connection unexpectedly", faults.UNAVAILABLE),
        (
            "SCHWERWIEGEND:  Passwort-Authentifizierung für Benutzer »owner« fehlgeschlagen",
            "AuthenticationFailed",
        ),
        ("FATAL:  la base de données « shop » n'existe pas", faults.DATABASE_MISSING),
        ("SCHWERWIEGEND:  das Datenbanksystem startet", faults.UNAVAILABLE),
        ('致命错误:  用户 "owner" Password 认证失败', faults.AUTHENTICATION_FAILED),
    ],
)
def test_a_servers_refusal_is_classified_in_any_language(said: str, reason: str) -> None:
    text = f'connection failed: connection to server at "shop.owner.svc" (10.0.0.1), port 5432 failed: {said}'
    assert faults.reason(text, "owner", "shop") == reason


def test_what_is_quoted_is_one_short_line_without_the_password() -> None:
    text = (
        'connection failed: connection to server at "h", port 1 failed: FATAL:  you sent s3cret\x1b!\nHINT:  x'
    )
    assert faults.quoted(text, "s3cret") == "you sent [password] !"
    assert len(faults.quoted("x" * 9999, "")) == faults.MESSAGE_LIMIT
    assert faults.quoted("", "s3cret") == "no reason given"


def test_of_several_addresses_the_most_telling_failure_is_quoted() -> None:
    def attempt(address: str, said: str) -> str:
        return f'connection to server at "{address}", port 5432 failed: {said}'

    refused = attempt("::1", "Connection refused\n\tIs the server running on that host?")
    wrong = attempt("10.0.0.1", 'FATAL:  password authentication failed for user "owner"')
    unknown = attempt("10.0.0.2", "No route to host")
    for said in ([refused, wrong, unknown], [unknown, refused, wrong], [wrong, unknown, refused]):
        text = "\n".join(said)
        assert faults.reason(text, "owner", "shop") == faults.AUTHENTICATION_FAILED
        assert faults.quoted(text, "") == 'password authentication failed for user "owner"'
    assert faults.quoted("\n".join((unknown, refused)), "") == "Connection refused"
    assert faults.quoted("\n".join((unknown, unknown)), "") == "No route to host"


def test_of_several_addresses_one_without_tls_is_recognized() -> None:
    def attempt(address: str, said: str) -> str:
        return f'connection to server at "{address}", port 5432 failed: {said}'

    refused = attempt("::1", "Connection refused")
    plain = attempt("10.0.0.1", tls.words(tls.NotOffered()))
    wrong = attempt("10.0.0.2", 'FATAL:  password authentication failed for user "owner"')
    for said in ([refused, plain], [plain, refused]):
        assert faults.lacks_tls("\n".join(said))
        assert faults.reason("\n".join(said), "owner", "shop") == faults.TLS_FAILED
    assert not faults.lacks_tls("\n".join((plain, wrong)))
    assert not faults.lacks_tls("\n".join((refused, wrong)))
    assert not faults.lacks_tls("")
