import { openEnvironment } from './environment.js'
import type { NativeStats, PollStats } from './native.js'

export interface PollStatistics extends Omit<PollStats, 'isOnThread'> {
  /** Who runs its turns now: a thread of its own, or the Node loop. */
  driver: 'loop' | 'thread'
  /** How often the driver has changed. */
  flips: number
}

/** Calls that sent 64 KiB or more at once; what becomes of those that are under way is counted when it is known. */
export interface ZeroCopyStatistics {
  /** Without a copy. */
  sent: number
  /** Of these, those that the kernel reports to have copied all the same, as on the same machine it always does. */
  copied: number
  /** With a copy, for the kernel had no room for one more without: net.core.optmem_max, RLIMIT_MEMLOCK. */
  fallbacks: number
}

/** Counts since the start of this Node environment, except where they say what is so now. */
export interface Statistics {
  /** Open now. */
  connections: number
  turns: number
  wakeups: number
  /** Calls that told JavaScript of a batch; `records / doorbells` is the size of a batch. */
  doorbells: number
  records: number
  /** Reads, sends and accepts. */
  syscalls: number
  /** Blocks with JavaScript or a poll now, and their bytes. */
  blocksOut: number
  bytesOut: number
  /** Bytes of all chunks, mapped now. */
  chunkBytes: number
  maxMemory: number
  /** Buffers of users that are being sent now. */
  pinnedSends: number
  /** Of `configure({ zeroCopy })`: docs/zero_copy.md. */
  zeroCopy: ZeroCopyStatistics
  /** Those that are there now; the sums above are also of those that setNumLoops() has ended. */
  polls: PollStatistics[]
}

const NOTHING: NativeStats = { polls: [], blocksOut: 0, bytesOut: 0, chunkBytes: 0, maxMemory: 0, pins: 0 }

/** What this Node environment does; all 0 before the first listener or LinkBuffer. */
export function stats(): Statistics {
  const environment = openEnvironment()
  const { polls, pins, ...memory } = environment?.native.stats() ?? NOTHING
  const present = environment?.polls.length ?? 0
  const sum = (count: (poll: PollStats) => number) => polls.reduce((total, poll) => total + count(poll), 0)
  return {
    connections: sum((poll) => poll.connections),
    turns: sum((poll) => poll.turns),
    wakeups: sum((poll) => poll.wakeups),
    doorbells: sum((poll) => poll.doorbells),
    records: sum((poll) => poll.records),
    syscalls: sum((poll) => poll.reads + poll.sends + poll.accepts),
    ...memory,
    pinnedSends: pins,
    zeroCopy: {
      sent: sum((poll) => poll.lent),
      copied: sum((poll) => poll.copied),
      fallbacks: sum((poll) => poll.fallbacks),
    },
    polls: polls.slice(0, present).map(({ isOnThread, ...poll }) => ({
      ...poll,
      driver: isOnThread ? ('thread' as const) : ('loop' as const),
    })),
  }
}
