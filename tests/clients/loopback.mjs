// What the JavaScript clients share: where packages are, and the callback of an OAuth login on this machine.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// CLIENT_MODULES is the node_modules that tests/clients/install has made.
const require = createRequire(`${process.env.CLIENT_MODULES}/x.js`);
export const load = (name) => import(pathToFileURL(require.resolve(name)).href);

/** Listens on a free port; `answered` resolves with the parameters of the first callback. */
export async function callback() {
  let tell;
  const answered = new Promise((resolve) => (tell = resolve));
  const server = createServer((request, response) => {
    response.end('You can close this window.');
    tell(new URL(request.url, 'http://localhost').searchParams);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { url: `http://127.0.0.1:${server.address().port}/callback`, answered, close: () => server.close() };
}

/**
 * An OAuthClientProvider that keeps everything in memory and prints where the browser should go. Where there is a
 * CLIENT_METADATA_URL, the client introduces itself by that document instead of registering.
 */
export class Memory {
  constructor(redirectUrl) {
    this.redirectUrl = redirectUrl;
    this.clientMetadataUrl = process.env.CLIENT_METADATA_URL;
    this.clientMetadata = {
      client_name: 'SDK test',
      redirect_uris: [redirectUrl],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      token_endpoint_auth_method: 'none',
    };
  }
  clientInformation() { return this.client; }
  saveClientInformation(client) { this.client = client; }
  tokens() { return this.saved; }
  saveTokens(tokens) { this.saved = tokens; }
  redirectToAuthorization(url) { console.log(`OPEN ${url}`); }
  saveCodeVerifier(verifier) { this.verifier = verifier; }
  codeVerifier() { return this.verifier; }
}

/** Lists the tools and calls one; with `again` says `LATER`, waits for a line, and calls it again; prints the result. */
export async function work(client, tool, again) {
  const { tools } = await client.listTools();
  const call = async () => (await client.callTool({ name: tool, arguments: {} })).content[0].text;
  const result = { names: tools.map((one) => one.name), text: await call() };
  if (again) {
    console.log('LATER');
    await new Promise((resolve) => process.stdin.once('data', resolve));
    result.again = await call();
  }
  console.log(`RESULT ${JSON.stringify(result)}`);
}
