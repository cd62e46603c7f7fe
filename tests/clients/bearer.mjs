// For programs in Node that cannot be told a token: NODE_OPTIONS="--import /path/bearer.mjs" BEARER=TOKEN
// adds it to every request that they send, by whichever of Node's clients.

import { subscribe } from 'node:diagnostics_channel';

const value = `Bearer ${process.env.BEARER}`;
subscribe('undici:request:create', ({ request }) => request.addHeader('authorization', value));
subscribe('http.client.request.created', ({ request }) => request.setHeader('authorization', value));
