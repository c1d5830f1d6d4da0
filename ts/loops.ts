import { configuration, loadBalance, numLoops, type LoadBalance } from './configuration.js'
import { openEnvironment } from './environment.js'

/**
 * Sets how many polls do the I/O of this Node environment, 1 to 64, at any time. More come at once and get new
 * connections. Fewer: the connections of those that go move to the others, and lose neither a byte nor a deadline;
 * dials that are under way go on there too. A poll that has died is started anew. Resolves when done; calls take effect
 * one after the other. Throws ERR_OUT_OF_RANGE or ERR_INVALID_ARG_TYPE; rejects with ERR_NETPOLL_POLL_DIED when the
 * first poll has died, or one dies meanwhile, and with a system error when there is no descriptor or thread left.
 */
export function setNumLoops(n: number): Promise<void> {
  numLoops(n, 'n')
  const environment = openEnvironment()
  if (environment !== null) return environment.resize(n)
  configuration.numLoops = n
  return Promise.resolve()
}

/**
 * Sets how the polls of new connections are chosen from now on: one after the other (`'round-robin'`, the default), at
 * random, or the one that has fewest connections. Throws ERR_INVALID_ARG_VALUE.
 */
export function setLoadBalance(kind: LoadBalance): void {
  loadBalance(kind, 'kind')
  configuration.loadBalance = kind
  openEnvironment()?.native.setLoadBalance(kind)
}
