import type { Connection } from './connection.js'
import type { Poll } from './poll.js'
import { Submission } from './record.js'
import { State } from './state.js'

/** Words of a record that is kept: kind and three arguments. */
const KEPT = 4

/**
 * A connection on its way from one poll to another: since MOVED, which MOVE_ACK has answered, until ARRIVED. What
 * JavaScript says of it meanwhile is kept for the new poll.
 */
export class Transit {
  private readonly kept: number[] = []

  constructor(
    /** By which the new poll names it. */
    readonly key: number,
    /** The number of the new poll. */
    readonly target: number,
  ) {}

  keep(kind: Submission, a: number, b: number, c: number): void {
    this.kept.push(kind, a, b, c)
  }

  /** ARRIVED: the connection is at the new poll, which is told what was kept. */
  arrive(connection: Connection, poll: Poll, slot: number, generation: number): void {
    const { poll: old, input, output } = connection
    // What the old poll has said of it lies in another ring, perhaps not looked at yet.
    if (old !== poll) old.take(Infinity)
    this.end(connection)
    old.connections[connection.slot] = null
    old.put(Submission.ACK, connection.slot, connection.generation, 0, 0, 0)
    connection.poll = poll
    connection.slot = slot
    connection.generation = generation
    poll.connections[slot] = connection
    if (input !== null) {
      input.memory = poll.memory
      if (poll.scarce) input.settle()
    }
    if (output !== null) output.memory = poll.memory
    this.deliver(connection)
  }

  private end(connection: Connection): void {
    connection.extra().transit = null
    connection.state &= ~State.MOVING
    connection.poll.environment.moving.delete(this.key)
  }

  private deliver(connection: Connection): void {
    const { kept } = this
    for (let at = 0; at < kept.length; at += KEPT)
      connection.put(kept[at]!, kept[at + 1]!, kept[at + 2]!, kept[at + 3]!)
  }

  /** It has ended on the way: gives back what was to be sent. */
  drop(connection: Connection): void {
    const { kept } = this
    const { poll } = connection
    this.end(connection)
    for (let at = 0; at < kept.length; at += KEPT) {
      if (kept[at] === Submission.SEND_LENT) poll.memory.unshare(kept[at + 1]!, kept[at + 2]!, 1)
      else if (kept[at] === Submission.SEND_PIN) poll.environment.native.unpin(kept[at + 1]!)
    }
  }
}

/** A connection that has ended for JavaScript on its way, and arrives all the same: it is reset and forgotten. */
export class Straggler {
  constructor(
    private readonly poll: Poll,
    private readonly slot: number,
    private readonly generation: number,
  ) {}

  reset(): void {
    this.poll.connections[this.slot] = this as unknown as Connection
    this.poll.put(Submission.RESET, this.slot, this.generation, 0, 0, 0)
  }

  delivered(chunk: number, offset: number): void {
    this.poll.memory.refuse(chunk, offset)
  }

  closedWith(): void {
    this.poll.connections[this.slot] = null
    this.poll.put(Submission.ACK, this.slot, this.generation, 0, 0, 0)
  }

  // What else is told of it before it is closed.
  peerEnded(): void {}
  drained(): void {}
  timedOut(): void {}
  moved(): void {}
  lost(): void {}
}
