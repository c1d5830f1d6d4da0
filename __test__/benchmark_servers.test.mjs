// Every server of the benchmarks answers as the load generator expects, which checks each byte. Nothing is timed.

import { spawnSync } from 'node:child_process'
import test from 'ava'
import { Child } from '../benchmark/child.mjs'
import { findPeers, loadBinary, startServer } from '../benchmark/peers.mjs'

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

for (const peer of findPeers(['netpoll', 'net', 'floor'], {})) {
  for (const [service, [size, flags]] of Object.entries(SERVICES)) {
    test.serial(
      `the ${service} server of ${peer.name} answers every request, whole and in order`,
      async (t) => {
        const upstream = await startServer(findPeers(['floor'], {})[0], { service: 'echo' })
        t.teardown(() => upstream.server.kill())
        const { server, port } = await startServer(peer, { service, size, upstream: upstream.port })
        t.teardown(() => server.kill())
        const measure = ['--connections', '3', '--duration', '0.05', '--warmup', '0.05']
        const load = new Child('0', [
          loadBinary,
          'run',
          '--port',
          port,
          '--size',
          `${size}`,
          ...flags,
          ...measure,
        ])
        t.teardown(() => load.kill())
        await load.expect('start')
        await load.expect('end')
        t.is(JSON.parse(await load.line()).errors, 0)
        await load.ended()
      },
    )
  }
}
