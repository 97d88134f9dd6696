"""Nothing that goes wrong may leave a socket behind."""

from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
