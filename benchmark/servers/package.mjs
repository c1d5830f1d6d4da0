// This package, or another checkout of it that is measured beside it, configured as the harness wants.
const { NETPOLL_BENCH_PACKAGE, NETPOLL_BENCH_DRIVER, NETPOLL_BENCH_LOOPS, NETPOLL_BENCH_BUSY_POLL } =
  process.env

const folder = NETPOLL_BENCH_PACKAGE ?? new URL('../..', import.meta.url).pathname

export const { configure, createEventLoop, createListener, dialConnection } = await import(
  `${folder}/index.js`
)
export const { ShardQueue } = await import(`${folder}/mux.js`)

const options = {
  ...(NETPOLL_BENCH_DRIVER && { driver: NETPOLL_BENCH_DRIVER }),
  ...(NETPOLL_BENCH_LOOPS && { numLoops: Number(NETPOLL_BENCH_LOOPS) }),
  ...(NETPOLL_BENCH_BUSY_POLL && { busyPoll: Number(NETPOLL_BENCH_BUSY_POLL) }),
}
// Without a word about it the package is measured as it comes.
if (Object.keys(options).length > 0) configure(options)
