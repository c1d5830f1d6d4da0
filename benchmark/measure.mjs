import { startLoad, startServer } from './peers.mjs'

/**
 * @typedef {object} Figures of one measurement; times in microseconds
 * @property {number} throughput requests a second
 * @property {number} p50
 * @property {number} p99
 * @property {number} p999
 * @property {number} cpu of all threads of the server, per request
 * @property {number} js of the server's first thread, per request
 * @property {number} loadBusy share of the time in which the load generator was on its core
 */

/**
 * One scenario on a fresh server.
 *
 * @param {string} peer
 * @param {import('./scenarios.mjs').Scenario} scenario
 * @param {{ seconds: number, warmup: number }} settings
 * @returns {Promise<Figures>}
 */
export async function measure(peer, scenario, { seconds, warmup }) {
  return withServer(peer, scenario.service, async (server, port) => {
    const { service, size, connections, inflight } = scenario
    const framing = service === 'frame' ? { frame: true } : {}
    const load = startLoad('run', port, {
      connections,
      size,
      inflight,
      duration: seconds,
      warmup,
      ...framing,
    })
    try {
      await expect(load, 'start')
      const before = { server: server.cpu(), load: load.cpu() }
      await expect(load, 'end')
      const after = { server: server.cpu(), load: load.cpu() }
      const { requests, seconds: measured, throughput, p50, p99, p999 } = JSON.parse(await load.line())
      await load.ended()
      if (requests === 0) throw new Error('no request was answered')
      return {
        throughput,
        p50,
        p99,
        p999,
        cpu: (after.server.all - before.server.all) / 1000 / requests,
        js: (after.server.main - before.server.main) / 1000 / requests,
        loadBusy: (after.load.all - before.load.all) / 1e9 / measured,
      }
    } finally {
      await load.kill()
    }
  })
}

/**
 * Bytes that an idle connection costs, before and after one request.
 *
 * @param {string} peer
 * @param {typeof import('./scenarios.mjs').idle} scenario
 */
export async function measureIdle(peer, scenario) {
  return { before: await slope(peer, scenario, false), after: await slope(peer, scenario, true) }
}

async function slope(peer, { few, many, size }, request) {
  return withServer(peer, 'echo', async (server, port) => {
    const load = startLoad('idle', port, { size })
    const memory = async (count) => {
      load.write(`open ${count}`)
      await expect(load, `up ${count}`)
      if (request) {
        load.write('request')
        await expect(load, `asked ${count}`)
      }
      if (peer !== 'floor') await server.ask('collect')
      return server.rss()
    }
    try {
      const base = await memory(few)
      return ((await memory(many)) - base) / (many - few)
    } finally {
      await load.kill()
    }
  })
}

async function withServer(peer, service, use) {
  const { server, port } = await startServer(peer, service)
  try {
    return await use(server, port)
  } finally {
    await server.kill()
  }
}

async function expect(child, wanted) {
  const line = await child.line()
  if (line !== wanted) throw new Error(`expected ${wanted}, got ${line}`)
}
