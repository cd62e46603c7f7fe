// A child in JavaScript, as small as MCP allows: node compiles while it runs, which a unit must not forbid.
import { createInterface } from 'node:readline';

const answers = {
  initialize: ({ protocolVersion }) => ({
    protocolVersion, capabilities: { tools: {} }, serverInfo: { name: 'box', version: '1' },
  }),
  ping: () => ({}),
  'tools/list': () => ({ tools: [{ name: 'whoami', inputSchema: { type: 'object' } }] }),
  'tools/call': async () => {
    const to = new URL('/api/v1/user', process.env.FORGEJO_URL);
    const answer = await fetch(to, { headers: { authorization: `token ${process.env.FORGEJO_ACCESS_TOKEN}` } });
    return { content: [{ type: 'text', text: `${(await answer.json()).login} by node` }] };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, method, params } = JSON.parse(line);
  if (id !== undefined) {
    console.log(JSON.stringify({ jsonrpc: '2.0', id, result: await answers[method](params) }));
  }
}
