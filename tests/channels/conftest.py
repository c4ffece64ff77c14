"""The backends on which the contract is tested."""

from collections.abc import Iterator

import pytest

from tests.channels.contract import RUNS, Kind, World
from tests.valkey import Valkey


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """One server for all tests of the contract."""
    with Valkey() as server:
        yield server


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> tuple[Kind, str]:
    """A kind of backend and the event loop that it runs on."""
    found: tuple[Kind, str] = request.param
    return found


@pytest.fixture
def world(run: tuple[Kind, str], request: pytest.FixtureRequest) -> World:
    """Empty topics."""
    return run[0].world(request.getfixturevalue)
