// A server that runs out of descriptors rests and goes on, again and again.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { connect, take, until } from './fixtures/peer.mjs'

const fixture = fileURLToPath(new URL('fixtures/few_descriptors.mjs', import.meta.url))
const CLIENTS = 500
/** How long the server is watched while it is full. */
const WINDOW = 1000

test('with 64 descriptors, 500 clients are served, three times over, without a spin and without silence', async (t) => {
  const child = spawn('sh', ['-c', `ulimit -n 64 && exec "$0" "$1"`, process.execPath, fixture], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  t.teardown(() => void child.kill())
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  const port = Number((await lines.next()).value)
  const report = async () => {
    child.stdin.write('\n')
    return JSON.parse((await lines.next()).value)
  }

  for (let round = 0; round < 3; round++) {
    const clients = await Promise.all(Array.from({ length: CLIENTS }, () => connect(port)))
    for (const client of clients) client.write('ask')
    let full = await report()
    await until(async () => {
      const later = await report()
      const settled = later.accepts === full.accepts && later.connections > 0
      full = later
      return settled
    })
    t.true(full.connections < 64)

    // It does not spin: it tries again every 50 ms, in few turns, and uses next to no CPU.
    await setTimeout(WINDOW)
    const later = await report()
    t.true(later.turns - full.turns < 10 * (WINDOW / 50), `${later.turns - full.turns} turns`)
    const used = later.cpu.user + later.cpu.system - full.cpu.user - full.cpu.system
    t.true(used < WINDOW * 1000 * 0.3, `${used} us of CPU`)

    // Those who are in are answered, and make room for those who wait.
    await Promise.all(
      clients.map(async (client) => {
        t.is((await take(client, 3)).toString(), 'ask')
        client.destroy()
      }),
    )
    await until(async () => (await report()).connections === 0)
    t.is((await report()).accepts, CLIENTS * (round + 1))
  }
  child.stdin.end()
  t.deepEqual(await once(child, 'close'), [0, null])
})
