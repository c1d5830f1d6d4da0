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
