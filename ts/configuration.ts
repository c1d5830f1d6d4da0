import { boolean, checkOptions, integer, invalidType, oneOf } from './arguments.js'
import { NetpollError } from './errors.js'

/** What can be set before the first use of this Node environment (the main thread or a worker). */
export interface Configuration {
  /**
   * Bytes of blocks, pinned Buffers and backlogs of all connections together. From 3/4 of it on only those are
   * read that can bring memory back, at all of it the connections fail that hold most and bring none: see
   * docs/architecture.md. Default: a quarter of the memory of the cgroup or the machine; 16 MiB at least.
   */
  maxMemory?: number
  /** Who runs the polls: `'thread'` (a thread of their own), or `'adaptive'` (default; at present the same). */
  driver?: 'adaptive' | 'loop' | 'thread'
  /** Views are copies that release() detaches, so that late use is seen at once. Default: NETPOLL_DEBUG=1. */
  debug?: boolean
}

const OPTIONS = {
  maxMemory: integer(16 << 20, Number.MAX_SAFE_INTEGER),
  driver: oneOf('adaptive', 'loop', 'thread'),
  debug: boolean,
}

/** @internal */
export const configuration = {
  /** 0 = the default. */
  maxMemory: 0,
  debug: process.env.NETPOLL_DEBUG === '1',
  /** The environment is open. */
  inUse: false,
}

/**
 * Sets the limits of this environment, before anything else of the library is used.
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
  configuration.maxMemory = options.maxMemory ?? configuration.maxMemory
  configuration.debug = options.debug ?? configuration.debug
}
