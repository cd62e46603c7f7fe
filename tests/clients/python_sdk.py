"""The official Python SDK as a client: python_sdk.py ENDPOINT TOOL [again]

Prints `OPEN url` where the person should go, and `RESULT json` at the end; with `again` it says `LATER` and calls once
more when it gets a line. Where there is a CLIENT_METADATA_URL, it introduces itself by that document instead of
registering.
"""

import asyncio
import json
import os
import sys
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
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


async def main(endpoint, tool, again):
    answered = asyncio.get_running_loop().create_future()

    async def called_back(reader, writer):
        # The whole head: a connection that is closed with something unread is reset.
        line = (await reader.readuntil(b"\r\n\r\n")).decode()
        query = {name: values[0] for name, values in parse_qs(urlsplit(line.split()[1]).query).items()}
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()
        if not answered.done():
            answered.set_result(query)

    server = await asyncio.start_server(called_back, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def open_browser(url):
        print(f"OPEN {url}", flush=True)

    async def wait_for_answer():
        query = await answered
        return AuthorizationCodeResult(code=query["code"], state=query.get("state"), iss=query.get("iss"))

    metadata = OAuthClientMetadata(client_name="Python SDK", redirect_uris=[f"http://127.0.0.1:{port}/callback"])
    auth = OAuthClientProvider(
        endpoint, metadata, Memory(), open_browser, wait_for_answer,
        client_metadata_url=os.environ.get("CLIENT_METADATA_URL"),
    )
    async with httpx2.AsyncClient(auth=auth, timeout=30) as http:
        async with Client(streamable_http_client(endpoint, http_client=http), mode="legacy") as client:
            tools = (await client.list_tools()).tools

            async def call():
                return (await client.call_tool(tool, {})).content[0].text

            result = {"names": [one.name for one in tools], "text": await call()}
            if again:
                print("LATER", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
                result["again"] = await call()
            print("RESULT " + json.dumps(result), flush=True)
    server.close()


asyncio.run(asyncio.wait_for(main(sys.argv[1], sys.argv[2], len(sys.argv) > 3), 60))
