"""What the Python clients share: tokens in memory, and a login with the callback on this machine."""

import asyncio
import os
from urllib.parse import parse_qs, urlsplit

from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.shared.auth import OAuthClientMetadata


class Memory:
    """A TokenStorage."""

    tokens = client = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client):
        self.client = client


async def provider(endpoint, storage):
    """An OAuthClientProvider that prints `OPEN url` where the person should go, and waits for the callback.

    Where there is a CLIENT_METADATA_URL, the client introduces itself by that document instead of registering.
    """
    answers = asyncio.Queue()

    async def called_back(reader, writer):
        # The whole head: a connection that is closed with something unread is reset.
        line = (await reader.readuntil(b"\r\n\r\n")).decode()
        query = {name: values[0] for name, values in parse_qs(urlsplit(line.split()[1]).query).items()}
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()
        answers.put_nowait(query)

    server = await asyncio.start_server(called_back, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def open_browser(url):
        print(f"OPEN {url}", flush=True)

    async def wait_for_answer():
        query = await answers.get()
        return AuthorizationCodeResult(code=query["code"], state=query.get("state"), iss=query.get("iss"))

    metadata = OAuthClientMetadata(client_name="Python SDK", redirect_uris=[f"http://127.0.0.1:{port}/callback"])
    return OAuthClientProvider(
        endpoint, metadata, storage, open_browser, wait_for_answer,
        client_metadata_url=os.environ.get("CLIENT_METADATA_URL"),
    )
