"""One of several processes that share one store of tokens, with the official Python SDK: shared_store.py ENDPOINT TOOL STORE

Takes what the store has when it starts, logs in where that is nothing, and writes what it gets there; what another process
writes later it does not see. Prints `OPEN url` where the person should go, `CALLED text` when it has called, at first and
again for each line that it gets. With the line `login` it forgets its tokens before, as after a person's logging in anew.
"""

import asyncio
import json
import pathlib
import sys

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from login import Memory, provider


class Shared(Memory):
    """A TokenStorage in a file."""

    def __init__(self, file):
        self.file = pathlib.Path(file)
        if self.file.exists():
            kept = json.loads(self.file.read_text())
            self.client = OAuthClientInformationFull.model_validate(kept["client"])
            self.tokens = OAuthToken.model_validate(kept["tokens"])

    async def set_tokens(self, tokens):
        await super().set_tokens(tokens)
        kept = {"client": self.client.model_dump(mode="json"), "tokens": self.tokens.model_dump(mode="json")}
        self.file.write_text(json.dumps(kept))


async def main(endpoint, tool, store):
    storage = Shared(store)
    auth = await provider(endpoint, storage)
    if storage.tokens:
        # The SDK asks its clock only about tokens that it was given itself.
        auth.context.update_token_expiry(storage.tokens)
    async with httpx2.AsyncClient(auth=auth, timeout=30) as http:
        async with Client(streamable_http_client(endpoint, http_client=http), mode="legacy") as client:

            async def call():
                text = (await client.call_tool(tool, {})).content[0].text
                print("CALLED " + " ".join(text.split("\n")), flush=True)

            await call()
            while line := await asyncio.to_thread(sys.stdin.readline):
                if line.strip() == "login":
                    auth.context.clear_tokens()
                await call()


asyncio.run(main(*sys.argv[1:4]))
