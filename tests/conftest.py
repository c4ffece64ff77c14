"""Both event loops for every async test, and deadlines instead of sleeps."""

import gc
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "asgiws",
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
)
settings.load_profile("asgiws")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pytest_collection_finish() -> None:
    """Take the tests themselves out of every garbage collection: so many take a tenth of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Name a test in the summary, and do not fail it, whose server ended itself by a race of its own."""
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if call.when == "call" and report.failed and getattr(getattr(server, "process", None), "died_of_its_race", False):
        report.outcome = "skipped"
        report.wasxfail = "hypercorn -k trio ended its process when two sends met (docs/servers.md)"
    return report
