// What the conformance suite wants of a server's tools, resources and prompts (its scenarios' own descriptions say it), once
// for both eras. session.mjs and dual.mjs are the children that serve it, each on its SDK.
//
// `call` is what an SDK knows of the request at hand:
//   progressToken   as the client sent it, or undefined
//   notify(method, params), log(data)   ahead of the answer
//   ask(method, params)                 a request to the client: the session era's way
//   capabilities, responses, state      what the client can, has answered so far and carries along: the stateless era's way
//   require(requests, state)            the answer that asks for more
//   lacks(capabilities)                 the error of a client that cannot do what is needed
//   changed(list)                       'tools' or 'prompts' are different now

import { setTimeout as pause } from 'node:timers/promises';

const PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==';
const SILENCE = 'UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=';
/** Between two messages of one call, so that they are seen to be apart. */
const STEP = 50;

const text = (text) => ({ content: [{ type: 'text', text }] });
const image = { type: 'image', data: PIXEL, mimeType: 'image/png' };
const object = (properties = {}, required = Object.keys(properties)) => ({ type: 'object', properties, required });
const string = { type: 'string' };

const elicitation = (message, properties, required) =>
  ({ method: 'elicitation/create', params: { mode: 'form', message, requestedSchema: object(properties, required) } });
const sampling = (prompt, maxTokens = 100) => ({
  method: 'sampling/createMessage',
  params: { messages: [{ role: 'user', content: { type: 'text', text: prompt } }], maxTokens },
});
const roots = { method: 'roots/list', params: {} };

/** The content of a form that was filled in, else undefined. */
const filled = (call, key) => {
  const response = call.responses?.[key];
  return response?.action === 'accept' && typeof response.content === 'object' ? response.content : undefined;
};

/** Asks until every one of `requests` is answered; then `done`. */
const onceAnswered = (requests, done, state) => (call) => {
  const answered = Object.entries(requests).every(([key, { method }]) =>
    method === 'elicitation/create' ? filled(call, key) : typeof call.responses?.[key] === 'object');
  return answered ? done(call) : call.require(requests, state);
};

/** In the session era: a form put to the user, and what came of it. */
const form = (message, properties, required = []) => async (call) => {
  const { action, content } = await call.ask(...Object.values(elicitation(message, properties, required)));
  return text(`Elicitation completed: action=${action}, content=${JSON.stringify(content ?? {})}`);
};
const options = (...of) => of.map(([value, title]) => ({ const: value, title }));

const name = elicitation('What is your name?', { name: string });
const confirm = elicitation('Please confirm', { ok: { type: 'boolean' } });

/** Name: what it does, in words, and its arguments. Those without a function but with `session` are that era's alone. */
const both = {
  test_simple_text: [() => text('This is a simple text response for testing.')],
  test_image_content: [() => ({ content: [image] })],
  test_audio_content: [() => ({ content: [{ type: 'audio', data: SILENCE, mimeType: 'audio/wav' }] })],
  test_embedded_resource: [() => ({
    content: [{ type: 'resource', resource: { uri: 'test://embedded', mimeType: 'text/plain', text: 'Embedded.' } }],
  })],
  test_multiple_content_types: [() => ({
    content: [{ type: 'text', text: 'Several:' }, image,
      { type: 'resource', resource: { uri: 'test://mixed', mimeType: 'application/json', text: '{"value":123}' } }],
  })],
  test_tool_with_logging: [async (call) => {
    for (const line of ['started', 'goes on', 'ends']) {
      await call.log(`It ${line}`);
      await pause(STEP);
    }
    return text('Logged three lines.');
  }],
  test_error_handling: [() => ({ isError: true, ...text('This tool fails, as it should.') })],
  test_tool_with_progress: [async (call) => {
    for (const progress of [0, 50, 100]) {
      const { progressToken } = call;
      if (progressToken !== undefined) await call.notify('notifications/progress', { progressToken, progress, total: 100 });
      await pause(STEP);
    }
    return text('Done.');
  }],
  // Its schema is what is tested; nobody calls it.
  json_schema_2020_12_tool: [() => text('Well formed.'), {
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    type: 'object',
    $defs: { address: { $anchor: 'addressDef', type: 'object', properties: { street: string, city: string } } },
    properties: { name: string, address: { $ref: '#/$defs/address' }, contactMethod: { enum: ['phone', 'email'] },
      phone: string, email: string },
    allOf: [{ anyOf: [{ required: ['phone'] }, { required: ['email'] }] }],
    if: { properties: { contactMethod: { const: 'phone' } }, required: ['contactMethod'] },
    then: { required: ['phone'] },
    else: { required: ['email'] },
    additionalProperties: false,
  }],
  // Not of the suite: an answer that fills many buffers, after some silence.
  big: [async (_, { bytes, seconds = 0 }) => {
    await pause(seconds * 1000);
    return text('x'.repeat(bytes));
  }, object({ bytes: { type: 'integer' }, seconds: { type: 'integer' } }, ['bytes'])],
  // Nor this: clients without a session repeat its argument in a header.
  regional: [(_, { region }) => text(region), object({ region: { ...string, 'x-mcp-header': 'Region' } })],
  test_logging_tool: [async (call) => { await call.log('A line.'); return text('Logged.'); }],
  test_trigger_tool_change: [async (call) => { await call.changed('tools'); return text('Changed.'); }],
  test_trigger_prompt_change: [async (call) => { await call.changed('prompts'); return text('Changed.'); }],
};

const session = {
  test_sampling: [async (call, { prompt }) => {
    const answer = await call.ask(...Object.values(sampling(prompt)));
    return text(`LLM response: ${answer.content.text}`);
  }, object({ prompt: string })],
  test_elicitation: [(call, { message }) => form(message, { username: string, email: string }, ['username', 'email'])(call),
    object({ message: string })],
  test_elicitation_sep1034_defaults: [form('Please check', {
    name: { ...string, default: 'John Doe' },
    age: { type: 'integer', default: 30 },
    score: { type: 'number', default: 95.5 },
    status: { ...string, enum: ['active', 'inactive', 'pending'], default: 'active' },
    verified: { type: 'boolean', default: true },
  })],
  test_elicitation_sep1330_enums: [form('Please choose', {
    untitledSingle: { ...string, enum: ['option1', 'option2', 'option3'] },
    titledSingle: { ...string, oneOf: options(['value1', 'First Option'], ['value2', 'Second Option']) },
    legacyEnum: { ...string, enum: ['opt1', 'opt2'], enumNames: ['Option One', 'Option Two'] },
    untitledMulti: { type: 'array', items: { ...string, enum: ['option1', 'option2', 'option3'] } },
    titledMulti: { type: 'array', items: { anyOf: options(['value1', 'First Choice'], ['value2', 'Second Choice']) } },
  })],
};

const stateless = {
  test_missing_capability: [(call) => call.capabilities.sampling ? text('Sampling it is.') : call.lacks({ sampling: {} })],
  test_streaming_elicitation: [onceAnswered({ confirm }, () => text('Confirmed.'))],
  test_input_required_result_elicitation:
    [onceAnswered({ user_name: name }, (call) => text(`Hello, ${filled(call, 'user_name').name}!`))],
  test_input_required_result_sampling:
    [onceAnswered({ capital_question: sampling('What is the capital of France?') },
      (call) => text(call.responses.capital_question.content.text))],
  test_input_required_result_list_roots:
    [onceAnswered({ client_roots: roots }, (call) => text(call.responses.client_roots.roots.map(({ uri }) => uri).join()))],
  test_input_required_result_request_state:
    [onceAnswered({ confirm }, (call) => text(call.state === 'asked' ? 'state-ok' : 'no state'), 'asked')],
  test_input_required_result_tampered_state: [onceAnswered({ confirm }, () => text('Untouched.'), 'asked')],
  test_input_required_result_multiple_inputs:
    [onceAnswered({ user_name: name, greeting: sampling('A greeting, please', 50), client_roots: roots },
      () => text('All three.'), 'asked')],
  test_input_required_result_multi_round: [(call) => {
    if (call.state === undefined) return call.require({ step1: name }, 'first');
    const colour = { step2: elicitation('What is your favourite colour?', { color: string }) };
    return call.state === 'first' && filled(call, 'step1') ? call.require(colour, 'second') : text('Two rounds.');
  }],
  test_input_required_result_capabilities: [(call) => {
    const wanted = {};
    if (call.capabilities.elicitation) wanted.user_name = name;
    if (call.capabilities.sampling) wanted.greeting = sampling('A greeting, please');
    return onceAnswered(wanted, () => text('Only what the client can do.'))(call);
  }],
};

const tools = (dual) => ({ ...both, ...session, ...(dual ? stateless : {}) });

const resources = {
  'test://static-text': { mimeType: 'text/plain', text: 'This is the content of the static text resource.' },
  'test://static-binary': { mimeType: 'image/png', blob: PIXEL },
  'test://watched-resource': { mimeType: 'text/plain', text: 'Watched.' },
};

const say = (...contents) => ({ messages: contents.map((content) => ({ role: 'user', content })) });
const prompts = (dual) => ({
  test_simple_prompt: [[], () => say({ type: 'text', text: 'This is a simple prompt for testing.' })],
  test_prompt_with_arguments: [['arg1', 'arg2'],
    (_, { arg1, arg2 }) => say({ type: 'text', text: `Prompt with arguments: arg1='${arg1}', arg2='${arg2}'` })],
  test_prompt_with_embedded_resource: [['resourceUri'],
    (_, { resourceUri: uri }) => say({ type: 'resource', resource: { uri, mimeType: 'text/plain', text: 'Embedded.' } })],
  test_prompt_with_image: [[], () => say(image, { type: 'text', text: 'Please look at it.' })],
  ...(dual && {
    test_input_required_result_prompt: [[], onceAnswered(
      { user_context: elicitation('Which context?', { context: string }) },
      (call) => say({ type: 'text', text: filled(call, 'user_context').context }))],
  }),
});

export const serverInfo = { name: 'conformance-fixture', version: '1.0.0' };
export const capabilities = {
  completions: {}, logging: {}, prompts: { listChanged: true }, resources: { subscribe: true, listChanged: true },
  tools: { listChanged: true },
};

/** The methods that one child serves, by name; `refuse(code, message, data)` makes its SDK's error. */
export function methods({ dual, refuse }) {
  const [myTools, myPrompts] = [tools(dual), prompts(dual)];
  const found = (of, key) => of[key] ?? (() => { throw refuse(-32602, `there is no ${key}`); })();
  return {
    'tools/list': () => ({
      tools: Object.entries(myTools).map(([name, [, inputSchema = object()]]) =>
        ({ name, description: name.replaceAll('_', ' '), inputSchema })),
    }),
    'tools/call': (call, { name, arguments: given = {} }) => found(myTools, name)[0](call, given),
    'resources/list': () => ({
      resources: Object.entries(resources).map(([uri, { mimeType }]) =>
        ({ uri, name: uri.slice('test://'.length), description: `The resource ${uri}`, mimeType })),
    }),
    'resources/templates/list': () => ({
      resourceTemplates: [{ uriTemplate: 'test://template/{id}/data', name: 'template', mimeType: 'application/json' }],
    }),
    'resources/read': (_, { uri }) => {
      const [, id] = /^test:\/\/template\/(.+)\/data$/.exec(uri) ?? [];
      if (id) return { contents: [{ uri, mimeType: 'application/json', text: JSON.stringify({ id, template: true }) }] };
      if (resources[uri]) return { contents: [{ uri, ...resources[uri] }] };
      throw refuse(dual ? -32602 : -32002, 'Resource not found', { uri });
    },
    'resources/subscribe': () => ({}),
    'resources/unsubscribe': () => ({}),
    'prompts/list': () => ({
      prompts: Object.entries(myPrompts).map(([name, [given]]) =>
        ({ name, description: name.replaceAll('_', ' '), arguments: given.map((name) => ({ name, required: true })) })),
    }),
    'prompts/get': (call, { name, arguments: given = {} }) => found(myPrompts, name)[1](call, given),
    'completion/complete': () => ({ completion: { values: ['paris', 'park'], total: 2, hasMore: false } }),
  };
}
