import { startLoad } from '../peers.mjs'
import { withChild, withServer } from './server.mjs'

/** @typedef {{ seconds: number, warmup: number }} Settings */

/** A server under load. */
export async function measureLoad(peer, scenario, settings) {
  return withServer(peer, scenario, (server, port) =>
    withChild(startRun(port, scenario, settings), (load) => figuresOf(server, load, peer)),
  )
}

/** As measureLoad, by calls of the peer's own client. */
export async function measureClient(peer, scenario, { seconds, warmup }) {
  return withServer(peer, scenario, (server, port) =>
    withChild(peer.client(port, [scenario.size, seconds, warmup]), (load) => figuresOf(server, load, peer)),
  )
}

/** As measureLoad, while the server notes how late its timers are. */
export async function measureTimers(peer, scenario, settings) {
  return withServer(peer, scenario, (server, port) =>
    withChild(startRun(port, scenario, settings), async (load) => {
      await server.ask('probe')
      return figuresOf(server, load, peer)
    }),
  )
}

export function startRun(port, { size, load, churn }, { seconds, warmup }, more = {}) {
  return startLoad(churn ? 'churn' : 'run', port, { size, ...load, duration: seconds, warmup, ...more })
}

async function figuresOf(server, load, { javascript }) {
  await load.expect('start')
  const before = { server: server.cpu(), load: load.cpu() }
  const begun = server.ask('begin')
  await load.expect('end')
  const after = { server: server.cpu(), load: load.cpu() }
  const rss = server.rss()
  await begun
  const inside = await server.ask('end')
  const { requests, seconds, ...client } = JSON.parse(await load.line())
  await load.ended()
  if (!(requests > 0)) throw new Error(`no request was answered in ${seconds} s`)
  const each = (nanoseconds) => nanoseconds / 1000 / requests
  return {
    ...client,
    rss,
    cpu: each(after.server.all - before.server.all),
    loadCpu: each(after.load.all - before.load.all),
    loadBusy: (after.load.all - before.load.all) / 1e9 / seconds,
    ...(javascript && { js: each(after.server.main - before.server.main) }),
    ...(javascript && insideFigures(inside, requests, seconds)),
  }
}

function insideFigures({ heap, gc, delays }, requests, seconds) {
  return {
    heap: heap / requests,
    gc: gc / 1e6 / seconds,
    ...(delays && { timerP99: quantile(delays, 0.99), timerMax: delays.at(-1), timers: delays.length }),
  }
}

/** `sorted` begins with the smallest. */
function quantile(sorted, share) {
  return sorted[Math.ceil(sorted.length * share) - 1]
}
