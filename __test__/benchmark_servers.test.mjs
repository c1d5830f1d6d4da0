// Every server of the benchmarks answers as the load generator expects, which checks each byte. Nothing is timed.

import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
import test from 'ava'
import { Child } from '../benchmark/child.mjs'
import { findPeers, loadBinary, startServer } from '../benchmark/peers.mjs'
import { scenarios } from '../benchmark/scenarios.mjs'

const root = new URL('..', import.meta.url)

/** By service: its size, and the options of the load. */
const SERVICES = {
  echo: [1024, []],
  frame: [256, ['--frame', '--inflight', '8']],
  mux: [64, ['--frame', '--inflight', '64']],
  burn: [1024, []],
  upload: [100_000, ['--upload']],
  download: [100_000, ['--download']],
  relay: [200_000, ['--inflight', '2']],
}

test.before('the load generator is built', (t) => {
  const { status, stderr } = spawnSync('cargo', ['build', '--release', '-p', 'netpoll-load'], { cwd: root })
  t.is(status, 0, String(stderr))
})

const MEASURE = ['--duration', '0.05', '--warmup', '0.05']

/** Clients run on the core of the load. */
const withTwoCores = availableParallelism() > 1 ? test.serial : test.serial.skip

for (const peer of findPeers(['netpoll', 'net', 'floor'], {})) {
  for (const [service, [size, flags]] of Object.entries(SERVICES)) {
    test.serial(
      `the ${service} server of ${peer.name} answers every request, whole and in order`,
      async (t) => {
        const upstream = await startServer(findPeers(['floor'], {})[0], { service: 'echo' })
        t.teardown(() => upstream.server.kill())
        const { server, port } = await startServer(peer, { service, size, upstream: upstream.port })
        t.teardown(() => server.kill())
        const load = startRun(t, port, '--connections', '3', '--size', `${size}`, ...flags)
        const { errors } = await measured(load)
        t.is(errors, 0)
        await load.ended()
      },
    )
  }

  withTwoCores(`a client calls the server of ${peer.name}`, async (t) => {
    const { server, port } = await startServer(peer, { service: 'echo' })
    t.teardown(() => server.kill())
    const client = peer.client(port, [1000, 0.05, 0.05])
    t.teardown(() => client.kill())
    const { requests } = await measured(client)
    t.true(requests >= 0)
    await client.ended()
  })
}

test.serial('a load with a pace and a firehose holds its connections until it may end', async (t) => {
  const { server, port } = await startServer(findPeers(['floor'], {})[0], { service: 'echo' })
  t.teardown(() => server.kill())
  const pace = ['--pace', '1000', '--inflight', '1000']
  const options = ['--connections', '3', '--size', '64', '--firehose', '100000', '--hold']
  const load = startRun(t, port, ...options, ...pace)
  const { requests, firehose, errors } = await measured(load)
  t.true(requests <= 102, 'one each millisecond of the warm-up and of the measurement')
  t.true(firehose >= 0)
  t.is(errors, 0)
  load.closeInput()
  await load.ended()
})

test('every service of a scenario is tried', (t) => {
  t.deepEqual(
    Object.keys(SERVICES).toSorted(),
    [...new Set(scenarios.map(({ service }) => service))].toSorted(),
  )
})

function startRun(t, port, ...options) {
  const load = new Child('0', [loadBinary, 'run', '--port', port, ...options, ...MEASURE])
  t.teardown(() => load.kill())
  return load
}

/** What a load or a client says in the end. */
async function measured(child) {
  await child.expect('start')
  await child.expect('end')
  return JSON.parse(await child.line())
}
