// One call after the other, measured as the load generator measures: `start`, `end`, and a line of JSON.

/** The port of the server, bytes of a request and of its answer, seconds that count, and before them. */
export const [port, size, seconds, warmup] = process.argv.slice(2).map(Number)

/** @param {(request: Buffer) => Promise<void>} call resolves when the whole answer has come */
export async function measureCalls(call) {
  const request = Buffer.alloc(size, 'x')
  await callUntil(performance.now() + warmup * 1000, call, request)
  console.log('start')
  const start = performance.now()
  const times = await callUntil(start + seconds * 1000, call, request)
  const taken = (performance.now() - start) / 1000
  console.log('end')
  times.sort((a, b) => a - b)
  const quantile = (share) => times[Math.ceil(times.length * share) - 1] * 1000
  const [p50, p99, p999] = [0.5, 0.99, 0.999].map(quantile)
  const throughput = times.length / taken
  console.log(JSON.stringify({ requests: times.length, seconds: taken, throughput, p50, p99, p999 }))
}

async function callUntil(end, call, request) {
  const times = []
  for (let now = performance.now(); now < end;) {
    await call(request)
    const then = now
    now = performance.now()
    times.push(now - then)
  }
  return times
}
