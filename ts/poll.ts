import type { Connection } from './connection.js'
import type { Environment } from './environment.js'
import type { Memory } from './memory.js'
import { Completion, Flag, Header, Retired, Size, Status, Submission } from './record.js'

/** Milliseconds without progress that who needs what was given back waits for a poll on its thread. */
const LOOKS = 100

/** JavaScript's half of a poll: its two rings, its status table, and who has which of its slots. */
export class Poll {
  /** By slot. */
  readonly connections: (Connection | null)[] = []
  readonly words: Int32Array
  /** What its connections read from and write to. */
  memory!: Memory
  /** Its thread has ended or the environment has: nothing comes from it and nothing goes to it. */
  dead = false
  /** Memory is scarce: the poll is told at once what was consumed, and for whom more must come. */
  scarce = false
  /** It has no connections any more and is to end. */
  leaving = false
  /** SENDs since the poll was last rung. */
  private sends = 0
  private completionHead = 0
  private submissionTail = 0
  /** The tail as the poll may see it. */
  private published = 0
  /** As last read; the poll may have come further. */
  private submissionHead = 0
  /** Records that found no room, in order, RECORD words each. */
  private backlog: number[] = []
  private readonly mask: number
  private readonly completions: number
  private readonly submissions: number
  private readonly statuses: number

  constructor(
    readonly environment: Environment,
    readonly index: number,
    private readonly ringEntries: number,
    slots: number,
  ) {
    this.mask = ringEntries - 1
    this.completions = Header.WORDS
    this.submissions = this.completions + ringEntries * Size.RECORD
    this.statuses = this.submissions + ringEntries * Size.RECORD
    const words = this.statuses + slots * (Size.STATUS + Size.ADDRESS)
    this.words = new Int32Array(new SharedArrayBuffer(words * 4))
  }

  // ---- from the poll

  /** Applies up to `budget` records; true when there are more. */
  take(budget: number): boolean {
    // What a dead poll has left is about connections that have ended.
    if (this.dead) return false
    const tail = Atomics.load(this.words, Header.COMPLETION_TAIL)
    const here = (tail - this.completionHead) | 0
    const end = (this.completionHead + Math.min(here, budget)) | 0
    // A record may make this ring be looked at again, before the next one is taken here.
    while (((end - this.completionHead) | 0) > 0) {
      const at = this.completions + (this.completionHead & this.mask) * Size.RECORD
      this.completionHead = (this.completionHead + 1) | 0
      this.apply(at)
    }
    if (here > 0) Atomics.store(this.words, Header.COMPLETION_HEAD, this.completionHead)
    return here > budget
  }

  /** After a drain: what JavaScript has put goes to the poll, and a poll that waits for room is told of it. */
  finish(): void {
    this.publish()
    if (Atomics.load(this.words, Header.COMPLETION_BACKLOGGED) !== 0) this.environment.native.wake(this.index)
    const scarce = Atomics.load(this.words, Header.SCARCE) !== 0
    if (scarce !== this.scarce) this.setScarce(scarce)
    if (!this.dead && Atomics.load(this.words, Header.DIED) !== 0) this.environment.pollDied(this)
    if (Atomics.load(this.words, Header.RETIRED) !== 0) this.leave()
  }

  /** Its thread has ended, after setNumLoops() has asked for it. */
  get hasEnded(): boolean {
    return Atomics.load(this.words, Header.RETIRED) === Retired.ENDED
  }

  get hasDied(): boolean {
    return Atomics.load(this.words, Header.DIED) !== 0
  }

  /** Before the poll is started anew in the same memory. */
  reset(): void {
    this.words.fill(0, 0, Header.WORDS)
    this.completionHead = this.submissionTail = this.published = this.submissionHead = 0
    this.dead = this.leaving = false
    this.memory.restore(this)
  }

  /** The poll has nothing left: JavaScript lets go of it too, and it may end when it has taken all that was put. */
  private leave(): void {
    if (!this.leaving) {
      this.leaving = true
      // Nobody looks at its ring any more when this is done.
      this.take(Infinity)
      this.environment.bequeath(this)
    }
    if (!this.dead && this.backlog.length === 0) {
      this.publish()
      this.dead = true
      this.environment.native.endPoll(this.index)
    }
    if (this.hasEnded) this.environment.checkResized()
  }

  /** Of a dead poll, what its thread has not taken and what JavaScript has not: `memory` gives back what that lends. */
  salvage(memory: Memory): void {
    const { words, mask, backlog } = this
    const tail = Atomics.load(words, Header.COMPLETION_TAIL)
    for (let head = this.completionHead; head !== tail; head = (head + 1) | 0) {
      const at = this.completions + (head & mask) * Size.RECORD
      if (words[at] === Completion.DATA) memory.refuse(words[at + 3]!, words[at + 4]!)
      else if (words[at] === Completion.UNPIN) memory.native.unpin(words[at + 1]!)
    }
    const taken = Atomics.load(words, Header.SUBMISSION_HEAD)
    for (let head = taken; head !== this.submissionTail; head = (head + 1) | 0)
      giveBack(words, this.submissions + (head & mask) * Size.RECORD, memory)
    for (let at = 0; at < backlog.length; at += Size.RECORD) giveBack(backlog, at, memory)
    backlog.length = 0
  }

  /** The flags of a slot's status entry, for a user who may be asking in the midst of a long handler. */
  freshFlags(slot: number): number {
    // Nobody else looks at the socket meanwhile.
    if (Atomics.load(this.words, Header.ON_LOOP) !== 0 && !this.dead) this.environment.native.look(this.index)
    return this.flags(slot)
  }

  /** The flags of a slot's status entry. */
  flags(slot: number): number {
    if (Atomics.load(this.words, Header.DIED) !== 0) return Flag.READ_ENDED | Flag.WRITE_ENDED | Flag.CLOSED
    return Atomics.load(this.words, this.statuses + slot * Size.STATUS + Status.FLAGS)
  }

  /** The low 32 bits of a count of the status entry. */
  low(slot: number, which: Status.READ | Status.SENT): number {
    return Atomics.load(this.words, this.statuses + slot * Size.STATUS + which)
  }

  /** A 64-bit count of the status entry, exact up to 2^53. */
  count(slot: number, which: Status.READ | Status.SENT): number {
    const entry = this.statuses + slot * Size.STATUS
    const at = entry + which
    for (;;) {
      const high = Atomics.load(this.words, at + 1)
      const low = Atomics.load(this.words, at) >>> 0
      const carries = Atomics.load(this.words, entry + Status.CARRY) !== 0
      if (!carries && Atomics.load(this.words, at + 1) === high) return high * 2 ** 32 + low
    }
  }

  // ---- to the poll

  /** Puts a record; the poll sees it after the next publish(), which comes by itself. */
  put(kind: Submission, w1: number, w2: number, w3: number, w4: number, w5: number): void {
    if (this.dead) return
    if (!this.environment.draining) this.environment.schedule()
    if (this.backlog.length !== 0 || !this.hasRoom()) return this.defer(kind, w1, w2, w3, w4, w5)
    const words = this.words
    const at = this.submissions + (this.submissionTail & this.mask) * Size.RECORD
    words[at] = kind
    words[at + 1] = w1
    words[at + 2] = w2
    words[at + 3] = w3
    words[at + 4] = w4
    words[at + 5] = w5
    this.submissionTail = (this.submissionTail + 1) | 0
  }

  /** After each flush: a poll that sleeps is not left waiting for the end of a long drain. */
  sendPut(): void {
    if (++this.sends >= this.environment.sendsPerRing && this.environment.draining) this.publish()
  }

  /** Lets the poll take all that was put, now, if it is quick about it: for who needs what has been given back. */
  settle(): void {
    this.publish()
    let before = this.published
    for (let looks = 0; looks < LOOKS && !this.dead; looks++) {
      const head = Atomics.load(this.words, Header.SUBMISSION_HEAD)
      if (head === this.published && this.backlog.length === 0) return
      if (head !== before) looks = 0
      before = head
      this.environment.native.wake(this.index)
      Atomics.wait(this.words, Header.SUBMISSION_HEAD, head, 1)
      this.publish()
    }
  }

  /** Shows the poll all that was put, and wakes it if it sleeps. */
  publish(): void {
    if (this.dead) return
    if (this.backlog.length !== 0) this.moveBacklog()
    if (this.published === this.submissionTail) return
    this.sends = 0
    this.published = this.submissionTail
    // Partner: the poll sets SLEEPING, fences, and reads the tail once more before it waits.
    Atomics.store(this.words, Header.SUBMISSION_TAIL, this.submissionTail)
    if (Atomics.compareExchange(this.words, Header.SLEEPING, 1, 0) === 1)
      this.environment.native.wake(this.index)
  }

  private setScarce(scarce: boolean): void {
    this.scarce = scarce
    for (const connection of this.connections) connection?.input?.settle()
    this.publish()
  }

  private hasRoom(): boolean {
    if (((this.submissionTail - this.submissionHead) | 0) < this.ringEntries) return true
    this.submissionHead = Atomics.load(this.words, Header.SUBMISSION_HEAD)
    return ((this.submissionTail - this.submissionHead) | 0) < this.ringEntries
  }

  private defer(kind: Submission, w1: number, w2: number, w3: number, w4: number, w5: number): void {
    const { backlog } = this
    backlog.push(kind, w1, w2, w3, w4, w5, 0, 0)
    if (backlog.length === Size.RECORD) this.publish()
  }

  private moveBacklog(): void {
    const { backlog, words } = this
    // Partner: a poll that has drained and sees this word set rings the doorbell; so look at its head after it.
    Atomics.store(words, Header.SUBMISSION_BACKLOGGED, 1)
    let moved = 0
    for (; moved < backlog.length && this.hasRoom(); moved += Size.RECORD) {
      const at = this.submissions + (this.submissionTail & this.mask) * Size.RECORD
      for (let word = 0; word < Size.RECORD; word++) words[at + word] = backlog[moved + word]!
      this.submissionTail = (this.submissionTail + 1) | 0
    }
    this.backlog = moved === backlog.length ? [] : backlog.slice(moved)
    if (this.backlog.length === 0) Atomics.store(words, Header.SUBMISSION_BACKLOGGED, 0)
  }

  /** One that was to move to a poll that has died is forgotten before all is told of it. */
  private apply(at: number): void {
    const { words } = this
    const slot = words[at + 1]!
    switch (words[at]) {
      case Completion.ACCEPT:
        return this.environment.accept(this, slot, words[at + 2]!, words[at + 3]!)
      case Completion.DATA:
        return this.connections[slot]!.delivered(words[at + 3]!, words[at + 4]!, words[at + 5]!)
      case Completion.EOF:
        return this.connections[slot]!.peerEnded()
      case Completion.CLOSED:
        return this.connections[slot]?.closedWith(words[at + 3]!)
      case Completion.DRAINED:
        return this.connections[slot]?.drained()
      case Completion.TIMEOUT:
        return this.connections[slot]?.timedOut(words[at + 3]!, words[at + 4]!)
      case Completion.UNPIN:
        return this.environment.native.unpin(slot)
      case Completion.DETACHED:
        return this.connections[slot]!.detached(words[at + 3]!)
      case Completion.INFO:
        return this.connections[slot]!.informed(words.subarray(at + 3, at + Size.RECORD))
      case Completion.LISTENER:
        return this.environment.listenerClosed(slot, words[at + 3]!)
      case Completion.DIALED:
        return this.environment.dialed(
          this,
          slot,
          words[at + 2]!,
          words[at + 3]!,
          words[at + 4]!,
          words[at + 5]!,
        )
      case Completion.MOVED:
        return this.connections[slot]!.moved(words[at + 3]!)
      case Completion.ARRIVED:
        return this.environment.arrived(this, slot, words[at + 2]!, words[at + 3]!, words[at + 4]!)
      case Completion.DIAL_MOVED:
        return this.environment.dialMoved(words[at + 3]!, words[at + 4]!, words[at + 5]!)
    }
  }
}

/** Gives back what a submission record that nobody has taken was about. */
function giveBack(words: ArrayLike<number>, at: number, memory: Memory): void {
  if (words[at] === Submission.DONE) memory.unshare(words[at + 1]!, words[at + 2]!, words[at + 3]!)
  else if (words[at] === Submission.SEND_LENT) memory.unshare(words[at + 3]!, words[at + 4]!, 1)
  else if (words[at] === Submission.SEND_PIN) memory.native.unpin(words[at + 3]!)
}
