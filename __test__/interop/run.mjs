// `npm run test:interop`: this package and cloudwego/netpoll (Go) against each other, each as client and as server,
// in programs of their own that count and hash what they send and receive. Without Go it is skipped. The last line
// is `N passed, N failed`.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const here = new URL('.', import.meta.url).pathname

/** Building may have to download netpoll; a scenario has its own limits, and ends long before this one. */
const BUILD_LIMIT = 240_000
const SCENARIO_LIMIT = 90_000

/** By name: the frames that go to the server and come back, and over how many connections. */
const SCENARIOS = {
  'ping-pong': { sent: 4000, answered: 4000, connections: 4 },
  large: { sent: 5, answered: 5, connections: 1 },
  mux: { sent: 8000, answered: 8000, connections: 1 },
  'client-closes': { sent: 300, answered: 0, connections: 1 },
  'server-closes': { sent: 0, answered: 200, connections: 1 },
  'client-leaves': { sent: 0, answered: 10, connections: 1 },
  'half-close': { sent: 300, answered: 300, connections: 1 },
}

const children = new Set()
process.on('exit', () => children.forEach((child) => child.kill('SIGKILL')))
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1))

if (spawnSync('go', ['version']).status !== 0) {
  console.log('skipped: there is no go on the PATH\n\n0 passed, 0 failed')
} else {
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-interop-'))
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
  await main(build(join(folder, 'interop')))
}

/** The command of each side. */
function build(program) {
  const { status } = spawnSync('go', ['build', '-o', program, '.'], {
    cwd: here,
    stdio: ['ignore', 2, 2],
    timeout: BUILD_LIMIT,
  })
  if (status !== 0) {
    console.log('the Go programs cannot be built\n\n0 passed, 1 failed')
    process.exit(1)
  }
  return { go: [program], ours: [process.execPath, join(here, 'peer.mjs')] }
}

async function main(sides) {
  const count = { passed: 0, failed: 0 }
  for (const scenario of Object.keys(SCENARIOS)) {
    for (const client of ['go', 'ours']) {
      for (const server of ['ours', 'go']) {
        const name = `${scenario}: ${client} client, ${server} server`
        if (scenario === 'half-close' && server === 'go') {
          console.log(`  - ${name} (skipped: netpoll takes a FIN for the end of both directions)`)
          continue
        }
        const begun = performance.now()
        const wrong = await compare(scenario, sides[client], sides[server])
        const took = `${Math.round(performance.now() - begun)} ms`
        console.log(`  ${wrong.length === 0 ? '✔' : '✘'} ${name} (${took})`)
        for (const line of wrong) console.log(`      ${line}`)
        count[wrong.length === 0 ? 'passed' : 'failed']++
      }
    }
  }
  console.log(`\n${count.passed} passed, ${count.failed} failed`)
  process.exitCode = count.failed === 0 ? 0 : 1
}

/** Runs a scenario; returns a line for everything that did not come out. */
async function compare(scenario, clientSide, serverSide) {
  const server = start([...serverSide, 'server', scenario])
  const { port } = await server.told()
  const client = start([...clientSide, 'client', scenario, String(port)])
  const reports = { client: await client.told() }
  server.child.stdin.end()
  reports.server = await server.told()
  const ends = [...(await client.end('client')), ...(await server.end('server'))]
  // What was on its way to a client that has left is nobody's.
  if (scenario === 'client-leaves') reports.server.sent = reports.client.received
  return [...ends, ...differences(reports, SCENARIOS[scenario])]
}

/** A program that tells by lines of JSON: told() is the next of them, or {} when it has ended. */
function start([command, ...args]) {
  const child = spawn(command, args, { timeout: SCENARIO_LIMIT, killSignal: 'SIGKILL' })
  children.add(child)
  child.stdin.on('error', () => undefined) // it may have ended before
  let errors = ''
  child.stderr.setEncoding('utf8').on('data', (text) => (errors += text))
  const closed = once(child, 'close').finally(() => children.delete(child))
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const told = async () => {
    const { value } = await lines.next()
    return value === undefined ? {} : JSON.parse(value)
  }
  const end = async (role) => {
    const [code, signal] = await closed
    return code === 0 ? [] : [`the ${role} ended with ${signal ?? code}: ${errors.trim()}`]
  }
  return { child, told, end }
}

function differences({ client, server }, { sent, answered, connections }) {
  const wrong = []
  const expect = (what, actual, expected) => {
    if (actual !== expected) wrong.push(`${what}: ${actual}, expected ${expected}`)
  }
  expect('frames that the client has sent', client.sent?.frames, sent)
  expect('frames that the server has sent', server.sent?.frames, answered)
  for (const which of ['frames', 'bytes', 'hash']) {
    expect(`${which} that the server has received`, server.received?.[which], client.sent?.[which])
    expect(`${which} that the client has received`, client.received?.[which], server.sent?.[which])
  }
  for (const [role, report] of Object.entries({ client, server })) {
    expect(`connections of the ${role}`, report.opened, connections)
    expect(`close callbacks of the ${role}`, report.closed, connections)
    expect(`descriptors of the ${role}`, report.descriptors?.[1], report.descriptors?.[0])
    for (const failure of report.failures?.slice(0, 3) ?? []) wrong.push(`the ${role} failed: ${failure}`)
  }
  return wrong
}
