"""Most of these tests start no process: the fork server waits until one does."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def preloaded_fork_server() -> None:
    """In the place of the one that starts it at once."""
