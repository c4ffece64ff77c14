"""Both event loops for every async test, and deadlines instead of sleeps."""

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
