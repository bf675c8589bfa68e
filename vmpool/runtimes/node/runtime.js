'use strict';
// The Node.js runtime of Starling: reads calls of one function from file descriptor 3 and answers on 4.
//
// It starts before any code is known (the pool keeps it warm), says ready, learns handler and environment
// from the init frame, loads the code, and then answers one call at a time. Frames are those of vmpool/framed.
//
// Both are used synchronously: between calls nothing of the function runs, as under a
// frozen instance, and a call costs one read and one write without a turn of the event loop. While a handler waits
// for its promises the event loop runs as usual.

const fs = require('fs');
const path = require('path');

const CALLS = 3, ANSWERS = 4;
const PART = 512 << 10;
const INIT = 1, CALL = 2, MORE = 3;
const READY = 15, INIT_OK = 16, INIT_ERROR = 17, HEAD = 18, CHUNK = 19, END = 20, ANSWER = 21;
const BINARY = /^(image\/|audio\/|video\/|application\/(octet-stream|zip|pdf))/;
const STREAM = Symbol.for('aws.lambda.runtime.handler.streaming');

let buffer = Buffer.allocUnsafeSlow(16 << 10);
let filled = 0;
let current = null; // the call in flight
let setup = null;
let handler = null;
let rehearsed = null; // while rehearsing: called at the end of a call

function read(need) {
  if (buffer.length < need) {
    const larger = Buffer.allocUnsafeSlow(need);
    buffer.copy(larger, 0, 0, filled);
    buffer = larger;
  }
  while (filled < need) {
    const n = fs.readSync(CALLS, buffer, filled, buffer.length - filled, null);
    if (n === 0) process.reallyExit(0); // the host closed the channel: the instance is over
    filled += n;
  }
}

function drop(used) {
  if (filled > used) buffer.copyWithin(0, used, filled);
  filled -= used;
}

function write(b) {
  if (rehearsed) return;
  let at = 0;
  while (at < b.length) at += fs.writeSync(ANSWERS, b, at, b.length - at);
}

function frame() {
  read(5);
  const length = buffer.readUInt32LE(0);
  read(4 + length);
  return { kind: buffer[4], length: length - 1 };
}

function begin(kind, length, extra) {
  const b = Buffer.allocUnsafe(5 + length);
  b.writeUInt32LE(length + 1 + (extra || 0), 0);
  b[4] = kind;
  return b;
}

function last(kind, request, failed, word, body) {
  const w = word.length > 255 ? word.slice(0, 255) : word;
  const b = begin(kind, 18 + w.length + body.length);
  request.copy(b, 5);
  b[21] = failed;
  b[22] = w.length;
  b.latin1Write(w, 23);
  body.copy(b, 23 + w.length);
  write(b);
}

const EMPTY = Buffer.alloc(0);

function head(request, streaming, size, content) {
  const b = begin(HEAD, 26 + content.length);
  request.copy(b, 5);
  b[21] = streaming;
  b.writeBigUInt64LE(BigInt(size), 22);
  b[30] = content.length;
  b.latin1Write(content, 31);
  write(b);
}

function chunks(request, body) {
  for (let at = 0; at < body.length; at += PART) {
    const part = body.subarray(at, at + PART);
    const b = begin(CHUNK, 16 + part.length);
    request.copy(b, 5);
    part.copy(b, 21);
    write(b);
  }
}

function send(call, content, body) {
  if (call.done) return;
  call.done = true;
  if (body.length < PART) {
    last(ANSWER, call.request, 0, content, body);
  } else {
    head(call.request, 0, body.length, content);
    chunks(call.request, body);
    last(END, call.request, 0, '', EMPTY);
  }
  ended(call);
}

function describe(error) {
  if (error instanceof Error || (error && typeof error === 'object' && 'message' in error)) {
    return { errorType: String(error.name || 'Error'), errorMessage: String(error.message), trace: String(error.stack || '').split('\n') };
  }
  return { errorType: typeof error === 'string' ? 'string' : 'Error', errorMessage: String(error), trace: [] };
}

function fail(call, error, kind, ends) {
  if (call.done) return;
  call.done = true;
  const doc = describe(error);
  if (kind) doc.errorType = kind;
  last(END, call.request, ends ? 2 : 1, doc.errorType, Buffer.from(JSON.stringify(doc)));
  ended(call);
}

function answer(call, result) {
  if (call.done) return;
  if (Buffer.isBuffer(result) || result instanceof Uint8Array) {
    return send(call, 'application/octet-stream', Buffer.from(result.buffer, result.byteOffset, result.byteLength));
  }
  if (result && typeof result === 'object' && typeof result[Symbol.asyncIterator] === 'function') return pump(call, result);
  if (result && typeof result === 'object' && typeof result.next === 'function' && typeof result[Symbol.iterator] === 'function') return pump(call, result);
  let text;
  try {
    text = JSON.stringify(result === undefined ? null : result);
    if (text === undefined) throw new TypeError(`${typeof result} has no JSON form`);
  } catch (e) {
    e.message = `Unable to stringify response body: ${e.message}`;
    return fail(call, e, 'Runtime.MarshalError');
  }
  send(call, 'application/json', Buffer.from(text));
}

// A Sender turns what a function streams into frames; it is what a streaming handler writes to.
class Sender {
  constructor(call) { this.call = call; this.content = ''; this.started = false; }
  start(chunk) {
    if (this.started) return;
    this.started = true;
    this.call.streaming = true;
    head(this.call.request, 1, 0, this.content || (typeof chunk === 'string' ? 'text/plain; charset=utf-8' : 'application/octet-stream'));
  }
  push(chunk) {
    if (this.call.done) throw new Error('write after end');
    this.start(chunk);
    chunks(this.call.request, typeof chunk === 'string' ? Buffer.from(chunk) : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength));
  }
  end() {
    if (this.call.done) return;
    this.start(EMPTY);
    this.call.done = true;
    last(END, this.call.request, 0, '', EMPTY);
    ended(this.call);
  }
}

async function pump(call, source) {
  const out = new Sender(call);
  try {
    for await (const chunk of source) out.push(chunk);
    out.end();
  } catch (e) {
    fail(call, e);
  }
}

// responseStream is the writable that awslambda.streamifyResponse hands to a handler.
function responseStream(call) {
  const { Writable } = require('stream');
  const out = new Sender(call);
  const stream = new Writable({
    decodeStrings: false,
    write(chunk, _encoding, done) {
      try { out.push(chunk); done(); } catch (e) { done(e); }
    },
    final(done) { out.end(); done(); },
  });
  stream.setContentType = (type) => { out.content = String(type).replace(/[^\x20-\x7e]/g, '').slice(0, 200); };
  stream.on('error', (e) => fail(call, e));
  return stream;
}

globalThis.awslambda = {
  streamifyResponse(f, options) { f[STREAM] = 'response'; f.streamOptions = options || {}; return f; },
  HttpResponseStream: {
    from(stream, metadata) {
      const headers = (metadata && metadata.headers) || {};
      for (const k of Object.keys(headers)) if (k.toLowerCase() === 'content-type') stream.setContentType(headers[k]);
      return stream;
    },
  },
};

class Context {
  constructor(call, remaining, trace, client, content) {
    this._call = call;
    this._deadline = performance.now() + remaining;
    this._client = client;
    this.trace = trace;
    this.contentType = content;
    this.callbackWaitsForEmptyEventLoop = true;
    this.functionName = setup.function;
    this.functionVersion = setup.version;
    this.invokedFunctionArn = setup.arn;
    this.memoryLimitInMB = String(setup.memoryMiB);
    this.logGroupName = setup.logGroup;
    this.logStreamName = setup.logStream;
  }
  get awsRequestId() {
    const h = this._call.request.toString('hex');
    return `${h.slice(0, 8)}-${h.slice(8, 12)}-${h.slice(12, 16)}-${h.slice(16, 20)}-${h.slice(20)}`;
  }
  get clientContext() { return this._client ? JSON.parse(Buffer.from(this._client, 'base64').toString()) : undefined; }
  get identity() { return undefined; }
  getRemainingTimeInMillis() { return Math.max(0, Math.floor(this._deadline - performance.now())); }
  done(error, result) { if (error) fail(this._call, error); else answer(this._call, result); }
  succeed(result) { answer(this._call, result); }
  fail(error) { fail(this._call, error); }
}

function eventOf(payload, content) {
  if (BINARY.test(content)) return payload;
  if (payload.length === 0) return {};
  try {
    return JSON.parse(payload.toString());
  } catch (e) {
    if (content !== '' && !content.includes('json')) return payload;
    throw e;
  }
}

function run(call, event, context) {
  if (handler[STREAM]) {
    const stream = responseStream(call);
    Promise.resolve(handler(event, stream, context)).then(() => { if (!stream.writableEnded) stream.end(); }, (e) => fail(call, e));
    return;
  }
  const callback = (error, result) => {
    const finish = () => { if (error !== undefined && error !== null) fail(call, error); else answer(call, result); };
    if (context.callbackWaitsForEmptyEventLoop) call.whenEmpty = finish; else finish();
  };
  const result = handler(event, context, callback);
  if (result && typeof result.then === 'function') result.then((r) => answer(call, r), (e) => fail(call, e));
  else if (result !== undefined) answer(call, result);
  else call.silent = true; // a callback may still come; with an empty event loop none can
}

function serve() {
  for (;;) {
    const { kind, length } = frame();
    if (kind !== CALL) process.reallyExit(70);
    const request = Buffer.allocUnsafe(16);
    buffer.copy(request, 0, 5, 21);
    const remaining = buffer.readUInt32LE(21), total = buffer.readUInt32LE(25);
    const ntrace = buffer.readUInt16LE(29), nclient = buffer.readUInt16LE(31), ncontent = buffer.readUInt16LE(33);
    let at = 35;
    const trace = buffer.latin1Slice(at, at += ntrace);
    const client = buffer.latin1Slice(at, at += nclient);
    const content = buffer.latin1Slice(at, at += ncontent);
    let payload = Buffer.from(buffer.subarray(at, 5 + length));
    drop(5 + length);
    if (payload.length < total) payload = rest(payload, total);
    const call = { request, done: false, streaming: false, silent: false, whenEmpty: null };
    current = call;
    inside = true;
    try {
      let event;
      try {
        event = eventOf(payload, content);
      } catch (e) {
        e.message = `Unable to unmarshal input: ${e.message}`;
        fail(call, e, 'Runtime.UnmarshalError');
        continue;
      }
      run(call, event, new Context(call, remaining, trace, client, content));
    } catch (e) {
      fail(call, e);
    } finally {
      inside = false;
    }
    if (!call.done) return; // the event loop runs until ended() brings the next call
  }
}

function rest(payload, total) {
  const parts = [payload];
  let have = payload.length;
  while (have < total) {
    const { kind, length } = frame();
    if (kind !== MORE) process.reallyExit(70);
    parts.push(Buffer.from(buffer.subarray(5, 5 + length)));
    have += length;
    drop(5 + length);
  }
  if (filled === 0) buffer = Buffer.allocUnsafeSlow(16 << 10);
  return Buffer.concat(parts);
}

let inside = false; // serve is on the stack: it takes the next call itself

// ended goes on with the next call after one turn of the event loop: timers and sockets that the function left behind
// move on at every call, as they would in an instance that is thawed.
function ended(call) {
  if (current === call) current = null;
  if (rehearsed) return rehearsed();
  if (!inside) setImmediate(serve);
}

// With nothing left to wait for, a callback's answer is due, or the handler forgot to answer.
process.on('beforeExit', () => {
  const call = current;
  if (!call) return;
  if (call.whenEmpty) return call.whenEmpty();
  if (call.silent) return answer(call, null);
  fail(call, new Error('the handler neither answered nor left anything to wait for'), 'Runtime.ExitError');
});

function crash(kind) {
  return (error) => {
    console.error(error);
    if (current) {
      const call = current;
      inside = true; // no further call: the process ends
      fail(call, error, kind, true);
    }
    process.reallyExit(1);
  };
}
process.on('uncaughtException', crash());
process.on('unhandledRejection', crash('Runtime.UnhandledPromiseRejection'));

class InitFailure extends Error {
  constructor(kind, message, trace) { super(message); this.kind = kind; this.trace = trace || []; }
}

function find(root, module) {
  for (const extension of ['.js', '.mjs', '.cjs']) {
    const file = path.join(root, module + extension);
    if (fs.existsSync(file)) return file;
  }
  throw new InitFailure('Runtime.ImportModuleError', `Cannot find module '${module}' in ${root}`);
}

async function load() {
  const dot = setup.handler.lastIndexOf('.');
  const module = setup.handler.slice(0, dot), name = setup.handler.slice(dot + 1);
  const file = find(setup.root, module);
  let loaded;
  try {
    if (file.endsWith('.mjs')) loaded = await importFile(file);
    else {
      try {
        loaded = require(file);
      } catch (e) {
        if (e.code !== 'ERR_REQUIRE_ESM' && !(e instanceof SyntaxError && esmHint(e))) throw e;
        loaded = await importFile(file);
      }
    }
  } catch (e) {
    if (e instanceof SyntaxError) throw new InitFailure('Runtime.UserCodeSyntaxError', e.message, String(e.stack).split('\n'));
    if (e && (e.code === 'MODULE_NOT_FOUND' || e.code === 'ERR_MODULE_NOT_FOUND')) throw new InitFailure('Runtime.ImportModuleError', e.message.split('\n')[0], String(e.stack).split('\n'));
    const doc = describe(e);
    throw new InitFailure(doc.errorType, doc.errorMessage, doc.trace);
  }
  let f = loaded[name];
  if (f === undefined && loaded.default) f = loaded.default[name];
  if (typeof f !== 'function') throw new InitFailure('Runtime.HandlerNotFound', `${setup.handler} is undefined or not exported`);
  return f;
}

function esmHint(e) { return /Cannot use import statement|Unexpected token 'export'/.test(e.message); }
function importFile(file) { return import(require('url').pathToFileURL(file).href); }

// adopt makes env the whole environment. It touches what differs only: a TZ that is deleted or set, even to what it was,
// makes the engine look for its time zone in a thousand files.
function adopt(env) {
  for (const k of Object.keys(process.env)) if (!(k in env)) delete process.env[k];
  for (const k of Object.keys(env)) if (process.env[k] !== env[k]) process.env[k] = env[k];
}

// reseed gives Math.random a state of its own: the engine's is that of the template when this process was cloned with its
// machine, and then all clones draw the same numbers. (xoshiro128**, over words of the system's generator.)
function reseed() {
  let [a, b, c, d] = require('crypto').randomFillSync(new Uint32Array(4));
  const word = () => {
    const r = Math.imul(b, 5), out = Math.imul((r << 7) | (r >>> 25), 9) >>> 0, t = b << 9;
    c ^= a; d ^= b; b ^= c; a ^= d; c ^= t; d = (d << 11) | (d >>> 21);
    return out;
  };
  Math.random = function random() { return ((word() >>> 5) * 67108864 + (word() >>> 6)) / 9007199254740992; };
}

// take becomes the function that the init frame tells of.
async function take() {
  adopt(setup.env);
  const extra = (process.env.NODE_PATH || '').split(':').filter(Boolean);
  process.env.NODE_PATH = ['/opt/nodejs/node20/node_modules', '/opt/nodejs/node_modules', ...extra].join(':');
  require('module')._initPaths();
  try { process.chdir(setup.root); } catch { /* an absent root shows as an import error, which has a better sentence */ }
  handler = await load();
}

// rehearse walks the way of a first call with code of our own: loads it from a file, as the function will be, and lets it
// answer. What the engine compiles and touches for the first time is done before anybody waits for it.
async function rehearse() {
  const env = { ...process.env };
  setup = JSON.parse(JSON.stringify({ root: __dirname, handler: 'rehearsal.handler', env }));
  await take();
  const body = Buffer.from('{"warm":[1,2.5,"x",null]}');
  for (let i = 0; i < 3; i++) {
    const call = Buffer.alloc(35 + 16);
    call.writeUInt32LE(call.length - 4 + body.length, 0);
    call[4] = CALL;
    call.writeUInt32LE(1000, 21);
    call.writeUInt32LE(body.length, 25);
    call.writeUInt16LE(16, 33);
    call.latin1Write('application/json', 35);
    filled = call.copy(buffer) + body.copy(buffer, call.length);
    await new Promise((done) => { rehearsed = done; serve(); });
  }
  rehearsed = setup = handler = null;
  delete require.cache[path.join(__dirname, 'rehearsal.js')];
  module.children.length = 0;
  adopt(env);
  process.chdir('/');
}

async function main() {
  await rehearse();
  const cloned = process.env.STARLING_CLONED; // what starts here is saved with its machine and cloned
  if (cloned) require('crypto');
  write(begin(READY, 0));
  const { kind, length } = frame();
  if (kind !== INIT) process.reallyExit(70);
  setup = JSON.parse(buffer.utf8Slice(5, 5 + length));
  drop(5 + length);
  if (cloned) reseed();
  try {
    await take();
  } catch (e) {
    fs.writeSync(2, `[ERROR] ${e.kind}: ${e.message}\n${(e.trace || []).join('\n')}\n`);
    const doc = Buffer.from(JSON.stringify({ errorType: e.kind || 'Runtime.InitError', errorMessage: e.message, stackTrace: e.trace || [] }));
    const b = begin(INIT_ERROR, doc.length);
    doc.copy(b, 5);
    write(b);
    process.reallyExit(1);
  }
  write(begin(INIT_OK, 0));
  serve();
}

main();
