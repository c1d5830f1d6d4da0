import { setImmediate } from 'node:timers/promises'
import { GCProfiler } from 'node:v8'

const answers = { collect, begin, probe, end }
let memory
let delays

/** Tells the harness that clients can come, answers what it asks, and ends with it. */
export function ready(port) {
  process.on('message', async (name) => process.send((await answers[name]()) ?? null))
  process.on('disconnect', () => process.exit())
  console.log(`ready ${port}`)
}

async function collect() {
  // What a collection frees through finalizers is garbage only for the next one.
  for (let round = 0; round < 4; round++) {
    globalThis.gc()
    await setImmediate()
  }
}

/** A measurement begins. */
function begin() {
  memory = new Allocations()
}

/** From now on it is noted how late a timer of 0 ms is, which Node takes for 1 ms. */
function probe() {
  delays = []
  const next = () => {
    const due = performance.now() + 1
    setTimeout(() => {
      delays.push(Math.max(0, performance.now() - due))
      next()
    }, 0)
  }
  next()
}

/** What has happened since the beginning. */
function end() {
  return { ...memory.end(), delays: delays?.toSorted((a, b) => a - b) }
}

/** Bytes of JavaScript's heap that were allocated, and the time of the collections between. */
class Allocations {
  #profiler = new GCProfiler()
  #before = process.memoryUsage().heapUsed

  constructor() {
    this.#profiler.start()
  }

  end() {
    const { statistics } = this.#profiler.stop()
    let heap = process.memoryUsage().heapUsed - this.#before
    let gc = 0
    for (const { cost, beforeGC, afterGC } of statistics) {
      heap += beforeGC.heapStatistics.usedHeapSize - afterGC.heapStatistics.usedHeapSize
      gc += cost
    }
    return { heap, gc }
  }
}
