// oauth4webapi, a client that believes nothing that it has not verified: strict.mjs ENDPOINT
// Discovery of resource and server, registration, a code with PKCE, `iss` and `state`, a call, a code sent twice, a refresh, a
// revocation. Prints `OPEN url` where the person should go, and `RESULT json` at the end; throws at whatever is not to the
// letter of a specification.

import { callback, load } from './loopback.mjs';

const oauth = await load('oauth4webapi');
const endpoint = new URL(process.argv[2]);
const plain = { [oauth.allowInsecureRequests]: true };
const back = await callback();

const initialize = JSON.stringify({
  jsonrpc: '2.0', id: 1, method: 'initialize',
  params: { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: { name: 'strict', version: '1' } },
});
const headers = new Headers({ 'content-type': 'application/json', accept: 'application/json, text/event-stream' });
const call = (token) => oauth.protectedResourceRequest(token, 'POST', endpoint, headers, initialize, plain);
/** What a challenge says to a request that is refused. */
const challenge = async (token) => {
  try {
    return { status: (await call(token)).status };
  } catch (error) {
    if (!(error instanceof oauth.WWWAuthenticateChallengeError)) throw error;
    return { status: error.status, ...error.cause[0].parameters };
  }
};

const resource = await oauth.processResourceDiscoveryResponse(endpoint, await oauth.resourceDiscoveryRequest(endpoint, plain));
const issuer = new URL(resource.authorization_servers[0]);
const discovered = await oauth.discoveryRequest(issuer, { algorithm: 'oauth2', ...plain });
const as = await oauth.processDiscoveryResponse(issuer, discovered);
const metadata = {
  client_name: 'Strict', redirect_uris: [back.url], token_endpoint_auth_method: 'none',
  grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'],
};
const registered = await oauth.dynamicClientRegistrationRequest(as, metadata, plain);
const client = await oauth.processDynamicClientRegistrationResponse(registered);

const verifier = oauth.generateRandomCodeVerifier();
const state = oauth.generateRandomState();
const url = new URL(as.authorization_endpoint);
url.search = new URLSearchParams({
  client_id: client.client_id, redirect_uri: back.url, response_type: 'code', state, resource: resource.resource,
  scope: resource.scopes_supported.join(' '), code_challenge_method: 'S256',
  code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
}).toString();
console.log(`OPEN ${url}`);
const answer = oauth.validateAuthResponse(as, client, await back.answered, state);
const options = { additionalParameters: { resource: resource.resource }, ...plain };
const redeem = async () => {
  const asked = await oauth.authorizationCodeGrantRequest(as, client, oauth.None(), answer, back.url, verifier, options);
  return oauth.processAuthorizationCodeResponse(as, client, asked);
};
const first = await redeem();
const called = (await call(first.access_token)).status;
const twice = await redeem().then(() => 'accepted', (error) => error.error);
const after = (await call(first.access_token)).status;
const renewed = await oauth.refreshTokenGrantRequest(as, client, oauth.None(), first.refresh_token, options);
const second = await oauth.processRefreshTokenResponse(as, client, renewed);
const refreshed = (await call(second.access_token)).status;
await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, oauth.None(), second.refresh_token, plain));
console.log(`RESULT ${JSON.stringify({
  iss: as.authorization_response_iss_parameter_supported, called, twice, after, refreshed,
  rotated: second.refresh_token !== first.refresh_token, scope: first.scope,
  guessed: await challenge('guessed'), revoked: await challenge(second.access_token),
})}`);
back.close();
process.exit(0);
