// The official TypeScript SDK (v2) as a client: typescript.mjs ENDPOINT TOOL [again]
// Prints `OPEN url` where the person should go, and `RESULT json` at the end; with `again` it says `LATER` and calls
// once more when it gets a line.

import { Memory, callback, load, work } from './loopback.mjs';

const { Client, StreamableHTTPClientTransport } = await load('@modelcontextprotocol/client');
const [endpoint, tool, again] = process.argv.slice(2);
const back = await callback();
const authProvider = new Memory(back.url);
const transport = () => new StreamableHTTPClientTransport(new URL(endpoint), { authProvider });
const client = () => new Client({ name: 'typescript-v2', version: '1' });

const first = transport();
await client().connect(first).then(
  () => { throw new Error('connected without a login'); },
  (error) => { if (error.name !== 'UnauthorizedError' && !/unauthorized/i.test(`${error.name} ${error.message}`)) throw error; },
);
await first.finishAuth(await back.answered);
const connected = client();
await connected.connect(transport());
await work(connected, tool, again);
await connected.close();
back.close();
process.exit(0);
