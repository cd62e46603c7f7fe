// A real browser through the whole login, without scripts in the pages: browser.mjs BROKER LOGIN PASSWORD SCREENSHOTS
// Prints one line for each thing seen, and `DONE` at the end; anything else that happens is an error and exit code 1.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { callback, load } from './loopback.mjs';

const { chromium } = (await load('playwright-core')).default;
const [broker, login, password, screenshots] = process.argv.slice(2);
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
// Chromium's own sandbox does not start as root; the pages are ours.
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
const seen = (what) => console.log(`SEEN ${what}`);
const post = (path, body) => fetch(broker + path, { method: 'POST', body });

async function register(redirect) {
  const metadata = { client_name: 'Browser test', redirect_uris: [redirect], token_endpoint_auth_method: 'none' };
  const answer = await fetch(`${broker}/oauth/register`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(metadata),
  });
  return (await answer.json()).client_id;
}

const verifier = 'a-verifier-of-forty-three-characters-or-more-0123';
const challenge = createHash('sha256').update(verifier).digest('base64url');
const authorize = (client, redirect) => `${broker}/oauth/authorize?` + new URLSearchParams({
  response_type: 'code', client_id: client, redirect_uri: redirect, state: 's', scope: 'forgejo:read forgejo:write',
  code_challenge: challenge, code_challenge_method: 'S256', resource: `${broker}/mcp`,
});

/** The smallest contrast of any text on the page with what is behind it (WCAG 2.2, 1.4.3), and its text. */
const weakest = (page) => page.evaluate(() => {
  const parse = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const channel = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let least = { ratio: 21, text: '' };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    if (!text) continue;
    const element = walker.currentNode.parentElement;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least.ratio) least = { ratio, text };
  }
  return least;
});

/** Looks at a page in both schemes, on a desk and on a phone. */
async function look(page, name) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const [kind, width] of [['desk', 1200], ['phone', 360]]) {
      await page.setViewportSize({ width, height: 800 });
      const { ratio, text } = await weakest(page);
      assert(ratio >= 4.5, `${name} ${colorScheme}: contrast ${ratio} of «${text}»`);
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert(overflow <= 0, `${name} ${kind} scrolls sideways by ${overflow}`);
      await page.screenshot({ path: `${screenshots}/${name}-${kind}-${colorScheme}.png`, fullPage: true });
    }
  }
  const unlabelled = await page.evaluate(() =>
    [...document.querySelectorAll('input:not([type=hidden]), button')].filter((e) =>
      !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length);
  assert.equal(unlabelled, 0, `${name} has controls without a name`);
  seen(`${name} in both schemes, on a desk and on a phone`);
}

async function atForgejo(page) {
  await page.fill('[name=user_name]', login);
  await page.fill('[name=password]', password);
  await page.click('form[action="/user/login"] button');
  // Forgejo before 9 has another button.
  await page.click('button[name=granted][value=true], #authorize-app');
}

const context = await browser.newContext({ javaScriptEnabled: false });
const page = await context.newPage();
await page.goto(`${broker}/`);
await look(page, 'welcome');

let back = await callback();
const client = await register(back.url);
await page.goto(authorize(client, back.url));
assert.match(await page.textContent('main'), /Browser test[\s\S]*a program on this computer[\s\S]*read and change/);
await look(page, 'consent');
await page.click('text=Deny');
assert.equal((await back.answered).get('error'), 'access_denied');
back.close();
seen('denial');

back = await callback();
const second = await register(back.url);
await page.goto(authorize(second, back.url));
await page.check('input[value=read]');
await page.click('button[value=approve]');
await atForgejo(page);
const answer = await back.answered;
assert.equal(answer.get('iss'), broker);
const tokens = await (await post('/oauth/token', new URLSearchParams({
  grant_type: 'authorization_code', client_id: second, redirect_uri: back.url, code: answer.get('code'), code_verifier: verifier,
}))).json();
assert.equal(tokens.scope, 'forgejo:read');
back.close();
seen('login and consent');

await page.goto(`${broker}/account`);
assert.match(await page.textContent('main'), new RegExp(`${login}[\\s\\S]*Browser test[\\s\\S]*Only reads`));
await look(page, 'account');
await page.click('text=Disconnect');
assert.match(await page.textContent('main'), /No client is connected/);
const refused = await fetch(`${broker}/mcp`, { headers: { authorization: `Bearer ${tokens.access_token}` } });
assert.equal(refused.status, 401);
seen('disconnecting');
await page.click('text=Log out');
assert.match(await page.textContent('main'), /Log in with Forgejo/);
await look(page, 'account-login');
await page.click('text=Log in with Forgejo');
await page.waitForURL(`${broker}/account`);
seen('logging in at the account page, with nothing asked by Forgejo');

await page.goto(`${broker}/oauth/authorize?client_id=unknown`);
assert.match(await page.textContent('main'), /not registered here any more/);
await look(page, 'error');

// Another site that frames the consent page gets nothing to show.
const evil = createServer((_, response) => {
  response.setHeader('content-type', 'text/html');
  response.end(`<iframe src="${authorize(second, back.url).replaceAll('&', '&amp;')}"></iframe>`);
});
await new Promise((resolve) => evil.listen(0, '127.0.0.1', resolve));
const framing = await context.newPage();
await framing.goto(`http://localhost:${evil.address().port}/`);
const frame = framing.frames().find((one) => one.parentFrame());
assert(frame && !frame.url().startsWith(broker), `the page was framed: ${frame?.url()}`);
evil.close();
seen('that no page can be framed');

await browser.close();
console.log('DONE');
process.exit(0);
