// For the conformance suite, which reads some streams for a second or two and takes what has not come by then for
// missing: on a busy machine that is soon over. What it waits for is as ever, and for how long is ten times as much.

const { setTimeout: soon } = globalThis;
globalThis.setTimeout = (then, delay, ...rest) => soon(then, delay >= 500 && delay <= 2000 ? delay * 10 : delay, ...rest);
