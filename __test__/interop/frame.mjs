// The frames of the interop programs: a u32 with the length of the body, a u32 with its number, both big endian,
// and the body.

import { createHash, randomFillSync } from 'node:crypto'

const HEAD_SIZE = 8

export function newFrame(number, size) {
  const bytes = Buffer.allocUnsafeSlow(HEAD_SIZE + size)
  bytes.writeUInt32BE(size, 0)
  bytes.writeUInt32BE(number, 4)
  randomFillSync(bytes, HEAD_SIZE)
  return bytes
}

export function numberOf(frame) {
  return frame.readUInt32BE(4)
}

/** A whole frame that is here already, or undefined. */
export function takeFrame(reader) {
  if (reader.length < HEAD_SIZE) return undefined
  const size = HEAD_SIZE + reader.peek(4).readUInt32BE()
  return reader.length < size ? undefined : reader.readBinary(size)
}

/** Waits for a whole frame; undefined when the stream has ended before its first byte. */
export async function readFrame(reader) {
  try {
    await reader.waitRead(HEAD_SIZE)
  } catch (error) {
    if (error.code === 'ERR_NETPOLL_EOF' && reader.length === 0) return undefined
    throw error
  }
  const size = HEAD_SIZE + reader.peek(4).readUInt32BE()
  await reader.waitRead(size)
  const frame = reader.readBinary(size)
  reader.release()
  return frame
}

/** Of frames in one direction. Its hash does not depend on their order, which is free where many send. */
export class Tally {
  digests = []
  bytes = 0

  add(frame) {
    this.digests.push(createHash('sha256').update(frame.subarray(4)).digest('hex'))
    this.bytes += frame.length
  }

  summary() {
    const hash = createHash('sha256').update(this.digests.toSorted().join('')).digest('hex')
    return { frames: this.digests.length, bytes: this.bytes, hash }
  }
}
