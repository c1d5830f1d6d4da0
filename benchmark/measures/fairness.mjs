import { startRun } from './load.mjs'
import { withChild, withServer } from './server.mjs'

/** How long requests take beside a connection that sends as fast as it can, and without it. */
export async function measureFairness(peer, scenario, settings) {
  const alone = await ping(peer, scenario, settings, {})
  const beside = await ping(peer, scenario, settings, { firehose: scenario.firehose })
  return {
    aloneP50: alone.p50,
    aloneP99: alone.p99,
    besideP50: beside.p50,
    besideP99: beside.p99,
    besideMax: beside.max,
    firehose: beside.firehose,
  }
}

async function ping(peer, scenario, settings, more) {
  return withServer(peer, scenario, (server, port) =>
    withChild(startRun(port, scenario, settings, more), async (load) => {
      await load.expect('start')
      await load.expect('end')
      const answer = JSON.parse(await load.line())
      await load.ended()
      return answer
    }),
  )
}
