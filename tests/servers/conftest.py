"""Every server with the application of the contract, started once for all scenarios."""

from collections.abc import Iterator

import pytest

from tests.servers import ServerProcess, every_server, running
from tests.servers.clients import Server

COMMANDS = every_server("tests.apps:app", root_path="/api")


@pytest.fixture(scope="package")
def contract_servers() -> Iterator[dict[str, ServerProcess]]:
    with running(**COMMANDS) as processes:
        yield processes


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, contract_servers: dict[str, ServerProcess]) -> Iterator[Server]:
    """One of them at a time."""
    processes = contract_servers
    if processes[request.param].died_of_its_race:  # in a test before, whose report tells
        processes[request.param].stop()
        processes[request.param] = ServerProcess(COMMANDS[request.param]).wait_until_ready()
    chosen = Server(request.param, processes[request.param])
    yield chosen
    print(chosen.log)  # noqa: T201 - pytest shows it with a failure
    assert chosen.process.process.poll() is None or chosen.process.died_of_its_race, "the server has died"
