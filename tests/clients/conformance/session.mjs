// A child of the session era on the official SDK (v1): session.mjs NODE_MODULES

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { capabilities, methods, serverInfo } from './fixture.mjs';

const require = createRequire(`${process.argv[2]}/x.js`);
const load = (name) => import(pathToFileURL(require.resolve(`@modelcontextprotocol/sdk/${name}`)).href);
const { Server } = await load('server/index.js');
const { StdioServerTransport } = await load('server/stdio.js');
const types = await load('types.js');

/** Method to the schema by which the SDK knows it. */
const schemas = {
  'tools/list': types.ListToolsRequestSchema,
  'tools/call': types.CallToolRequestSchema,
  'resources/list': types.ListResourcesRequestSchema,
  'resources/templates/list': types.ListResourceTemplatesRequestSchema,
  'resources/read': types.ReadResourceRequestSchema,
  'resources/subscribe': types.SubscribeRequestSchema,
  'resources/unsubscribe': types.UnsubscribeRequestSchema,
  'prompts/list': types.ListPromptsRequestSchema,
  'prompts/get': types.GetPromptRequestSchema,
  'completion/complete': types.CompleteRequestSchema,
};
const server = new Server(serverInfo, { capabilities });
const refuse = (code, message, data) => new types.McpError(code, message, data);
for (const [method, serve] of Object.entries(methods({ dual: false, refuse }))) {
  server.setRequestHandler(schemas[method], ({ params = {} }, extra) => serve({
    progressToken: params._meta?.progressToken,
    notify: (method, params) => extra.sendNotification({ method, params }),
    log: (data) => extra.sendNotification({ method: 'notifications/message', params: { level: 'info', data } }),
    ask: (method, params) => extra.sendRequest({ method, params }, types.ResultSchema),
    changed: (list) => list === 'tools' ? server.sendToolListChanged() : server.sendPromptListChanged(),
  }, params));
}
await server.connect(new StdioServerTransport());
