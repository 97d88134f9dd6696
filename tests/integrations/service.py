"""A FastAPI application that asks an origin for whatever it is asked for. It runs in a process of its own."""

from __future__ import annotations

import logging
import os
import ssl

from fastapi import FastAPI, Request, Response

import allswell

lifespan = allswell.lifespan(
    lambda: allswell.AsyncClient(
        verify=ssl.create_default_context(cafile=os.environ["CA"]),
        http3="only" if os.environ["VERSION"] == "h3" else False,
        timeout=600,
    ),
    grace=float(os.environ["GRACE"]),
    on_close=logging.getLogger("uvicorn.error").info,
)
app = FastAPI(lifespan=lifespan)


async def ask(request: Request) -> Response:
    """Ask the origin."""
    answer = await request.state.client.get(os.environ["ORIGIN"] + request.url.path)
    return Response(answer.content, answer.status_code)


app.add_api_route("/{number}", ask)
