// The official TypeScript SDK (v1, what most of today's clients are built on): typescript-v1.mjs ENDPOINT TOOL [again]
// Prints `OPEN url` where the person should go, and `RESULT json` at the end; with `again` it says `LATER` and calls
// once more when it gets a line.

import { Memory, callback, load, work } from './loopback.mjs';

const { Client } = await load('@modelcontextprotocol/sdk/client/index.js');
const { StreamableHTTPClientTransport } = await load('@modelcontextprotocol/sdk/client/streamableHttp.js');
const { UnauthorizedError } = await load('@modelcontextprotocol/sdk/client/auth.js');
const [endpoint, tool, again] = process.argv.slice(2);
const back = await callback();
const authProvider = new Memory(back.url);
const transport = () => new StreamableHTTPClientTransport(new URL(endpoint), { authProvider });
const client = () => new Client({ name: 'typescript-v1', version: '1' });

const first = transport();
await client().connect(first).then(
  () => { throw new Error('connected without a login'); },
  (error) => { if (!(error instanceof UnauthorizedError)) throw error; },
);
await first.finishAuth((await back.answered).get('code'));
const connected = client();
await connected.connect(transport());
await work(connected, tool, again);
await connected.close();
back.close();
process.exit(0);
