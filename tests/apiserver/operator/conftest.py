"""The control plane of the operator's tests: with an audit log and the controller that ends namespaces."""

from collections.abc import Iterator

import pytest

from tests.apiserver.operator.operator_process import Operator
from tests.apiserver.operator.site import Lane, Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site.opened(tmp_path_factory.mktemp("operator-site")) as made:
        yield made


@pytest.fixture
def lane(site: Site) -> Iterator[Lane]:
    """Namespaces that no other test uses; operators that the test started end with it."""
    yield Lane(site)
    site.stop_operators()


@pytest.fixture
def operator(site: Site, lane: Lane) -> Iterator[Operator]:
    """It runs already, and may not say that anything surprised it."""
    running = site.operator(lane.namespaces).start()
    yield running
    running.keep_running()
    assert "Traceback" not in running.said(), running.said()[-5000:]
