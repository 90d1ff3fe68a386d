"""A hub for every test."""

from collections.abc import Iterator

import pytest
from stub_hub import Hub, serve


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = serve(hub)
    yield hub
    server.shutdown()
    server.server_close()
