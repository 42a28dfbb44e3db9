"""Where a command finds the daemon: by the address that was configured, or the URL that the daemon tells."""

import pytest

from router.cli.admin_client import AdminClient, UnreachableError
from router.config.static import ConfigError


@pytest.mark.parametrize("shown", ["127.0.0.1:{}", "http://127.0.0.1:{}", "http://127.0.0.1:{}/"])
def test_the_address_and_its_url(shown, unused_tcp_port):
    with pytest.raises(UnreachableError, match="refused"):
        AdminClient(shown.format(unused_tcp_port)).call("GET", "/")


def test_what_is_neither():
    with pytest.raises(ConfigError, match="--admin"):
        AdminClient("ftp://host")
