import { startLoad } from '../peers.mjs'
import { withChild, withServer } from './server.mjs'

/** Bytes that an idle connection costs, before and after one request. */
export async function measureIdle(peer, scenario) {
  return { before: await slope(peer, scenario, false), after: await slope(peer, scenario, true) }
}

async function slope(peer, scenario, request) {
  const { few, many, size } = scenario
  return withServer(peer, scenario, (server, port) =>
    withChild(startLoad('idle', port, { size }), async (load) => {
      const memory = async (count) => {
        load.write(`open ${count}`)
        await load.expect(`up ${count}`)
        if (request) {
          load.write('request')
          await load.expect(`asked ${count}`)
        }
        await server.ask('collect')
        return server.rss()
      }
      const base = await memory(few)
      return ((await memory(many)) - base) / (many - few)
    }),
  )
}
