"""The state of a lane, made equal where it differs from run to run, and what must hold inside of it."""

from __future__ import annotations

import base64
import difflib
import hashlib
import hmac
import json
import re
from typing import Any
from urllib.parse import urlsplit

from poolkeeper import names
from poolkeeper.consumers import entries
from poolkeeper.consumers.consent import Consumer
from tests.apiserver.operator.site import Lane, Object, decoded

_VOLATILE = ("resourceVersion", "uid", "creationTimestamp", "managedFields", "generation", "deletionTimestamp")
_TIMES = re.compile(r'"(lastTransitionTime|startTime)": "[^"]*"')
_VERIFIER = re.compile(r"SCRAM-SHA-256[$][^\\\"]+")
_RESTART_DIGEST = re.compile(
    r'restart-digest": "[0-9a-f]{12}"'
)  # covers the console's verifier, which has a salt
_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END [A-Z ]+-----")
_PADDING = re.compile(r'(?:\\n)+"')  # how many lines a userlist ends with hangs on its generation
_CONTENT_FILE = re.compile(r"\b(ca|tls|tls-ca)-[0-9a-f]{12}\b")  # named after certificates and keys
Snapshot = dict[str, str]


def snapshot(lane: Lane, consumers: tuple[Consumer, ...]) -> Snapshot:
    """Every object of the lane as text, and the Events of removed consumers (those of transitions hang on how
    soon the upstream answers). Raises AssertionError for what contradicts itself."""
    objects = lane.objects()
    removals = [event["message"] for event in lane.events() if event["reason"] == "ConsumerRemoved"]
    whole = {_title(obj): _plain(obj) for obj in objects}
    try:
        assert_consistent(lane, objects, consumers)
        return _without_chance(lane, objects, consumers, {**whole, "Removals": sorted(removals)})
    except (KeyError, ValueError) as error:
        raise AssertionError(f"{error!r}: something is missing or damaged") from error


def difference(wanted: Snapshot, found: Snapshot) -> str:
    lines: list[str] = []
    for title in sorted(wanted.keys() | found.keys()):
        before, now = ((side.get(title) or "absent").splitlines() for side in (wanted, found))
        lines += difflib.unified_diff(before, now, f"undisturbed {title}", "this run", lineterm="", n=1)
    return "\n".join(lines)


def assert_consistent(lane: Lane, objects: list[Object], consumers: tuple[Consumer, ...]) -> None:
    """Each consumer's Secrets hold one password: the stored login's, which the poolers' verifier proves."""
    secrets = {
        (obj["metadata"]["namespace"], obj["metadata"]["name"]): decoded(obj)
        for obj in objects
        if obj["kind"] == "Secret"
    }
    logins = secrets.get((lane.data, "shop-pooler-logins"), {})
    config = secrets.get((lane.data, "shop-pooler-config"), {})
    userlist = config.get(f"userlist-{current_generation(config)}.txt", "")
    for consumer in consumers:
        login = entries.login_name(consumer)
        stored = json.loads(logins[f"consumer.{login}"])
        app = secrets[consumer.namespace, consumer.secret_name]
        binding = secrets[consumer.namespace, names.binding_name(consumer.secret_name)]
        urls = (app["DATABASE_URL"], app["DATABASE_SESSION_URL"], binding["uri"], binding["session-uri"])
        passwords = {app["PGPASSWORD"], binding["password"], *(urlsplit(url).password for url in urls)}
        assert passwords == {stored["password"]}, f"passwords of {consumer} differ"
        assert proves(stored["verifier"], stored["password"]), f"verifier of {consumer}"
        assert f'"{login}" "{stored["verifier"]}"\n' in userlist, f"userlist lacks {consumer}"
        rules = config[f"hba-{current_generation(config)}.conf"]
        assert f'"{app["PGDATABASE"]}"' in rules, f"no rule for {consumer}"
        keeper = secrets[consumer.namespace, names.keeper_name(consumer.secret_name)]["pgbouncer.ini"]
        assert f"user='{login}' password='{stored['password']}'" in keeper, f"keeper of {consumer}"


def proves(verifier: str, password: str) -> bool:
    """Whether a SCRAM-SHA-256 verifier (RFC 5803) belongs to a password."""
    iterations, salt, stored_key, _ = re.split(r"[:$]", verifier.removeprefix("SCRAM-SHA-256$"))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    key = hmac.digest(salted, b"Client Key", "sha256")
    return hashlib.sha256(key).digest() == base64.b64decode(stored_key)


def current_generation(config: dict[str, str]) -> str:
    found = re.search(r"userlist-([0-9a-f]{12})\.txt", config.get("pgbouncer.ini", ""))
    return found[1] if found else ""


def _title(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['namespace']}/{obj['metadata']['name']}"


def _plain(obj: Object) -> Any:
    metadata = {key: value for key, value in obj["metadata"].items() if key not in _VOLATILE}
    rest = {key: value for key, value in obj.items() if key not in ("metadata", "data")}
    if obj["kind"] == "Service":
        rest["spec"] = {key: value for key, value in rest["spec"].items() if not key.startswith("clusterIP")}
    if obj["kind"] in ("Pod", "PodDisruptionBudget"):
        del rest["status"]
    return {**rest, "metadata": metadata, **({"data": decoded(obj)} if obj["kind"] == "Secret" else {})}


def _without_chance(
    lane: Lane, objects: list[Object], consumers: tuple[Consumer, ...], whole: dict[str, Any]
) -> Snapshot:
    """Names that hang on the lane's own name, UIDs, passwords and the digests over them become words."""
    words: dict[str, str] = {}
    possible = {Consumer(lane.web, "database"), Consumer(lane.backend, "shop-db"), *consumers}
    for consumer in possible:
        short = consumer.namespace.removeprefix(lane.name)
        words[entries.login_name(consumer)] = f"<login{short}>"
        words[entries.entry_name("shop", consumer)] = f"<entry{short}>"
    for obj in objects:
        words[obj["metadata"]["uid"]] = f"<uid of {_title(obj)}>"
        if obj["metadata"]["name"] == "shop-pooler-logins":
            for key, value in decoded(obj).items():
                secret = json.loads(value)
                for part in ("password", "verifier", "check"):
                    if part in secret and key != "upstream":
                        login = key.removeprefix("consumer.")
                        words[secret[part]] = f"<{part} of {words.get(login, login)}>"
        if obj["metadata"]["name"].endswith(("-pooler-config", "-keeper")):
            config = decoded(obj)
            current = current_generation(config)
            files = sorted(name[9:21] for name in config if name.startswith("userlist-"))
            for generation in files:
                words[generation] = "<current>" if generation == current else "<previous>"
    result = {}
    for title, value in whole.items():
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        for word in sorted(words, key=len, reverse=True):
            text = text.replace(word, words[word])
            title = title.replace(word, words[word])
        text = _RESTART_DIGEST.sub(
            'restart-digest": "<digest>"', _VERIFIER.sub("<verifier of one who left>", text)
        )
        text = _CONTENT_FILE.sub(r"\1-<digest>", _PEM.sub(r"<\1>", text))
        text = _PADDING.sub(r'\\n"', text)
        text = _TIMES.sub(r'"\1": "<time>"', text.replace(lane.name, "<lane>"))
        result[title.replace(lane.name, "<lane>")] = (
            "\n".join(sorted(line.rstrip(",") for line in text.splitlines())) if _is_map(title) else text
        )
    return result


def _is_map(title: str) -> bool:
    """Objects whose order of lines hangs on digests in their keys."""
    return title.endswith(("pooler-logins", "pooler-config", "-keeper"))
