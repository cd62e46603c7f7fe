// What a client of the TypeScript SDKs does, step by step, and what it says of each: see tests/e2e/eras.rs.

import { createInterface } from 'node:readline';

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
/** Lets the test do something, and waits until it has. */
const pause = async (what) => {
  console.log(`PAUSE ${what}`);
  await lines.next();
};

const all = async (list, of) => {
  const names = [];
  let cursor;
  do {
    const page = await list(cursor ? { cursor } : undefined);
    names.push(...page[of].map((one) => one.name));
    cursor = page.nextCursor;
  } while (cursor);
  return names;
};

/** Takes `steps` with `client`; `call(params, options)` calls a tool. Prints `RESULT` and a list with what each came to. */
export async function follow(client, call, steps) {
  const act = {
    list: async () => ({ names: await all((params) => client.listTools(params), 'tools') }),
    call: async ({ name, arguments: given }) => {
      let progress = 0;
      const { content, isError = false } = await call({ name, arguments: given }, { onprogress: () => (progress += 1) });
      return { text: content[0].text.slice(0, 1000), length: content[0].text.length, isError, progress };
    },
    read: async ({ uri }) => ({ text: (await client.readResource({ uri })).contents[0].text }),
    cancel: async ({ name, arguments: given }) => {
      const controller = new AbortController();
      const calling = call({ name, arguments: given }, { signal: controller.signal });
      const outcome = calling.then(() => ({ cancelled: false }), () => ({ cancelled: true }));
      await pause('in flight');
      controller.abort();
      return outcome;
    },
    pause: async ({ what }) => pause(what),
  };
  const came = [];
  for (const step of steps) {
    came.push(await act[step.do](step).catch((error) => ({ error: error.message })));
  }
  console.log(`RESULT ${JSON.stringify(came)}`);
  process.exit(0);
}
