// Semantics 12: bad arguments, too early and too late calls get typed errors before anything is changed.

import test from 'ava'
import { readFileSync } from 'node:fs'
import { inspect } from 'node:util'
import { configure, createEventLoop, createListener, LinkBuffer, listen, stats } from '../index.js'
import { connect, deferred, descriptors, pair, send, serve, take } from './fixtures/peer.mjs'

const RANGE = 'ERR_OUT_OF_RANGE'
const TYPE = 'ERR_INVALID_ARG_TYPE'
const VALUE = 'ERR_INVALID_ARG_VALUE'

const NO_NUMBERS = [undefined, null, '1', '', 1n, true, {}, [1], Symbol.iterator, () => 1]
const BAD_SIZES = [
  ...[-1, NaN, 1.5, 2 ** 53, 2 ** 31, Infinity, -Infinity].map((value) => [RANGE, value]),
  ...NO_NUMBERS.map((value) => [TYPE, value]),
]
const BAD_DELIMITERS = [
  ...[-1, 256, NaN, 1.5, 2 ** 53, '', Buffer.alloc(0)].map((value) => [RANGE, value]),
  ...[undefined, null, 1n, true, {}, [10], new ArrayBuffer(1)].map((value) => [TYPE, value]),
]
const BAD_BYTES = [
  undefined,
  null,
  'text',
  1,
  {},
  [1],
  new ArrayBuffer(1),
  new Uint16Array(1),
  new DataView(new ArrayBuffer(1)),
].map((value) => [TYPE, value])
const BAD_ENCODINGS = ['nope', '', null, 5, {}].map((value) => [VALUE, value])
const BAD_FUNCTIONS = [undefined, null, 1, 'f', {}].map((value) => [TYPE, value])
const BAD_WAIT_OPTIONS = [
  ...[null, 1, 'x', { signal: 1 }, { signal: null }, { signal: {} }].map((value) => [TYPE, value]),
  [VALUE, { sgnal: undefined }],
]

/** What Buffer's methods of the same name take. */
const INTEGERS = {
  UInt8: [0, 2 ** 8 - 1],
  UInt16: [0, 2 ** 16 - 1],
  UInt32: [0, 2 ** 32 - 1],
  Int8: [-(2 ** 7), 2 ** 7 - 1],
  Int16: [-(2 ** 15), 2 ** 15 - 1],
  Int32: [-(2 ** 31), 2 ** 31 - 1],
}
const BIGINTS = { BigUInt64: [0n, 2n ** 64n - 1n], BigInt64: [-(2n ** 63n), 2n ** 63n - 1n] }
const NUMBERS = [...Object.keys(INTEGERS), ...Object.keys(BIGINTS), 'Float', 'Double'].flatMap((kind) =>
  kind.endsWith('8') ? [kind] : [`${kind}BE`, `${kind}LE`],
)

/** A call of each method that is right when bytes are here. */
const READER = {
  next: (reader) => reader.next(1),
  peek: (reader) => reader.peek(1),
  until: (reader) => reader.until('\n'),
  skip: (reader) => reader.skip(1),
  readString: (reader) => reader.readString(1),
  readBinary: (reader) => reader.readBinary(1),
  slice: (reader) => reader.slice(1),
  readByte: (reader) => reader.readByte(),
  ...Object.fromEntries(NUMBERS.map((kind) => [`read${kind}`, (reader) => reader[`read${kind}`]()])),
  waitRead: (reader) => reader.waitRead(1),
  waitUntil: (reader) => reader.waitUntil('\n'),
  release: (reader) => reader.release(),
}
const WRITER = {
  malloc: (writer) => writer.malloc(1),
  mallocAck: (writer) => writer.mallocAck(0),
  writeString: (writer) => writer.writeString('x'),
  writeBinary: (writer) => writer.writeBinary(Buffer.alloc(20_000)),
  writeDirect: (writer) => writer.writeDirect(Buffer.alloc(1), 0),
  append: (writer, other) => writer.append(other),
  writeByte: (writer) => writer.writeByte(1),
  ...Object.fromEntries(
    NUMBERS.map((kind) => [
      `write${kind}`,
      (writer) => writer[`write${kind}`](kind.startsWith('Big') ? 1n : 1),
    ]),
  ),
  flush: (writer) => writer.flush(),
}
const CONNECTION = {
  setReadTimeout: (connection) => connection.setReadTimeout(1),
  setWriteTimeout: (connection) => connection.setWriteTimeout(1),
  setIdleTimeout: (connection) => connection.setIdleTimeout(1),
  setNoDelay: (connection) => connection.setNoDelay(),
  setKeepAlive: (connection) => connection.setKeepAlive(true, 1000),
  setUserTimeout: (connection) => connection.setUserTimeout(1),
  setOnRequest: (connection) => connection.setOnRequest(nothing),
  setOnConnect: (connection) => connection.setOnConnect(nothing),
  setOnDisconnect: (connection) => connection.setOnDisconnect(nothing),
  addCloseCallback: (connection) => connection.addCloseCallback(nothing),
  flushed: (connection) => connection.flushed(),
  pause: (connection) => connection.pause(),
  resume: (connection) => connection.resume(),
  detach: (connection) => connection.detach(),
  toDuplex: (connection) => connection.toDuplex(),
  stats: (connection) => connection.stats(),
}
const nothing = () => undefined
const NEVER_FAIL = ['end', 'close', 'reset', 'ref', 'unref']
const WAITS = ['waitRead', 'waitUntil', 'flushed', 'detach', 'stats']

/** All methods that a class declares for its users. */
function methodsOf(file) {
  const declared = readFileSync(new URL(`../dist/${file}.d.ts`, import.meta.url), 'utf8')
  const names = [...declared.matchAll(/^ {4}(?:abstract )?(\w+)\(/gm)].map((match) => match[1])
  // The abstract flush() is in the interface too.
  return [...new Set(names)].filter((name) => name !== 'constructor')
}

/** The call throws at once, with this code. */
function refuses(t, code, call, what) {
  const error = t.throws(call, { code }, what)
  t.true(error instanceof Error, what)
}

/** Calls with each bad value. */
function refusesAll(t, table, call, name) {
  for (const [code, value] of table) refuses(t, code, () => call(value), `${name}(${show(value)})`)
}

function show(value) {
  return inspect(value, { depth: 0 })
}

/** A pair with 'abc' unread and 'xyz' unflushed. */
async function filled(t, options) {
  const both = await pair(t, options)
  await send(both.peer, 'abc')
  await both.reader.waitRead(3)
  both.writer.writeString('xyz')
  return both
}

/** Nothing of that was touched, and the connection works. */
async function isUntouched(t, { reader, writer, peer, connection }) {
  t.is(reader.length, 3)
  t.is(reader.readString(3), 'abc')
  t.is(writer.mallocLength, 3)
  t.true(writer.flush())
  t.is((await take(peer, 3)).toString(), 'xyz')
  await send(peer, '?')
  await reader.waitRead(1)
  t.is(reader.readString(1), '?')
  await connection.flushed()
  t.is(connection.bytesWritten, 3)
  t.true(connection.isActive())
}

test.serial('configure() checks all before it takes any of it', async (t) => {
  const set = { maxMemory: 2 ** 25 }
  for (const options of [undefined, null, 1, 'x']) refuses(t, TYPE, () => configure(options), show(options))
  for (const maxMemory of [-1, 0, NaN, 1.5, 2 ** 20, 2 ** 53])
    refuses(t, RANGE, () => configure({ maxMemory }))
  for (const maxMemory of NO_NUMBERS.slice(1)) refuses(t, TYPE, () => configure({ maxMemory }))
  for (const debug of [0, null, 'true']) refuses(t, TYPE, () => configure({ ...set, debug }))
  for (const busyPoll of [-1, NaN, 1001]) refuses(t, RANGE, () => configure({ ...set, busyPoll }))
  for (const driver of ['nope', null, 1, '']) refuses(t, VALUE, () => configure({ ...set, driver }))
  refuses(t, VALUE, () => configure({ ...set, nope: undefined }))
  await pair(t)
  t.not(stats().maxMemory, set.maxMemory)
  refuses(t, 'ERR_NETPOLL_INVALID_STATE', () => configure(set))
})

test('the tables of this test have all methods', (t) => {
  t.deepEqual(methodsOf('reader').toSorted(), Object.keys(READER).toSorted())
  t.deepEqual(methodsOf('writer').toSorted(), Object.keys(WRITER).toSorted())
  t.deepEqual(methodsOf('connection').toSorted(), [...Object.keys(CONNECTION), ...NEVER_FAIL].toSorted())
})

// ---- Reader

const READERS = {
  Reader: ({ reader }) => reader,
  slice: ({ reader }) => reader.slice(3),
  LinkBuffer: ({ reader }) => {
    const buffer = new LinkBuffer()
    buffer.append(reader)
    buffer.flush()
    return buffer
  },
}

for (const [kind, of] of Object.entries(READERS)) {
  test(`a ${kind} refuses bad sizes, delimiters, encodings and options, and consumes nothing`, async (t) => {
    const both = await filled(t)
    const reader = of(both)
    for (const method of ['next', 'peek', 'skip', 'readString', 'readBinary', 'slice', 'waitRead'])
      refusesAll(t, BAD_SIZES, (n) => reader[method](n), method)
    for (const method of ['until', 'waitUntil'])
      refusesAll(t, BAD_DELIMITERS, (delimiter) => reader[method](delimiter), method)
    for (const n of [0, 1])
      refusesAll(t, BAD_ENCODINGS, (encoding) => reader.readString(n, encoding), `readString ${n}`)
    refusesAll(t, BAD_WAIT_OPTIONS, (options) => reader.waitRead(1, options), 'waitRead')
    refusesAll(t, BAD_WAIT_OPTIONS, (options) => reader.waitUntil('c', options), 'waitUntil')
    if (kind === 'Reader') return isUntouched(t, both)
    t.is(reader.readString(3), 'abc')
  })
}

test('a wait for more than maxReadBytes is out of range', async (t) => {
  const both = await filled(t, { maxReadBytes: 1000 })
  refuses(t, RANGE, () => both.reader.waitRead(1001))
  await isUntouched(t, both)
})

// ---- Writer

test('a Writer refuses bad sizes, and changes nothing', async (t) => {
  const both = await filled(t)
  const { writer } = both
  refusesAll(t, BAD_SIZES, (n) => writer.malloc(n), 'malloc')
  refusesAll(t, [...BAD_SIZES, [RANGE, 4]], (n) => writer.mallocAck(n), 'mallocAck')
  refusesAll(t, [...BAD_SIZES, [RANGE, 4]], (n) => writer.writeDirect(Buffer.from('no'), n), 'writeDirect')
  await isUntouched(t, both)
})

test('a Writer refuses what are no bytes, no text, no encoding and no source, and changes nothing', async (t) => {
  const both = await filled(t)
  const { writer } = both
  refusesAll(t, BAD_BYTES, (bytes) => writer.writeBinary(bytes), 'writeBinary')
  refusesAll(t, BAD_BYTES, (bytes) => writer.writeDirect(bytes, 1), 'writeDirect')
  const noTexts = [undefined, null, 1, {}, ['x'], Buffer.from('x')].map((value) => [TYPE, value])
  refusesAll(t, noTexts, (text) => writer.writeString(text), 'writeString')
  for (const text of ['', 'text'])
    refusesAll(t, BAD_ENCODINGS, (encoding) => writer.writeString(text, encoding), 'writeString')
  const noSources = [undefined, null, 1, 'x', {}, Buffer.from('x'), both.connection].map((value) => [
    TYPE,
    value,
  ])
  refusesAll(t, noSources, (source) => writer.append(source), 'append')
  refuses(t, VALUE, () => writer.append(writer), 'append itself')
  await isUntouched(t, both)
})

test('a Writer refuses integers that have no room, are none or no numbers, and changes nothing', async (t) => {
  const both = await filled(t)
  const { writer } = both
  for (const method of Object.keys(WRITER).filter((name) => /^write(?:Byte|U?Int)/.test(name))) {
    const [min, max] = INTEGERS[method === 'writeByte' ? 'UInt8' : /write(\w+?\d+)/.exec(method)[1]]
    const outOfRange = [min - 1, max + 1, NaN, 1.5, 2 ** 53, -Infinity].map((value) => [RANGE, value])
    const noNumbers = NO_NUMBERS.map((value) => [TYPE, value])
    refusesAll(t, [...outOfRange, ...noNumbers], (value) => writer[method](value), method)
  }
  await isUntouched(t, both)
})

test('a Writer refuses bigints that have no room or are none, and changes nothing', async (t) => {
  const both = await filled(t)
  const { writer } = both
  for (const method of Object.keys(WRITER).filter((name) => name.startsWith('writeBig'))) {
    const [min, max] = BIGINTS[/write(\w+?64)/.exec(method)[1]]
    const outOfRange = [min - 1n, max + 1n].map((value) => [RANGE, value])
    const noBigints = [1, NaN, ...NO_NUMBERS.filter((value) => value !== 1n)].map((value) => [TYPE, value])
    refusesAll(t, [...outOfRange, ...noBigints], (value) => writer[method](value), method)
  }
  await isUntouched(t, both)
})

test('a Writer refuses floats that are no numbers, and changes nothing', async (t) => {
  const both = await filled(t)
  const { writer } = both
  const noNumbers = NO_NUMBERS.map((value) => [TYPE, value])
  for (const method of Object.keys(WRITER).filter((name) => /^write(?:Float|Double)/.test(name)))
    refusesAll(t, noNumbers, (value) => writer[method](value), method)
  await isUntouched(t, both)
})

// ---- Connection

test('a connection refuses bad times, switches and functions, and changes nothing', async (t) => {
  const both = await filled(t)
  const { connection } = both
  for (const method of ['setReadTimeout', 'setWriteTimeout', 'setIdleTimeout', 'setUserTimeout'])
    refusesAll(t, BAD_SIZES, (ms) => connection[method](ms), method)
  const noBooleans = [null, 0, 1, 'true', {}].map((value) => [TYPE, value])
  refusesAll(t, noBooleans, (on) => connection.setNoDelay(on), 'setNoDelay')
  refusesAll(t, noBooleans, (on) => connection.setKeepAlive(on), 'setKeepAlive')
  const badDelays = BAD_SIZES.filter(([, value]) => value !== undefined)
  refusesAll(t, badDelays, (ms) => connection.setKeepAlive(true, ms), 'setKeepAlive')
  for (const method of ['setOnRequest', 'setOnConnect', 'setOnDisconnect', 'addCloseCallback'])
    refusesAll(t, BAD_FUNCTIONS, (f) => connection[method](f), method)
  await isUntouched(t, both)
})

// ---- after the end

for (const [end, how] of Object.entries({
  close: (connection) => connection.close(),
  reset: (connection) => connection.reset(),
  'close, and all is over': async (connection, peer) => {
    connection.close()
    peer.destroy()
    await connection.closed
  },
})) {
  test(`after our own ${end}, every method throws CONN_CLOSED and every wait rejects with it`, async (t) => {
    const { connection, reader, writer, peer } = await filled(t)
    const other = await filled(t)
    await how(connection, peer)
    const calls = [
      ...Object.entries(READER).map(([name, call]) => [name, () => call(reader)]),
      ...Object.entries(WRITER).map(([name, call]) => [name, () => call(writer, other.writer)]),
      ...Object.entries(WRITER).map(([name, call]) => [name, () => call(writer, other.reader)]),
      ...Object.entries(CONNECTION).map(([name, call]) => [name, () => call(connection)]),
    ]
    for (const [name, call] of calls) {
      if (WAITS.includes(name)) await t.throwsAsync(call(), { code: 'ERR_NETPOLL_CONN_CLOSED' }, name)
      else refuses(t, 'ERR_NETPOLL_CONN_CLOSED', call, name)
    }
    for (const name of NEVER_FAIL) t.notThrows(() => connection[name](), name)
    t.is(reader.length, 0)
    t.is(writer.mallocLength, 0)
    t.false(connection.isActive())
    t.false(connection.readable)
    t.false(connection.writable)
    await isUntouched(t, other)
  })
}

test('a Reader and a Writer that are first asked for after our own close() throw CONN_CLOSED too', async (t) => {
  const thrown = deferred()
  const { port, stop } = serve(() => t.fail(), {
    onPrepare(connection) {
      connection.close()
      const calls = [() => connection.reader.readByte(), () => connection.writer.writeByte(1)]
      for (const call of calls) refuses(t, 'ERR_NETPOLL_CONN_CLOSED', call)
      thrown.resolve()
    },
  })
  t.teardown(stop)
  const peer = await connect(port)
  await thrown.promise
  peer.destroy()
})

test('after end() every write throws CONN_CLOSED, unflushed bytes are dropped, and reading goes on', async (t) => {
  const { connection, reader, writer, peer } = await filled(t)
  connection.end()
  for (const [name, call] of Object.entries(WRITER))
    refuses(t, 'ERR_NETPOLL_CONN_CLOSED', () => call(writer, reader), name)
  t.is(writer.mallocLength, 0)
  t.is(reader.readString(3), 'abc')
  await send(peer, 'more')
  await reader.waitRead(4)
  t.is(reader.readString(4), 'more')
  t.is(connection.bytesWritten, 0)
})

// ---- event loops and listeners

test('createEventLoop refuses what is no handler, no options, or no such option', (t) => {
  refusesAll(t, BAD_FUNCTIONS, (f) => createEventLoop(f), 'createEventLoop')
  for (const f of [null, 1, {}]) refuses(t, TYPE, () => createEventLoop(f, { onConnect: nothing }), show(f))
  for (const options of [null, 1, 'x', true])
    refuses(t, TYPE, () => createEventLoop(nothing, options), show(options))
  refuses(t, VALUE, () => createEventLoop(nothing, { readTimeOut: 1 }))
  const bad = {
    ...tableOf(['onPrepare', 'onConnect', 'onDisconnect', 'onError'], BAD_FUNCTIONS),
    ...tableOf(['readTimeout', 'writeTimeout', 'idleTimeout'], BAD_SIZES),
    ...tableOf(
      ['readHighWaterMark', 'maxReadBytes', 'writeHighWaterMark', 'maxPendingBytes', 'maxConnections'],
      [[RANGE, 0], ...BAD_SIZES],
    ),
    allowHalfOpen: [null, 0, 1, 'true'].map((value) => [TYPE, value]),
    signal: [null, 1, {}, new EventTarget()].map((value) => [TYPE, value]),
  }
  refusesOptions(t, bad, (options) => createEventLoop(nothing, options))
})

for (const [name, listens] of Object.entries({ createListener, listen })) {
  test(`${name} refuses what is no network, address or option, at once, and opens nothing`, (t) => {
    const before = descriptors()
    const networks = ['udp', 'TCP', '', undefined, null, 1, {}].map((value) => [VALUE, value])
    refusesAll(t, networks, (network) => listens(network, '127.0.0.1:0'), name)
    const addresses = [undefined, null, 8080, {}, ['127.0.0.1:0']].map((value) => [TYPE, value])
    refusesAll(t, addresses, (address) => listens('tcp', address), name)
    for (const options of [null, 1, 'x', true]) refuses(t, TYPE, () => listens('tcp', '127.0.0.1:0', options))
    refuses(t, VALUE, () => listens('tcp', '127.0.0.1:0', { backLog: 1 }))
    const bad = {
      ...tableOf(['backlog', 'recvBuffer', 'sendBuffer'], [[RANGE, 0], ...BAD_SIZES]),
      ...tableOf(
        ['reusePort', 'ipv6Only', 'noDelay', 'keepAlive', 'unlink'],
        [null, 0, 1, 'true', {}].map((value) => [TYPE, value]),
      ),
    }
    refusesOptions(t, bad, (options) => listens('tcp', '127.0.0.1:0', options))
    t.is(descriptors(), before)
  })
}

test('addresses that are malformed have a code of their own', (t) => {
  const before = descriptors()
  for (const port of ['-1', '65536', '1.5', 'NaN', '9007199254740992', '', ' 1', '0x50', '+1'])
    refuses(t, 'ERR_NETPOLL_ADDRESS', () => createListener('tcp', `127.0.0.1:${port}`), port)
  t.is(descriptors(), before)
})

test('serve and shutdown refuse bad arguments at once, and the loop goes on', async (t) => {
  const { loop, port, stop } = serve(({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  })
  t.teardown(stop)
  for (const listener of [undefined, null, 1, 'x', {}, { address: () => '', fd: 1, close() {} }])
    refuses(t, TYPE, () => loop.serve(listener), show(listener))
  for (const options of [null, 1, 'x']) refuses(t, TYPE, () => loop.shutdown(options), show(options))
  refuses(t, VALUE, () => loop.shutdown({ timeOut: 1 }))
  const timeouts = BAD_SIZES.filter(([, value]) => value !== undefined)
  refusesAll(t, timeouts, (timeout) => loop.shutdown({ timeout }), 'shutdown')
  const peer = await connect(port)
  await send(peer, 'still here')
  t.is((await take(peer, 10)).toString(), 'still here')
  peer.destroy()
})

function tableOf(names, bad) {
  return Object.fromEntries(names.map((name) => [name, bad]))
}

/** An option that is undefined is one that is not given. */
function refusesOptions(t, table, call) {
  for (const [name, bad] of Object.entries(table)) {
    const given = bad.filter(([, value]) => value !== undefined)
    refusesAll(t, given, (value) => call({ [name]: value }), name)
  }
}
