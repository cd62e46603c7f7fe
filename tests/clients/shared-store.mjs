// One of several processes that share one store of tokens, with the official TypeScript SDK (v2): shared-store.mjs ENDPOINT TOOL STORE
// Takes what the store has when it starts, logs in where that is nothing, and writes what it gets there; what another process
// writes later it does not see. Prints `OPEN url` where the person should go, `CALLED text` when it has called, at first and
// again for each line that it gets.

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { Memory, callback, load } from './loopback.mjs';

const { Client, StreamableHTTPClientTransport, UnauthorizedError } = await load('@modelcontextprotocol/client');
const [endpoint, tool, store] = process.argv.slice(2);

class Shared extends Memory {
  constructor(redirectUrl) {
    super(redirectUrl);
    if (existsSync(store)) ({ client: this.client, tokens: this.saved } = JSON.parse(readFileSync(store, 'utf8')));
  }
  saveClientInformation(client) { super.saveClientInformation(client); this.write(); }
  saveTokens(tokens) { super.saveTokens(tokens); this.write(); }
  write() { writeFileSync(store, JSON.stringify({ client: this.client, tokens: this.saved })); }
}

const back = await callback();
const authProvider = new Shared(back.url);
const connect = async () => {
  const transport = new StreamableHTTPClientTransport(new URL(endpoint), { authProvider });
  const client = new Client({ name: 'shared-store', version: '1' });
  await client.connect(transport).catch(async (error) => {
    if (!(error instanceof UnauthorizedError)) throw error;
    await transport.finishAuth(await back.answered);
    return client.connect(new StreamableHTTPClientTransport(new URL(endpoint), { authProvider }));
  });
  return client;
};
const client = await connect();
const call = async () => console.log(`CALLED ${(await client.callTool({ name: tool, arguments: {} })).content[0].text.replaceAll('\n', ' ')}`);
await call();
for await (const _ of createInterface({ input: process.stdin })) await call();
process.exit(0);
