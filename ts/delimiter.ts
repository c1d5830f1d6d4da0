import { checkInteger, invalidType, outOfRange } from './arguments.js'
import type { Segment } from './segment.js'

/** A byte (0 to 255), a text (in UTF-8) or bytes, one at least. */
export type Delimiter = number | string | Uint8Array

/** Of delimiters that are no bytes: a protocol knows a few, and asks for them again and again. */
const known = new Map<Delimiter, Buffer>()
const MAX_KNOWN = 256

/** The bytes of `delimiter`, which are nobody else's. */
export function needleOf(delimiter: Delimiter): Buffer {
  const needle = known.get(delimiter)
  if (needle !== undefined) return needle
  const made = makeNeedle(delimiter)
  if (typeof delimiter !== 'object' && made.length <= MAX_KNOWN && known.size < MAX_KNOWN)
    known.set(delimiter, made)
  return made
}

function makeNeedle(delimiter: Delimiter): Buffer {
  if (typeof delimiter === 'number') {
    checkInteger(delimiter, 'delimiter', 0, 255)
    return Buffer.of(delimiter)
  }
  if (typeof delimiter !== 'string' && !(delimiter instanceof Uint8Array)) {
    throw invalidType('delimiter', 'a number, a string or a Uint8Array', delimiter)
  }
  if (delimiter.length === 0) throw outOfRange('delimiter', 'one byte at least', delimiter)
  return Buffer.from(delimiter as string)
}

/** Whether `needle` lies at `at` of the segment and goes on in the next ones. */
export function matches(segment: Segment, at: number, needle: Buffer): boolean {
  let here: Segment | null = segment
  for (const byte of needle) {
    while (here !== null && at === here.end) {
      here = here.next
      at = here === null ? 0 : here.start
    }
    if (here === null || here.block!.bytes[at++] !== byte) return false
  }
  return true
}
