// The official TypeScript SDK, v1: steps-typescript-v1.mjs ENDPOINT TOKEN STEPS

import { load } from './loopback.mjs';
import { follow } from './steps.mjs';

const { Client } = await load('@modelcontextprotocol/sdk/client/index.js');
const { StreamableHTTPClientTransport } = await load('@modelcontextprotocol/sdk/client/streamableHttp.js');
const [endpoint, token, steps] = process.argv.slice(2);
const client = new Client({ name: 'typescript-v1', version: '1' });
const requestInit = { headers: { authorization: `Bearer ${token}` } };
await client.connect(new StreamableHTTPClientTransport(new URL(endpoint), { requestInit }));
await follow(client, (params, options) => client.callTool(params, undefined, options), JSON.parse(steps));
