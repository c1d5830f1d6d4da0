/**
 * The numbers of docs/border.md. crates/netpoll/src/record.rs is the other copy of them, and a test
 * compares the two. They are const enums so that the hot path holds literals.
 */

export const enum Control {
  SCHEDULED = 0,
  STOP = 1,
  BYTES = 64,
}

export const enum Header {
  COMPLETION_TAIL = 0,
  COMPLETION_BACKLOGGED = 1,
  DIED = 2,
  SCARCE = 3,
  RETIRED = 4,
  ON_LOOP = 5,
  COMPLETION_HEAD = 16,
  SUBMISSION_TAIL = 32,
  SUBMISSION_BACKLOGGED = 33,
  SUBMISSION_HEAD = 48,
  SLEEPING = 49,
  WORDS = 64,
}

/** Sizes in words. */
export const enum Size {
  RECORD = 8,
  STATUS = 8,
  ADDRESS = 16,
}

export const enum Completion {
  ACCEPT = 1,
  DATA = 2,
  EOF = 3,
  CLOSED = 4,
  DRAINED = 5,
  UNPIN = 6,
  TIMEOUT = 7,
  LISTENER = 8,
  DIALED = 9,
  MOVED = 10,
  DETACHED = 11,
  INFO = 12,
  ARRIVED = 13,
  DIAL_MOVED = 14,
}

export const enum Submission {
  DONE = 1,
  SEND = 2,
  SEND_PIN = 3,
  INPUT = 4,
  WATCH_DRAIN = 5,
  PAUSE = 6,
  RESUME = 7,
  TIMER = 8,
  OPTION = 9,
  END = 10,
  CLOSE = 11,
  RESET = 12,
  ACK = 13,
  MOVE_ACK = 14,
  DETACH = 15,
  INFO = 16,
  SEND_LENT = 17,
}

/** Of the header's word RETIRED. */
export const enum Retired {
  EMPTY = 1,
  ENDED = 2,
}

export const enum Timer {
  READ = 1,
  IDLE = 2,
  WRITE = 3,
}

export const enum Option {
  NO_DELAY = 1,
  KEEP_ALIVE = 2,
  USER_TIMEOUT = 3,
}

export const enum Cause {
  WRITE_TIMEOUT = -1,
  OUTPUT_LIMIT = -2,
  INPUT_LIMIT = -3,
  DIAL_TIMEOUT = -4,
}

export const enum Status {
  GENERATION = 0,
  FLAGS = 1,
  READ = 2,
  SENT = 4,
  CARRY = 6,
}

export const enum Flag {
  READ_ENDED = 1,
  WRITE_ENDED = 2,
  CLOSED = 4,
}
