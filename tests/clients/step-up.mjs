// A client of the TypeScript SDK (v2; v1 tries its refresh token instead, and gives up) that was allowed to read only and asks for more: step-up.mjs ENDPOINT READS WRITES
// Connects, calls the tool READS, calls WRITES, is refused, lets the SDK ask for the missing scope, and calls it again, on the
// transport that it has: with a new login and the session of the old one.
// Prints `OPEN url` whenever the person should go somewhere, and `RESULT json` at the end.

import { Memory, callback, load } from './loopback.mjs';

const { Client, StreamableHTTPClientTransport, UnauthorizedError } = await load('@modelcontextprotocol/client');
const [endpoint, reads, writes] = process.argv.slice(2);
const back = [await callback(), await callback()];
const authProvider = new Memory(back[0].url);
authProvider.clientMetadata.redirect_uris = back.map((one) => one.url);
const connect = async () => {
  const transport = new StreamableHTTPClientTransport(new URL(endpoint), { authProvider });
  const client = new Client({ name: 'step-up', version: '1' });
  const needsLogin = await client.connect(transport).then(() => false, (error) => {
    if (error instanceof UnauthorizedError) return true;
    throw error;
  });
  return { client, transport, needsLogin };
};
const call = async (client, name) => (await client.callTool({ name, arguments: { text: 'x' } })).content[0].text;

const stranger = await connect();
if (!stranger.needsLogin) throw new Error('connected without a login');
await stranger.transport.finishAuth(await back[0].answered);
const reader = await connect();
const result = { read: await call(reader.client, reads) };
authProvider.redirectUrl = back[1].url;
result.refused = await call(reader.client, writes).then(() => false, (error) => error instanceof UnauthorizedError);
const session = reader.transport.sessionId;
await reader.transport.finishAuth(await back[1].answered);
result.written = await call(reader.client, writes);
result.sameSession = session !== undefined && reader.transport.sessionId === session;
result.scope = authProvider.tokens().scope;
console.log(`RESULT ${JSON.stringify(result)}`);
process.exit(0);
