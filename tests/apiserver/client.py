"""A small synchronous client for the tests against a real API server: dicts in, dicts out."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes import config

REQUEST_TIMEOUT_S = 30


class Refused(Exception):
    """The API server said no: its status code and its message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Api:
    """The API server as a user with a kubeconfig sees it. Dicts in, dicts out; a refusal raises Refused."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._client = config.new_client_from_config(str(kubeconfig))
        self.warnings: list[str] = []
        """What the API server warned of in its last answer."""

    def request(
        self,
        verb: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        **query: str,
    ) -> dict[str, Any]:
        """One HTTP request."""
        answer = self._client.call_api(
            verb,
            f"{self._client.configuration.host}{path}?{urlencode(query)}",
            {"Content-Type": content_type, "Accept": "application/json"},
            body,
            _request_timeout=REQUEST_TIMEOUT_S,
        )
        text = answer.read().decode()
        self.warnings = answer.response.headers.getlist("Warning")
        if answer.status >= 400:
            # A path that nobody serves is answered in plain text.
            raise Refused(answer.status, json.loads(text)["message"] if text.startswith("{") else text.strip())
        found: dict[str, Any] = json.loads(text)
        return found

    def get(self, path: str) -> dict[str, Any]:
        return self.request("GET", path)

    def create(self, path: str, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """POST `body` to the collection `path`; with dry_run everything but the storing is done."""
        return self.request("POST", path, body, **({"dryRun": "All"} if dry_run else {}))

    def apply(self, path: str, body: dict[str, Any], manager: str = "test") -> dict[str, Any]:
        """Server-side apply, forced."""
        return self.request(
            "PATCH", path, body, content_type="application/apply-patch+yaml", fieldManager=manager, force="true"
        )

    def merge(self, path: str, patch: dict[str, Any]) -> dict[str, Any]:
        """JSON merge patch."""
        return self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def delete(self, path: str) -> dict[str, Any]:
        return self.request("DELETE", path)
