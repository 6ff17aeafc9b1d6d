"""Certificates and kubeconfigs, made with the openssl program (P-256 keys: quick to make and to use)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.shell import run

_DAYS = "3650"
# Strict verifiers (Python 3.13's default) want key usage and both key identifiers to be there.
_AUTHORITY_EXTENSIONS = """\
[req]
distinguished_name = dn
x509_extensions = authority
prompt = no
[dn]
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""
_LEAF_EXTENSIONS = """\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth, serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority kept in one directory, made there on first use."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self.pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
        if self.pair.certificate.exists():
            return
        directory.mkdir(parents=True, exist_ok=True)
        make_key(self.pair.key)
        config = directory / f"{name}.cnf"
        config.write_text(_AUTHORITY_EXTENSIONS.format(name=name))
        request = ["openssl", "req", "-new", "-x509", "-sha256", "-days", _DAYS]
        run([*request, "-config", config, "-key", self.pair.key, "-out", self.pair.certificate])

    def issue(
        self, file_name: str, common_name: str, *, groups: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> Pair:
        """Sign a certificate. Kubernetes reads the user from the common name and groups from organisations.

        ``hosts`` are entries for subjectAltName with their kind, such as ``IP:127.0.0.1``.
        """
        pair = Pair(self._directory / f"{file_name}.crt", self._directory / f"{file_name}.key")
        make_key(pair.key)
        extensions = self._directory / f"{file_name}.cnf"
        names = f"subjectAltName = {', '.join(hosts)}\n" if hosts else ""
        extensions.write_text(_LEAF_EXTENSIONS + names)
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={common_name}"
        request = run(["openssl", "req", "-new", "-key", pair.key, "-subj", subject])
        signer: list[str | Path] = ["-CA", self.pair.certificate, "-CAkey", self.pair.key, "-CAcreateserial"]
        result: list[str | Path] = ["-extfile", extensions, "-out", pair.certificate]
        run(["openssl", "x509", "-req", "-sha256", "-days", _DAYS, *signer, *result], text_input=request)
        return pair


def make_key(path: Path) -> None:
    """Write a new P-256 private key that only its owner can read."""
    path.touch(mode=0o600)
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])


def write_kubeconfig(path: Path, *, server: str, authority: Path, client: Pair) -> None:
    """Write a self-contained kubeconfig with one context. JSON is YAML, so every client can read it."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "poolkeeper",
                "cluster": {"server": server, "certificate-authority-data": _base64(authority)},
            }
        ],
        "users": [
            {
                "name": "poolkeeper",
                "user": {
                    "client-certificate-data": _base64(client.certificate),
                    "client-key-data": _base64(client.key),
                },
            }
        ],
        "contexts": [{"name": "poolkeeper", "context": {"cluster": "poolkeeper", "user": "poolkeeper"}}],
        "current-context": "poolkeeper",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(document, indent=2) + "\n")


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
