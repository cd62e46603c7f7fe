"""The official Python SDK as a client: python_sdk.py ENDPOINT TOOL [again]

Prints `OPEN url` where the person should go, and `RESULT json` at the end; with `again` it says `LATER` and calls once
more when it gets a line.
"""

import asyncio
import json
import sys

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from login import Memory, provider


async def main(endpoint, tool, again):
    auth = await provider(endpoint, Memory())
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


asyncio.run(asyncio.wait_for(main(sys.argv[1], sys.argv[2], len(sys.argv) > 3), 60))
