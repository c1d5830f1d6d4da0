import { setTimeout as delay } from 'node:timers/promises'
import { startRun } from './load.mjs'
import { withChild, withServer } from './server.mjs'

const BURST = { seconds: 0.3, warmup: 0.1 }

/** Milliseconds from the last answer to the beginning of what is measured, and of that. */
const BEFORE = 100
const LENGTH = 1000

/** The share of a core that a server takes when nothing comes, while all connections of a burst are open. */
export async function measureSilence(peer, scenario) {
  return withServer(peer, scenario, (server, port) =>
    withChild(startRun(port, scenario, BURST, { hold: true }), async (load) => {
      await load.expect('start')
      await load.expect('end')
      await load.line()
      await delay(BEFORE)
      const [before, begin] = [server.cpu(), performance.now()]
      await delay(LENGTH)
      const [after, end] = [server.cpu(), performance.now()]
      const share = (nanoseconds) => nanoseconds / 1e6 / (end - begin)
      return {
        silence: share(after.all - before.all),
        ...(peer.javascript && { silenceJs: share(after.main - before.main) }),
      }
    }),
  )
}
