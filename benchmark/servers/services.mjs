// What the servers here have in common.

/** The service, the size that goes with it, and the port of the upstream of a relay. */
export const [, , service, size, upstream] = process.argv.map((word, index) =>
  index < 3 ? word : Number(word),
)

const REQUEST = 8
const COUNT = 8
const BURN = 0.02 // ms

let spun = 0

/** What answers a download. */
export const body = Buffer.alloc(service === 'download' ? size : 0).map((_, index) => index % 251)

/** How many chunks, or requests of a burn or a download, end when `length` bytes come behind `before` others. */
export function ended(before, length) {
  const each = service === 'download' ? REQUEST : size
  return Math.floor((before + length) / each) - Math.floor(before / each)
}

/** The answer to `count` uploads of which the last byte but a partial chunk is the `total`-th of the connection. */
export function counts(count, total) {
  const answer = Buffer.allocUnsafe(count * COUNT)
  const last = Math.floor(total / size)
  for (let index = 0; index < count; index++) {
    answer.writeBigUInt64BE(BigInt((last - count + 1 + index) * size), index * COUNT)
  }
  return answer
}

/** Keeps the core, once for each request. The clock is read rarely: each reading is garbage. */
export function burn(count) {
  const end = performance.now() + count * BURN
  while (performance.now() < end) for (let spin = 0; spin < 500; spin++) spun = (spun * 5 + 1) | 0
}

/** A call that is answered later, as one that looks something up would be. */
export async function call(frame) {
  await undefined
  return frame
}
