// The official TypeScript SDK, v2: steps-typescript.mjs ENDPOINT TOKEN STEPS default|auto|REVISION

import { load } from './loopback.mjs';
import { follow } from './steps.mjs';

const { Client, StreamableHTTPClientTransport } = await load('@modelcontextprotocol/client');
const [endpoint, token, steps, mode] = process.argv.slice(2);
const modes = { default: {}, auto: { versionNegotiation: { mode: 'auto' } } };
const client = new Client({ name: 'typescript', version: '1' },
  modes[mode] ?? { versionNegotiation: { mode: { pin: mode } } });
const authProvider = { token: async () => token };
await client.connect(new StreamableHTTPClientTransport(new URL(endpoint), { authProvider }));
await follow(client, (params, options) => client.callTool(params, options), JSON.parse(steps));
