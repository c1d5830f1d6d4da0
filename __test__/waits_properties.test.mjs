// Random waits on a stream that comes in random pieces, against a plain array of its bytes. A failure tells the shortest
// case that fails, and a seed: NETPOLL_PROPERTY_SEED=<seed> repeats it, NETPOLL_PROPERTY_RUNS=<n> runs more.

import { setImmediate } from 'node:timers/promises'
import * as fc from 'fast-check'
import test from 'ava'
import { stats } from '../index.js'
import { connect, deferred, send, serve, settled, until } from './fixtures/peer.mjs'
import { DELIMITERS } from './fixtures/values.mjs'

const RUNS = Number(process.env.NETPOLL_PROPERTY_RUNS ?? 300)
const SEED = process.env.NETPOLL_PROPERTY_SEED
/** Of readHighWaterMark: a wait for more raises it. */
const MARKS = [1, 100, 5000, 1 << 20]
const ALPHABET = Buffer.from('aab\r\n\0é')

/** What a wait has brought is taken in one of these ways, or left for the next one. */
const WAYS = {
  next: (reader, n) => reader.next(n),
  readBinary: (reader, n) => reader.readBinary(n),
  readString: (reader, n) => Buffer.from(reader.readString(n, 'latin1'), 'latin1'),
  slice(reader, n) {
    const slice = reader.slice(n)
    const bytes = slice.readBinary(n)
    slice.release()
    return bytes
  },
  peek: (reader, n) => reader.peek(n),
}

const size = fc.oneof(fc.nat(4), fc.nat(200), fc.nat(5000), fc.nat(100_000))
const wait = fc.record({
  delimiter: fc.option(fc.constantFrom(...DELIMITERS)),
  size,
  way: fc.constantFrom(...Object.keys(WAYS)),
  /** Of the bytes that the wait has brought this share is taken. */
  share: fc.constantFrom(1, 1, 1, 0.5),
  releases: fc.boolean(),
})
const stream = fc.record({
  bytes: fc.array(fc.nat(ALPHABET.length - 1), { maxLength: 400, size: 'max' }),
  /** So often the bytes are repeated. */
  times: fc.constantFrom(1, 1, 10, 500),
  pieces: fc.array(fc.oneof(fc.constant(1), fc.nat(20), fc.nat(70_000)), { maxLength: 60, size: 'max' }),
  mark: fc.constantFrom(...MARKS),
})

/** Sends the bytes in pieces, the last one being all the rest, and ends. */
async function sends(socket, bytes, pieces) {
  let at = 0
  for (const piece of pieces) {
    await send(socket, bytes.subarray(at, (at += piece)))
    await setImmediate()
  }
  socket.end(bytes.subarray(at))
}

/** Waits, and takes what has come, as one of `waits` says; returns where in the bytes that ends. */
async function step(reader, bytes, at, { delimiter, size: wanted, way, share, releases }) {
  const found = delimiter === null ? undefined : bytes.indexOf(delimiter, at)
  const length = typeof delimiter === 'number' ? 1 : Buffer.byteLength(delimiter ?? '')
  const n = delimiter === null ? wanted : found + length - at
  const comes = delimiter === null ? at + n <= bytes.length : found >= 0
  const waiting = delimiter === null ? reader.waitRead(n) : reader.waitUntil(delimiter)
  const outcome = await waiting.catch(({ code }) => code)
  same(outcome, comes ? (delimiter === null ? undefined : n) : 'ERR_NETPOLL_EOF', 'the wait')
  const left = bytes.length - at
  if (!comes) same(reader.length, left, 'what is left when a wait was in vain')
  const taken = comes ? Math.floor(n * share) : Math.min(left, 1)
  const got = WAYS[way](reader, taken)
  if (!bytes.subarray(at, at + taken).equals(got))
    throw new Error(`${way}(${taken}) at ${at} gave other bytes`)
  if (releases) reader.release()
  return way === 'peek' ? at : at + taken
}

function same(got, expected, what) {
  if (!Object.is(got, expected)) throw new Error(`${what}: ${got}, expected ${expected}`)
}

test('waits frame what comes, however it is cut and whatever was taken before', async (t) => {
  let accepted
  const onConnect = (connection) => void accepted.resolve(connection)
  const servers = new Map(
    MARKS.map((mark) => [mark, serve(undefined, { onConnect, readHighWaterMark: mark })]),
  )
  t.teardown(() => Promise.all(Array.from(servers.values(), ({ stop }) => stop())))
  let done = 0
  const property = fc.asyncProperty(
    stream,
    fc.array(wait, { minLength: 1, maxLength: 40, size: 'max' }),
    async ({ bytes: few, times, pieces, mark }, waits) => {
      const some = Buffer.from(few.map((index) => ALPHABET[index]))
      const bytes = Buffer.concat(Array.from({ length: times }, () => some))
      accepted = deferred()
      const socket = await connect(servers.get(mark).port)
      const connection = await accepted.promise
      const sending = sends(socket, bytes, pieces)
      try {
        let at = 0
        for (const one of waits) at = await step(connection.reader, bytes, at, one)
        done += waits.length
      } finally {
        connection.reset()
        await sending.catch(() => undefined)
        socket.destroy()
        await connection.closed
      }
    },
  )
  await settled()
  const { blocksOut } = stats()
  const settings = SEED === undefined ? {} : { seed: Number(SEED) }
  await t.notThrowsAsync(fc.assert(property, { numRuns: RUNS, includeErrorInReport: true, ...settings }))
  t.log(`${done} waits`)
  await settled()
  await until(
    () => stats().blocksOut <= blocksOut + 2,
    `${stats().blocksOut} blocks out, ${blocksOut} before`,
  )
})
