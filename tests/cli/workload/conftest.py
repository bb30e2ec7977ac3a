import pytest

from gradalign.cli.workload.data import rotten_tomatoes


@pytest.fixture(scope="session")
def films(asset):
    return rotten_tomatoes(asset("rotten-tomatoes"))
