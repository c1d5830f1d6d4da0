// This package's side of `npm run test:interop`; main.go is the same program on netpoll.
//
//   node peer.mjs server SCENARIO          prints its port, serves until stdin ends, prints its report
//   node peer.mjs client SCENARIO PORT     prints its report

import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import * as netpoll from '../../index.js'
import { ShardQueue } from '../../mux.js'
import { newFrame, numberOf, readFrame, takeFrame, Tally } from './frame.mjs'

/** Nothing here takes that long unless it hangs. */
const LIMIT = 30_000
const MIB = 1 << 20

const report = { sent: new Tally(), received: new Tally(), opened: 0, closed: 0, failures: [] }

const [role, scenario, port] = process.argv.slice(2)
netpoll.configure({ numLoops: 2 })
await openAll()
const before = openDescriptors()
await (role === 'server' ? serve() : runClient())
await until(() => report.closed === report.opened && openDescriptors() === before)
const { sent, received, ...rest } = report
const descriptors = [before, openDescriptors()]
console.log(JSON.stringify({ ...rest, descriptors, sent: sent.summary(), received: received.summary() }))

// ---- server

async function serve() {
  const onConnect = { 'server-closes': sendAndClose, 'client-leaves': sendForever }[scenario]
  const onRequest = { mux: answerMuxed, 'client-closes': takeAll }[scenario] ?? echo
  const loop = netpoll.createEventLoop(onConnect ? undefined : onRequest, {
    onPrepare: prepare,
    onConnect,
    onError: fail,
    readTimeout: LIMIT,
  })
  const listener = netpoll.createListener('tcp', '127.0.0.1:0')
  const served = loop.serve(listener)
  console.log(JSON.stringify({ port: listener.address().port }))
  await once(process.stdin.resume(), 'end')
  await until(() => report.closed === report.opened)
  await loop.shutdown({ timeout: LIMIT / 3 }).catch(fail)
  await served
}

function prepare(connection) {
  opened(connection)
  return { queue: new ShardQueue(connection) }
}

function echo({ reader, writer }) {
  for (let frame; (frame = takeFrame(reader));) {
    report.received.add(frame)
    report.sent.add(frame)
    writer.writeBinary(frame)
  }
  writer.flush()
}

/** In any order. */
function answerMuxed({ reader }, { queue }) {
  for (let frame; (frame = takeFrame(reader));) {
    const answer = frame
    report.received.add(answer)
    report.sent.add(answer)
    void turns(numberOf(answer) % 7).then(() => queue.add(answer))
  }
}

async function turns(count) {
  for (; count > 0; count--) await new Promise(setImmediate)
}

function takeAll({ reader }) {
  for (let frame; (frame = takeFrame(reader));) report.received.add(frame)
}

async function sendAndClose(connection) {
  for (let number = 0; number < 200; number++) await send(connection, newFrame(number, number * 500))
  connection.close()
}

/** Ends when the client has left. */
async function sendForever(connection) {
  const { writer } = connection
  for (let number = 0; connection.isActive(); number++) {
    writer.writeBinary(newFrame(number, 64 << 10))
    if (!writer.flush()) await connection.flushed().catch(() => connection.close())
  }
}

// ---- client

async function runClient() {
  const run = {
    'ping-pong': pingPong,
    large,
    mux: callMuxed,
    'client-closes': sendMany,
    'server-closes': readToEnd,
    'client-leaves': readAFew,
    'half-close': halfClose,
  }[scenario]
  const connections = scenario === 'ping-pong' ? 4 : 1
  await Promise.all(Array.from({ length: connections }, () => on(run)))
}

/** A scenario on a connection of its own, which it closes. */
async function on(run) {
  try {
    const connection = await netpoll.dialConnection('tcp', `127.0.0.1:${port}`, { timeout: LIMIT })
    connection.setReadTimeout(LIMIT)
    opened(connection)
    await run(connection).finally(() => connection.close())
    await connection.closed
  } catch (error) {
    fail(error)
  }
}

async function pingPong(connection) {
  for (let number = 0; number < 1000; number++) await exchange(connection, newFrame(number, number * 4))
}

async function large(connection) {
  const sizes = [1 * MIB, 8 * MIB + 1, 32 * MIB, 0, 4 * MIB]
  for (const [number, size] of sizes.entries()) await exchange(connection, newFrame(number, size))
}

async function exchange(connection, frame) {
  const [answer] = await Promise.all([receive(connection), send(connection, frame)])
  if (!answer?.equals(frame)) throw new Error(`the answer to ${numberOf(frame)} is another's`)
}

/** Many callers on one connection, whose answers come in any order. */
async function callMuxed(connection) {
  const CALLERS = 32
  const EACH = 250
  const queue = new ShardQueue(connection)
  const pending = new Map()
  const caller = async (first) => {
    for (let number = first; number < first + EACH; number++) {
      const frame = newFrame(number, (number * 37) % 9000)
      report.sent.add(frame)
      const answered = new Promise((resolve) => pending.set(number, resolve))
      queue.add(frame)
      if (!(await answered).equals(frame)) throw new Error(`call ${number} has another's answer`)
    }
  }
  const receiveAnswers = async () => {
    for (let left = CALLERS * EACH; left > 0; left--) {
      const answer = await receive(connection)
      if (answer === undefined) throw new Error(`${left} calls have no answer`)
      pending.get(numberOf(answer))(answer)
      pending.delete(numberOf(answer))
    }
  }
  const callers = Array.from({ length: CALLERS }, (_, index) => caller(index * EACH))
  await Promise.all([receiveAnswers(), ...callers])
  await queue.close()
}

async function sendMany(connection) {
  for (let number = 0; number < 300; number++) await send(connection, newFrame(number, number * 700))
}

async function readToEnd(connection) {
  while (await receive(connection)) {
    // Until the peer has ended.
  }
}

async function readAFew(connection) {
  for (let left = 10; left > 0; left--) await receive(connection)
}

async function halfClose(connection) {
  const sendAll = async () => {
    for (let number = 0; number < 300; number++) await send(connection, newFrame(number, number * 300))
    connection.end()
  }
  await Promise.all([sendAll(), readToEnd(connection)])
}

async function receive({ reader }) {
  const frame = await readFrame(reader)
  if (frame !== undefined) report.received.add(frame)
  return frame
}

// ---- both

async function send(connection, frame) {
  report.sent.add(frame)
  connection.writer.writeBinary(frame)
  if (!connection.writer.flush()) await connection.flushed()
}

function opened(connection) {
  report.opened++
  connection.addCloseCallback(() => report.closed++)
}

/** Makes the poll and Node open what they keep open, before descriptors are counted. */
async function openAll() {
  process.stdin.pause()
  const listener = netpoll.createListener('tcp', '127.0.0.1:0')
  const served = netpoll.createEventLoop(() => undefined).serve(listener)
  listener.close()
  await served
}

function openDescriptors() {
  return readdirSync('/proc/self/fd').length
}

/** Waits for a condition, or for so long that it will never be true. */
async function until(condition) {
  for (const end = Date.now() + LIMIT / 3; !condition() && Date.now() < end;) await setTimeout(1)
}

function fail(error) {
  report.failures.push(String(error?.stack ?? error))
}
