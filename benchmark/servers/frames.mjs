const HEADER = 4

/**
 * How many of the bytes, which begin with a frame (u32 big-endian length and body), belong to complete frames.
 *
 * @param {Buffer} bytes
 */
export function completeFrames(bytes) {
  let end = 0
  while (bytes.length - end >= HEADER) {
    const next = end + HEADER + bytes.readUInt32BE(end)
    if (next > bytes.length) break
    end = next
  }
  return end
}

/** The lengths of the complete frames, with their headers, one after the other. */
export function* eachFrame(bytes) {
  for (let start = 0; bytes.length - start >= HEADER;) {
    const length = HEADER + bytes.readUInt32BE(start)
    if (length > bytes.length - start) return
    yield length
    start += length
  }
}
