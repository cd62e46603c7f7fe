// A child of both eras on the official SDK (v2): dual.mjs NODE_MODULES

import { randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { capabilities, methods, serverInfo } from './fixture.mjs';

const require = createRequire(`${process.argv[2]}/x.js`);
const base = new URL('.', pathToFileURL(require.resolve('@modelcontextprotocol/server')));
const sdk = await import(new URL('index.mjs', base));
const { serveStdio } = await import(new URL('stdio.mjs', base));

// One for all connections of this process, as a state outlives the connection on which it was handed out.
const states = sdk.createRequestStateCodec({ key: randomBytes(32) });
const refuse = (code, message, data) => new sdk.ProtocolError(code, message, data);

serveStdio(() => {
  const server = new sdk.Server(serverInfo, { capabilities, requestState: { verify: states.verify } });
  for (const [method, serve] of Object.entries(methods({ dual: true, refuse }))) {
    server.setRequestHandler(method, ({ params = {} }, { mcpReq }) => serve({
      progressToken: (params._meta ?? mcpReq._meta)?.progressToken,
      notify: (method, params) => mcpReq.notify({ method, params }),
      log: (data) => mcpReq.log('info', data),
      ask: (method, params) => mcpReq.send({ method, params }),
      capabilities: mcpReq.envelope?.[sdk.CLIENT_CAPABILITIES_META_KEY] ?? {},
      responses: mcpReq.inputResponses,
      state: mcpReq.requestState(),
      require: async (inputRequests, state) =>
        sdk.inputRequired({ inputRequests, ...(state && { requestState: await states.mint(state) }) }),
      lacks: (requiredCapabilities) => { throw new sdk.MissingRequiredClientCapabilityError({ requiredCapabilities }); },
      changed: (list) => list === 'tools' ? server.sendToolListChanged() : server.sendPromptListChanged(),
    }, params));
  }
  return server;
});
