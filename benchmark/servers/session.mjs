import { setImmediate } from 'node:timers/promises'

/** Tells the harness that clients can come, collects garbage when it asks, and ends with it. */
export function ready(port) {
  process.on('message', async () => {
    // What a collection frees through finalizers is garbage only for the next one.
    for (let round = 0; round < 4; round++) {
      globalThis.gc()
      await setImmediate()
    }
    process.send('collected')
  })
  process.on('disconnect', () => process.exit())
  console.log(`ready ${port}`)
}
