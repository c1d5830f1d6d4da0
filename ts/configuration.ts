import { boolean, checkOptions, integer, invalidType, oneOf } from './arguments.js'
import { NetpollError } from './errors.js'

/** How the poll of a new connection is chosen: `'least-connections'` is the one that has fewest. */
export type LoadBalance = 'round-robin' | 'random' | 'least-connections'

/** Polls that an environment may have. */
const MAX_LOOPS = 64

/** What can be set before the first use of this Node environment (the main thread or a worker). */
export interface Configuration {
  /**
   * Bytes of blocks, pinned Buffers and backlogs of all connections together. From 3/4 of it on only those are
   * read that can bring memory back, at all of it the connections fail that hold most and bring none: see
   * docs/architecture.md. Default: a quarter of the memory of the cgroup or the machine; 16 MiB at least.
   */
  maxMemory?: number
  /** Polls, each a thread of its own that does the I/O of its connections; 1 to 64. Default: NETPOLL_NUM_LOOPS, or 1. */
  numLoops?: number
  /** Which poll a new connection comes to. Default: `'round-robin'`. */
  loadBalance?: LoadBalance
  /** Who runs the polls: `'thread'` (a thread of their own), or `'adaptive'` (default; at present the same). */
  driver?: 'adaptive' | 'loop' | 'thread'
  /** Views are copies that release() detaches, so that late use is seen at once. Default: NETPOLL_DEBUG=1. */
  debug?: boolean
}

/** @internal */
export const numLoops = integer(1, MAX_LOOPS)

/** @internal */
export const loadBalance = oneOf('round-robin', 'random', 'least-connections')

const OPTIONS = {
  numLoops,
  loadBalance,
  maxMemory: integer(16 << 20, Number.MAX_SAFE_INTEGER),
  driver: oneOf('adaptive', 'loop', 'thread'),
  debug: boolean,
}

/** @internal */
export const configuration = {
  /** 0 = the default. */
  numLoops: 0,
  loadBalance: 'round-robin' as LoadBalance,
  /** 0 = the default. */
  maxMemory: 0,
  debug: process.env.NETPOLL_DEBUG === '1',
  /** The environment is open. */
  inUse: false,
}

/**
 * Sets the polls and limits of this environment, before anything else of the library is used.
 * Throws ERR_NETPOLL_INVALID_STATE after that, ERR_NETPOLL_UNSUPPORTED for driver `'loop'`.
 */
export function configure(options: Configuration): void {
  if (options === undefined) throw invalidType('options', 'an object', options)
  checkOptions(options, OPTIONS)
  if (options.driver === 'loop') {
    throw new NetpollError('ERR_NETPOLL_UNSUPPORTED', "The driver 'loop' is not supported here")
  }
  if (configuration.inUse) {
    throw new NetpollError(
      'ERR_NETPOLL_INVALID_STATE',
      'configure() comes before the first listener or LinkBuffer',
    )
  }
  configuration.numLoops = options.numLoops ?? configuration.numLoops
  configuration.loadBalance = options.loadBalance ?? configuration.loadBalance
  configuration.maxMemory = options.maxMemory ?? configuration.maxMemory
  configuration.debug = options.debug ?? configuration.debug
}
