// A real browser through the whole login, without scripts in the pages: browser.mjs BROKER LOGIN PASSWORD SCREENSHOTS
// Prints one line for each thing seen, and `DONE` at the end; anything else that happens is an error and exit code 1.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { callback, load } from './loopback.mjs';

const axe = readFileSync(join(process.env.CLIENT_MODULES, 'axe-core/axe.min.js'), 'utf8');
const { chromium } = (await load('playwright-core')).default;
const [broker, login, password, screenshots] = process.argv.slice(2);
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
// Chromium's own sandbox does not start as root; the pages are ours.
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
const seen = (what) => console.log(`SEEN ${what}`);
const post = (path, body) => fetch(broker + path, { method: 'POST', body });

async function register(redirect, name = 'Browser test') {
  const metadata = { client_name: name, redirect_uris: [redirect], token_endpoint_auth_method: 'none' };
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

/** The smallest contrast of a control's border with what is around it (WCAG 2.2, 1.4.11), and the control's text. */
const faintest = (page) => page.evaluate(() => {
  const parse = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const channel = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  let least = { ratio: 21, text: '' };
  for (const control of document.querySelectorAll('.button')) {
    let around = [255, 255, 255];
    for (let e = control.parentElement; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) { around = colour; break; }
    }
    const [a, b] = [luminance(parse(getComputedStyle(control).borderTopColor)), luminance(around)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least.ratio) least = { ratio, text: control.textContent };
  }
  return least;
});

/** Nothing reaches out of the window, or out of the column of the text. */
async function fits(page, name) {
  const out = await page.evaluate(() => {
    const column = document.querySelector('main').getBoundingClientRect();
    const wide = [...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > column.right + 1);
    return { sideways: document.documentElement.scrollWidth - innerWidth, wide: wide.map((e) => e.tagName) };
  });
  assert.deepEqual(out, { sideways: out.sideways, wide: [] }, `${name} reaches out of its column`);
  assert(out.sideways <= 0, `${name} scrolls sideways by ${out.sideways}`);
}

/** What axe-core finds by the rules of WCAG 2.2 and its own best practices: nothing. It needs a browser that runs scripts. */
async function accessible(page, name, colorScheme) {
  const scripted = await browser.newContext({ colorScheme, viewport: page.viewportSize() });
  await scripted.addCookies(await page.context().cookies());
  const same = await scripted.newPage();
  await same.goto(page.url());
  assert.equal(await same.title(), await page.title());
  await same.evaluate(axe);
  const { violations } = await same.evaluate(() => globalThis.axe.run(document, {
    runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
  }));
  await scripted.close();
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(' ')}`);
  assert.deepEqual(found, [], `${name}: axe-core`);
}

/** All that can be done is reached with the tab key, in the order of the text, and seen when it is. */
async function byKeyboard(page, name) {
  const all = await page.evaluate(() => [...document.querySelectorAll('a[href], button, summary, input:not([type=hidden])')]
    .filter((e) => e.type !== 'radio' || e.checked).length);
  const reached = [];
  for (let n = 0; n < all; n += 1) {
    await page.keyboard.press('Tab');
    reached.push(await page.evaluate(() => {
      const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
      const { top, left } = document.activeElement.getBoundingClientRect();
      return { is: document.activeElement.tagName, seen: outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2, top: top + scrollY, left };
    }));
  }
  assert(reached.every((one) => one.is !== 'BODY' && one.seen), `${name}: ${JSON.stringify(reached)}`);
  const sorted = [...reached].sort((a, b) => (Math.abs(a.top - b.top) < 24 ? a.left - b.left : a.top - b.top));
  assert.deepEqual(reached, sorted, `${name}: the order of the tab key`);
  seen(`${name} by keyboard`);
}

/** Looks at a page in both schemes, on a desk and on a phone. */
async function look(page, name) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const [kind, width] of [['desk', 1200], ['phone', 360]]) {
      await page.setViewportSize({ width, height: 800 });
      const { ratio, text } = await weakest(page);
      assert(ratio >= 4.5, `${name} ${colorScheme}: contrast ${ratio} of «${text}»`);
      const line = await faintest(page);
      assert(line.ratio >= 3, `${name} ${colorScheme}: the border of «${line.text}» has contrast ${line.ratio}`);
      await fits(page, `${name} ${kind}`);
      await accessible(page, `${name} ${kind} ${colorScheme}`, colorScheme);
      await page.screenshot({ path: `${screenshots}/${name}-${kind}-${colorScheme}.png`, fullPage: true });
    }
  }
  const unlabelled = await page.evaluate(() =>
    [...document.querySelectorAll('input:not([type=hidden]), button')].filter((e) =>
      !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).length);
  assert.equal(unlabelled, 0, `${name} has controls without a name`);
  seen(`${name} in both schemes, on a desk and on a phone`);
}

/** What the client is told, or an error that says where the person got stuck instead. */
async function told(answered, page) {
  let timer;
  const late = new Promise((_, no) => {
    timer = setTimeout(() => page.textContent('body').then((text) => no(new Error(`no answer, but ${page.url()}: ${text}`)), no), 20000);
  });
  return Promise.race([answered, late]).finally(() => clearTimeout(timer));
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
await page.goto(`${broker}/`);
await byKeyboard(page, 'welcome');
const logo = await page.evaluate(() => document.querySelector('img').naturalWidth);
assert.equal(logo, 60, 'the policy of the page lets the logo in');

let back = await callback();
const client = await register(back.url);
await page.goto(authorize(client, back.url));
assert.match(await page.textContent('main'), /Browser test[\s\S]*a program on this computer[\s\S]*read and change/);
await look(page, 'consent');
await page.goto(authorize(client, back.url));
await byKeyboard(page, 'consent');
await page.click('text=Deny');
assert.equal((await back.answered).get('error'), 'access_denied');
back.close();
seen('denial');

back = await callback();
const second = await register(back.url);
await page.goto(authorize(second, back.url));
assert(await page.isChecked('input[value=read]'), 'writing is chosen by the person');
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
await page.goto(`${broker}/account`);
await byKeyboard(page, 'account');
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
assert.match(await page.textContent('main'), /not registered here any more[\s\S]*Reference [0-9a-f]{8}/);
await look(page, 'error');
await page.click('text=Start page');
await page.waitForURL(`${broker}/`);
seen('the way on from an error');

// Two requests at once, answered in the other order.
const tabs = [];
for (const name of ['First tab', 'Second tab']) {
  const answer = await callback();
  const tab = await context.newPage();
  await tab.goto(authorize(await register(answer.url, name), answer.url));
  tabs.unshift({ answer, tab });
}
for (const { answer, tab } of tabs) {
  // A page that nobody sees is not drawn, so that nothing on it can be clicked.
  await tab.bringToFront();
  await tab.click('button[value=approve]');
  assert((await told(answer.answered, tab)).get('code'), 'each client gets its code');
  answer.close();
}
seen('two requests in one browser');

// A window that keeps no cookies.
const embedding = await browser.newContext({ javaScriptEnabled: false });
const embedded = await embedding.newPage();
back = await callback();
await embedded.goto(authorize(await register(back.url, 'Embedded'), back.url));
await embedding.clearCookies();
await embedded.bringToFront();
await embedded.click('button[value=approve]');
assert.match(await embedded.textContent('h1'), /keeps no cookies/);
await embedded.setViewportSize({ width: 360, height: 800 });
await fits(embedded, 'no-cookies');
await embedded.screenshot({ path: `${screenshots}/no-cookies.png`, fullPage: true });
await page.goto(await embedded.getAttribute('main a.button', 'href'));
await page.bringToFront();
await page.click('button[value=approve]');
assert((await told(back.answered, page)).get('code'), 'the request goes on in a browser that keeps them');
back.close();
seen('the way out of a window without cookies');

// Names that would reach out of their place.
await page.setViewportSize({ width: 390, height: 800 });
const marks = String.fromCodePoint(...Array.from({ length: 64 }, (_, n) => 0x300 + n));
for (const name of ['\u{ff37}'.repeat(80), '\u{fdfd}'.repeat(80), '\u{12031}'.repeat(80), 'W'.repeat(80), `Z${marks}y`.repeat(20)]) {
  const strange = await register('https://client.example/callback', name);
  await page.goto(authorize(strange, 'https://client.example/callback'));
  await fits(page, `a name of ${name.slice(0, 2)}`);
  const boxes = await page.evaluate(() => [...document.querySelectorAll('.name')].map((e) => getComputedStyle(e).overflow));
  assert.deepEqual(boxes, ['clip', 'clip'], 'what is in a name stays in its box');
}
await page.screenshot({ path: `${screenshots}/stacked-marks.png`, fullPage: true });
seen('that no name breaks the page');

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
