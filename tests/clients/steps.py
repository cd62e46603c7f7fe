"""What a client of the Python SDKs does, step by step, and what it says of each: see tests/e2e/eras.rs.

steps.py ENDPOINT TOKEN STEPS legacy|auto|REVISION, or v1 for the SDK's first generation
"""

import asyncio
import contextlib
import json
import sys


async def pause(what):
    """Lets the test do something, and waits until it has."""
    print(f"PAUSE {what}", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


@contextlib.asynccontextmanager
async def first_generation(endpoint, headers):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async with streamablehttp_client(endpoint, headers=headers) as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            yield session


@contextlib.asynccontextmanager
async def second_generation(endpoint, headers, mode):
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        async with Client(streamable_http_client(endpoint, http_client=http), mode=mode) as client:
            yield client


class Steps:
    def __init__(self, client):
        self.client = client

    async def list(self, step):
        names, cursor = [], None
        while True:
            page = await self.client.list_tools(cursor=cursor)
            names += [tool.name for tool in page.tools]
            cursor = getattr(page, "next_cursor", None) or getattr(page, "nextCursor", None)
            if not cursor:
                return {"names": names}

    async def call(self, step):
        heard = []

        async def progress(*told):
            heard.append(told)

        result = await self.client.call_tool(step["name"], step["arguments"], progress_callback=progress)
        text = result.content[0].text
        failed = result.is_error if hasattr(result, "is_error") else result.isError
        return {"text": text[:1000], "length": len(text), "isError": bool(failed), "progress": len(heard)}

    async def read(self, step):
        return {"text": (await self.client.read_resource(step["uri"])).contents[0].text}

    async def cancel(self, step):
        calling = asyncio.ensure_future(self.client.call_tool(step["name"], step["arguments"]))
        await pause("in flight")
        calling.cancel()
        try:
            await calling
        except asyncio.CancelledError:
            return {"cancelled": True}
        return {"cancelled": False}

    async def pause(self, step):
        await pause(step["what"])


async def main(endpoint, token, steps, mode):
    headers = {"Authorization": f"Bearer {token}"}
    connected = first_generation(endpoint, headers) if mode == "v1" else second_generation(endpoint, headers, mode)
    async with connected as client:
        came = []
        for step in json.loads(steps):
            try:
                came.append(await getattr(Steps(client), step["do"])(step))
            except Exception as error:
                came.append({"error": str(error)})
        print("RESULT " + json.dumps(came), flush=True)


asyncio.run(main(*sys.argv[1:5]))
