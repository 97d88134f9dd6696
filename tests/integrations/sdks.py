"""How many SDKs are given our client: for each, what its user would write."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import allswell
from allswell import ConnectionPool

QUESTION = "how did it end?"
_BOTH = ("asyncio", "trio")
_ASYNCIO = ("asyncio",)  # alone; some SDKs stream there only: elsewhere they leave generators of theirs unfinished
_MESSAGES = [{"role": "user", "content": QUESTION}]


class Place(NamedTuple):
    """Where a fake service is.

    :ivar url: the base URL, without a slash at its end.
    :ivar seconds: the SDK's timeout.
    """

    url: str
    context: ssl.SSLContext
    seconds: float

    def client(self, **settings: Any) -> allswell.AsyncClient:
        """For an SDK that is made for httpx2."""
        return allswell.AsyncClient(verify=self.context, timeout=self.seconds, **settings)

    def transport(self) -> Any:
        """For an SDK that is made for httpx."""
        return import_module("allswell.httpx").AsyncTransport(verify=self.context)

    def older_client(self, transport: Any, **settings: Any) -> Any:
        """httpx's client, on our transport."""
        return import_module("httpx").AsyncClient(transport=transport, timeout=self.seconds, **settings)


@dataclass
class Talk:
    """An SDK that is set up.

    :ivar pool: that its requests go through.
    :ivar ask: the simplest call, and its answer.
    :ivar stream: the parts of an answer, as they come.
    """

    pool: ConnectionPool
    ask: Callable[[], Coroutine[Any, Any, str]]
    stream: Callable[[], AsyncIterator[str]] | None = None


def _pool(client: allswell.AsyncClient) -> ConnectionPool:
    assert client.pool is not None
    return client.pool


Opener = Callable[[Place], AbstractAsyncContextManager[Talk]]


@dataclass
class Sdk:
    """One of them.

    :ivar name: its distribution; :ivar module: what is imported.
    :ivar timeout: the error that tells its user of a timeout.
    :ivar streams: on which event loops it streams.
    :ivar retries: whether it calls again after 503.
    :ivar loops: where it runs.
    :ivar broken: an error of its own that the newest release has.
    """

    name: str
    module: str
    open: Opener
    timeout: str
    streams: tuple[str, ...] = ()
    retries: bool = False
    loops: tuple[str, ...] = _BOTH
    broken: type[Exception] | None = None


SDKS: dict[str, Sdk] = {}


def _sdk(name: str, module: str, *, timeout: str, **traits: Any) -> Callable[[Callable[[Place], Any]], Opener]:
    def register(opener: Callable[[Place], Any]) -> Opener:
        opened: Opener = asynccontextmanager(opener)
        SDKS[name] = Sdk(name, module, opened, timeout, **traits)
        return opened

    return register


@_sdk("openai", "openai", timeout="openai.APITimeoutError", streams=_ASYNCIO, retries=True)
async def _openai(place: Place) -> AsyncIterator[Talk]:
    openai = import_module("openai")
    client = place.client()
    url = f"{place.url}/v1"
    async with openai.AsyncOpenAI(api_key="k", base_url=url, http_client=client, timeout=place.seconds) as service:

        async def ask() -> str:
            answer = await service.chat.completions.create(model="fake", messages=_MESSAGES)
            return str(answer.choices[0].message.content)

        async def stream() -> AsyncIterator[str]:
            async with await service.chat.completions.create(model="fake", messages=_MESSAGES, stream=True) as chunks:
                async for chunk in chunks:
                    yield chunk.choices[0].delta.content

        yield Talk(_pool(client), ask, stream)


@_sdk("anthropic", "anthropic", timeout="anthropic.APITimeoutError", streams=_BOTH, retries=True)
async def _anthropic(place: Place) -> AsyncIterator[Talk]:
    anthropic = import_module("anthropic")
    client = place.client()
    asked: dict[str, Any] = {"model": "fake", "max_tokens": 10, "messages": _MESSAGES}
    service = anthropic.AsyncAnthropic(api_key="k", base_url=place.url, http_client=client, timeout=place.seconds)
    async with service:

        async def ask() -> str:
            return str((await service.messages.create(**asked)).content[0].text)

        async def stream() -> AsyncIterator[str]:
            async with service.messages.stream(**asked) as message:
                async for part in message.text_stream:
                    yield part

        yield Talk(_pool(client), ask, stream)


@_sdk("google-genai", "google.genai", timeout="httpx2.TimeoutException", streams=_ASYNCIO, retries=True, loops=_ASYNCIO)
async def _google(place: Place) -> AsyncIterator[Talk]:
    genai, types = import_module("google.genai"), import_module("google.genai.types")
    async with place.client() as client:
        again = types.HttpRetryOptions(attempts=3, initial_delay=0.01)
        options = types.HttpOptions(
            base_url=place.url, httpx_async_client=client, retry_options=again, timeout=int(place.seconds * 1000)
        )
        service = genai.Client(api_key="k", http_options=options).aio

        async def ask() -> str:
            return str((await service.models.generate_content(model="fake", contents=QUESTION)).text)

        async def stream() -> AsyncIterator[str]:
            async for part in await service.models.generate_content_stream(model="fake", contents=QUESTION):
                yield part.text

        yield Talk(_pool(client), ask, stream)


@_sdk("mistralai", "mistralai", timeout="httpx2.TimeoutException", streams=_ASYNCIO, retries=True, loops=_ASYNCIO)
async def _mistral(place: Place) -> AsyncIterator[Talk]:
    client_module = import_module("mistralai.client")
    retries = import_module("mistralai.client.utils.retries")
    backoff = retries.RetryConfig("backoff", retries.BackoffStrategy(1, 10, 1.0, 10_000), True)
    async with place.client() as client:
        service = client_module.Mistral(
            api_key="k", server_url=place.url, async_client=client, timeout_ms=int(place.seconds * 1000)
        )
        asked: dict[str, Any] = {"model": "fake", "messages": _MESSAGES, "retries": backoff}

        async def ask() -> str:
            answer = await service.chat.complete_async(**asked)
            return str(answer.choices[0].message.content)

        async def stream() -> AsyncIterator[str]:
            async with await service.chat.stream_async(**asked) as events:
                async for event in events:
                    yield event.data.choices[0].delta.content

        yield Talk(_pool(client), ask, stream)


@_sdk("mcp", "mcp", timeout="mcp.MCPError")
async def _mcp(place: Place) -> AsyncIterator[Talk]:
    mcp, http = import_module("mcp"), import_module("mcp.client.streamable_http")
    async with (
        place.client() as client,
        http.streamable_http_client(f"{place.url}/mcp", http_client=client) as (reading, writing, *_),
        mcp.ClientSession(reading, writing, read_timeout_seconds=place.seconds) as session,
    ):

        async def ask() -> str:
            await session.initialize()
            return str((await session.list_tools()).tools[0].name)

        yield Talk(_pool(client), ask)


@_sdk("huggingface_hub", "huggingface_hub", timeout="huggingface_hub.InferenceTimeoutError", streams=_ASYNCIO)
async def _hugging_face(place: Place) -> AsyncIterator[Talk]:
    hub = import_module("huggingface_hub")
    utils = import_module("huggingface_hub.utils")
    client = place.client()
    utils.set_async_client_factory(lambda: client)
    service = hub.AsyncInferenceClient(base_url=place.url, api_key="k", timeout=place.seconds)
    try:
        async with service:

            async def ask() -> str:
                return str((await service.chat_completion(_MESSAGES)).choices[0].message.content)

            async def stream() -> AsyncIterator[str]:
                async for chunk in await service.chat_completion(_MESSAGES, stream=True):
                    yield chunk.choices[0].delta.content

            yield Talk(_pool(client), ask, stream)
    finally:
        utils.set_async_client_factory(utils._http.default_async_client_factory)
        await client.aclose()


@_sdk(
    "langchain-openai",
    "langchain_openai",
    timeout="openai.APITimeoutError",
    streams=_ASYNCIO,
    retries=True,
    loops=_ASYNCIO,
)
async def _langchain(place: Place) -> AsyncIterator[Talk]:
    langchain = import_module("langchain_openai")
    async with place.client() as client:
        service = langchain.ChatOpenAI(
            model="fake", api_key="k", base_url=f"{place.url}/v1", http_async_client=client, timeout=place.seconds
        )

        async def ask() -> str:
            return str((await service.ainvoke(QUESTION)).content)

        async def stream() -> AsyncIterator[str]:
            async for chunk in service.astream(QUESTION):
                yield chunk.content

        yield Talk(_pool(client), ask, stream)


@_sdk("cohere", "cohere", timeout="httpx.TimeoutException", streams=_ASYNCIO, retries=True, loops=_ASYNCIO)
async def _cohere(place: Place) -> AsyncIterator[Talk]:
    cohere = import_module("cohere")
    transport = place.transport()
    async with place.older_client(transport) as client:
        service = cohere.AsyncClientV2(api_key="k", base_url=place.url, httpx_client=client, timeout=place.seconds)

        async def ask() -> str:
            return str((await service.chat(model="fake", messages=_MESSAGES)).message.content[0].text)

        async def stream() -> AsyncIterator[str]:
            async for event in service.chat_stream(model="fake", messages=_MESSAGES):
                if event.type == "content-delta":
                    yield event.delta.message.content.text

        yield Talk(transport.pool, ask, stream)


@_sdk("elasticsearch", "elasticsearch", timeout="elasticsearch.ConnectionTimeout", retries=True, loops=_ASYNCIO)
async def _elasticsearch(place: Place) -> AsyncIterator[Talk]:
    elasticsearch, elastic_transport = import_module("elasticsearch"), import_module("elastic_transport")
    transport = place.transport()

    class Node(elastic_transport.HttpxAsyncHttpNode):  # type: ignore[misc,name-defined]  # a class of an optional package
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.client = place.older_client(transport, base_url=self.base_url)

    service = elasticsearch.AsyncElasticsearch(
        place.url,
        ssl_context=place.context,
        node_class=Node,
        request_timeout=place.seconds,
        retry_on_status=[503],
        max_retries=2,
    )
    async with service:

        async def ask() -> str:
            return str((await service.get(index="texts", id="1"))["_source"]["text"])

        yield Talk(transport.pool, ask)


@_sdk("qdrant-client", "qdrant_client", timeout="qdrant_client.http.exceptions.ResponseHandlingException")
async def _qdrant(place: Place) -> AsyncIterator[Talk]:
    qdrant = import_module("qdrant_client")
    transport = place.transport()
    at = urlsplit(place.url)
    service = qdrant.AsyncQdrantClient(
        host=at.hostname,
        port=at.port,
        prefix=at.path,
        https=True,
        timeout=place.seconds,
        transport=transport,
        check_compatibility=False,
    )
    try:

        async def ask() -> str:
            return str((await service.get_collections()).collections[0].name)

        yield Talk(transport.pool, ask)
    finally:
        await service.close()


@_sdk("postgrest", "postgrest", timeout="httpx.TimeoutException", retries=True, loops=_ASYNCIO)
async def _postgrest(place: Place) -> AsyncIterator[Talk]:
    postgrest = import_module("postgrest")
    transport = place.transport()
    async with (
        place.older_client(transport) as client,
        postgrest.AsyncPostgrestClient(place.url, http_client=client) as service,
    ):

        async def ask() -> str:
            return str((await service.from_("texts").select("*").execute()).data[0]["text"])

        yield Talk(transport.pool, ask)


@_sdk("python-telegram-bot", "telegram", timeout="telegram.error.TimedOut", loops=_ASYNCIO)
async def _telegram(place: Place) -> AsyncIterator[Talk]:
    telegram, request = import_module("telegram"), import_module("telegram.request")
    transport = place.transport()
    settings = {"read_timeout": place.seconds, "connect_timeout": place.seconds, "pool_timeout": place.seconds}
    bot = telegram.Bot(
        "1:k",
        base_url=f"{place.url}/bot",
        request=request.HTTPXRequest(httpx_kwargs={"transport": transport}, **settings),
        get_updates_request=request.HTTPXRequest(httpx_kwargs={"transport": place.transport()}),
    )

    async def ask() -> str:
        return str((await bot.get_me()).first_name)

    yield Talk(transport.pool, ask)
    await bot.shutdown()
    await transport.aclose()


@_sdk(
    "githubkit",
    "githubkit",
    timeout="githubkit.exception.RequestTimeout",
    retries=True,
    broken=ImportError,  # 0.16 takes any hishel, and imports what hishel 2 has no more
)
async def _githubkit(place: Place) -> AsyncIterator[Talk]:
    githubkit, retry = import_module("githubkit"), import_module("githubkit.retry")
    transport = place.transport()
    service = githubkit.GitHub(
        "k",
        base_url=place.url,
        async_transport=transport,
        timeout=place.seconds,
        auto_retry=retry.RetryServerError(),
        http_cache=False,
    )
    async with service:

        async def ask() -> str:
            return str((await service.arequest("GET", "/texts")).json()[0]["text"])

        yield Talk(transport.pool, ask)


@_sdk("hishel", "hishel.httpx2", timeout="httpx2.TimeoutException", loops=_ASYNCIO)
async def _hishel(place: Place) -> AsyncIterator[Talk]:
    hishel, core = import_module("hishel.httpx2"), import_module("hishel")
    transport = allswell.AsyncTransport(verify=place.context)
    storage = core.AsyncSqliteStorage(database_path=":memory:")
    cached = hishel.AsyncCacheTransport(next_transport=transport, storage=storage, rfc=True)
    async with import_module("httpx2").AsyncClient(transport=cached, timeout=place.seconds) as client:

        async def ask() -> str:
            return str((await client.get(f"{place.url}/fresh")).json()["text"])

        yield Talk(transport.pool, ask)


@_sdk("authlib", "authlib.integrations.httpx_client", timeout="httpx2.TimeoutException")
async def _authlib(place: Place) -> AsyncIterator[Talk]:
    authlib = import_module("authlib.integrations.httpx_client")
    transport = allswell.AsyncTransport(verify=place.context)
    client = authlib.AsyncOAuth2Client("id", "secret", transport=transport, timeout=place.seconds)
    async with client:

        async def ask() -> str:
            await client.fetch_token(f"{place.url}/token", grant_type="client_credentials")
            return str((await client.get(f"{place.url}/texts")).json()[0]["text"])

        yield Talk(transport.pool, ask)


@_sdk("microsoft-kiota-http", "kiota_http", timeout="httpx.TimeoutException", loops=_ASYNCIO)
async def _kiota(place: Place) -> AsyncIterator[Talk]:
    adapter, clients = (
        import_module("kiota_http.httpx_request_adapter"),
        import_module("kiota_http.kiota_client_factory"),
    )
    abstractions = import_module("kiota_abstractions.request_information")
    authentication = import_module("kiota_abstractions.authentication")
    transport = place.transport()
    client = clients.KiotaClientFactory.create_with_default_middleware(client=place.older_client(transport))
    async with client:
        service = adapter.HttpxRequestAdapter(authentication.AnonymousAuthenticationProvider(), http_client=client)

        async def ask() -> str:
            asked = abstractions.RequestInformation()
            asked.http_method, asked.url = abstractions.Method.GET, f"{place.url}/texts"
            return str(json.loads(await service.send_primitive_async(asked, "bytes", {}))[0]["text"])

        yield Talk(transport.pool, ask)


@_sdk("gql", "gql", timeout="gql.transport.exceptions.TransportConnectionFailed")
async def _gql(place: Place) -> AsyncIterator[Talk]:
    gql, http = import_module("gql"), import_module("gql.transport.httpx")
    transport = allswell.AsyncTransport(verify=place.context)
    inner = http.HTTPXAsyncTransport(url=f"{place.url}/graphql", transport=transport, timeout=place.seconds)
    async with gql.Client(transport=inner, execute_timeout=None) as session:

        async def ask() -> str:
            return str((await session.execute(gql.gql("{ text }")))["text"])

        yield Talk(transport.pool, ask)


@_sdk("httpx-sse", "httpx_sse", timeout="httpx2.TimeoutException", streams=_BOTH)
async def _httpx_sse(place: Place) -> AsyncIterator[Talk]:
    sse = import_module("httpx_sse")
    async with place.client() as client:

        async def stream() -> AsyncIterator[str]:
            async with sse.aconnect_sse(client, "GET", f"{place.url}/events") as source:
                async for event in source.aiter_sse():
                    yield event.json()

        async def ask() -> str:
            return "".join([part async for part in stream()])

        yield Talk(_pool(client), ask, stream)


@_sdk("httpx-retries", "httpx_retries", timeout="httpx.TimeoutException", retries=True, loops=_ASYNCIO)
async def _httpx_retries(place: Place) -> AsyncIterator[Talk]:
    retries = import_module("httpx_retries")
    inner = place.transport()
    again = retries.Retry(total=3, backoff_factor=0)
    async with place.older_client(retries.RetryTransport(transport=inner, retry=again)) as client:

        async def ask() -> str:
            return str((await client.get(f"{place.url}/texts")).json()[0]["text"])

        yield Talk(inner.pool, ask)
