import { boolean, checkOptions, integer, invalidType, oneOf } from './arguments.js'
import { NetpollError } from './errors.js'
import { hasLoopDriver } from './native.js'

/** How the poll of a new connection is chosen: `'least-connections'` is the one that has fewest. */
export type LoadBalance = 'round-robin' | 'random' | 'least-connections'

/** Who runs the turns of polls. */
export type Driver = 'adaptive' | 'loop' | 'thread'

/** Whether large output is sent from where it lies: docs/zero_copy.md. */
export type ZeroCopy = 'auto' | 'always' | 'off'

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
  /**
   * Polls, each of which does the I/O of its connections; 1 to 64. Default: NETPOLL_NUM_LOOPS, or 1 whatever the
   * number of cores: see docs/performance.md.
   */
  numLoops?: number
  /** Which poll a new connection comes to. Default: `'round-robin'`. */
  loadBalance?: LoadBalance
  /**
   * Who runs the polls: a thread of each (`'thread'`); the Node loop (`'loop'`), on which a request wakes no other
   * thread; or the loop while there is little to do at a time and the thread while there is much (`'adaptive'`).
   * Default: NETPOLL_DRIVER, or `'adaptive'`. Without libuv in the runtime `'adaptive'` is `'thread'`; stats() shows
   * which it is. See docs/performance.md.
   */
  driver?: Driver
  /**
   * Microseconds for which a poll looks for more instead of sleeping, after requests that follow each other more
   * closely than that; 0 to 1000. A thread does so only where a core is to spare. Default: 50; 0 = never.
   */
  busyPoll?: number
  /**
   * Whether the kernel sends 64 KiB and more from where they lie (MSG_ZEROCOPY): `'off'`, `'auto'` (each connection
   * until the kernel reports that it had to copy all the same), or `'always'`. What is sent so counts as pending until
   * the peer's kernel has acknowledged it. Default: NETPOLL_ZERO_COPY, or `'off'`. See docs/zero_copy.md.
   */
  zeroCopy?: ZeroCopy
  /** Views are copies that release() detaches, so that late use is seen at once. Default: NETPOLL_DEBUG=1. */
  debug?: boolean
}

/** @internal */
export const numLoops = integer(1, MAX_LOOPS)

/** @internal */
export const loadBalance = oneOf('round-robin', 'random', 'least-connections')

/** @internal */
export const driver = oneOf('adaptive', 'loop', 'thread')

/** @internal */
export const zeroCopy = oneOf('auto', 'always', 'off')

const OPTIONS = {
  numLoops,
  loadBalance,
  maxMemory: integer(16 << 20, Number.MAX_SAFE_INTEGER),
  driver,
  busyPoll: integer(0, 1000),
  zeroCopy,
  debug: boolean,
}

/** @internal */
export const configuration = {
  /** 0 = the default. */
  numLoops: 0,
  loadBalance: 'round-robin' as LoadBalance,
  /** 0 = the default. */
  maxMemory: 0,
  /** undefined = the default. */
  driver: undefined as Driver | undefined,
  busyPoll: 50,
  zeroCopy: undefined as ZeroCopy | undefined,
  debug: process.env.NETPOLL_DEBUG === '1',
  /** The environment is open. */
  inUse: false,
}

/**
 * Sets the polls and limits of this environment, before anything else of the library is used.
 * Throws ERR_NETPOLL_INVALID_STATE after that, ERR_NETPOLL_UNSUPPORTED for driver `'loop'` in a
 * runtime without libuv.
 */
export function configure(options: Configuration): void {
  if (options === undefined) throw invalidType('options', 'an object', options)
  checkOptions(options, OPTIONS)
  if (options.driver !== undefined) checkLoopDriver(options.driver)
  if (configuration.inUse) {
    throw new NetpollError(
      'ERR_NETPOLL_INVALID_STATE',
      'configure() comes before the first listener or LinkBuffer',
    )
  }
  configuration.numLoops = options.numLoops ?? configuration.numLoops
  configuration.loadBalance = options.loadBalance ?? configuration.loadBalance
  configuration.driver = options.driver ?? configuration.driver
  configuration.busyPoll = options.busyPoll ?? configuration.busyPoll
  configuration.maxMemory = options.maxMemory ?? configuration.maxMemory
  configuration.zeroCopy = options.zeroCopy ?? configuration.zeroCopy
  configuration.debug = options.debug ?? configuration.debug
}

/** @internal Of createEventLoop(): configure({ driver }), unless that driver is chosen already. */
export function chooseDriver(wanted: Driver): void {
  checkLoopDriver(wanted)
  const { driver: chosen, inUse } = configuration
  if (chosen !== wanted && (chosen !== undefined || inUse)) {
    throw new NetpollError(
      'ERR_NETPOLL_INVALID_STATE',
      `The driver of the polls, which all event loops share, is '${chosen}' already`,
    )
  }
  configuration.driver = wanted
}

function checkLoopDriver(wanted: Driver): void {
  if (wanted !== 'loop' || hasLoopDriver()) return
  throw new NetpollError(
    'ERR_NETPOLL_UNSUPPORTED',
    "The driver 'loop' needs libuv, which this runtime has not",
  )
}
