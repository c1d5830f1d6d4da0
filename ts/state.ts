/** What a connection is and has gone through, as bits of one word. */
export const enum State {
  /** It is on the environment's ready list. */
  QUEUED = 1 << 0,
  /** onConnect or onRequest runs, or its promise is pending. */
  BUSY = 1 << 1,
  /** The one of them that is busy is onConnect. */
  CONNECTING = 1 << 2,
  /** onConnect has been called, or there is none. */
  CONNECTED = 1 << 3,
  /** onPrepare has failed or closed it: no other handler is called. */
  REJECTED = 1 << 4,
  /** onRequest is due, as soon as it may run. */
  NEWS = 1 << 5,
  /** The peer has finished sending. */
  PEER_ENDED = 1 << 6,
  /** end() was called. */
  ENDED = 1 << 7,
  /** The peer's FIN has been answered by ours. */
  ANSWERED = 1 << 8,
  /** close() or reset() was called, or a limit was passed. */
  CLOSING = 1 << 9,
  RESET = 1 << 10,
  /** The descriptor is closed. */
  CLOSED = 1 << 11,
  /** The poll has its slot back. */
  ACKNOWLEDGED = 1 << 12,
  /** onDisconnect and the close callbacks have been called. */
  FINISHED = 1 << 13,
  PAUSED = 1 << 14,
  UNREFED = 1 << 15,
  ITERATING = 1 << 16,
  /** The idle timeout has passed while a handler was running. */
  IDLE_DUE = 1 << 17,
  /** A Duplex reads it. */
  STREAMED = 1 << 18,
  /** It is on its way to another poll. */
  MOVING = 1 << 20,
}
