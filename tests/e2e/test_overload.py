"""What Poolkeeper is for: an app that scales past the server's connections."""

from __future__ import annotations

import pytest

from e2e.demo import overload


def test_forty_copies_with_a_pool_of_ten_fail_straight_at_the_server_and_not_through_poolers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert overload.main(seconds=10) == 0
    said = capsys.readouterr().out
    assert "sorry, too many clients already" in said
    assert overload.PICTURE.read_text().startswith("<?xml")
