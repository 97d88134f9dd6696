"""Builders make a connected stack to an endpoint, and the backend that speaks on it."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from allswell._backends.interface import Backend
from allswell._connection.connection import Connection
from allswell._connection.driver import Driver
from allswell._connection.service import Service
from allswell._dial.context import Context
from allswell._filters.interface import Carrier
from allswell._filters.stack import Stack
from allswell._request.route import Endpoint
from allswell._tasks import TaskHost

Input = TypeVar("Input", bound=Sized)


@dataclass(slots=True, eq=False, repr=False)
class Made(Generic[Input]):
    """A connected stack, and a backend that fits it."""

    stack: Stack[Carrier[Input]]
    backend: Backend[Input]

    def connection(self, host: TaskHost, context: Context, service: Service) -> Connection:
        """Make the connection. Its task is not running yet."""
        driver = Driver(
            host,
            self.stack,
            self.backend,
            label=context.route.label,
            owner=context.owner,
            config=context.config,
            service=service,
            number=context.number,
        )
        return driver.connection


class Builder(Protocol[Input]):
    """Makes stack and backend of a connection, over TCP or over QUIC."""

    async def build(self, context: Context, to: Endpoint) -> Made[Input]:
        """Connect to the first address of the endpoint that answers, for the context's route.

        :raises ConnectFailed: if none does. It names the peer and what went wrong.
        """
