/**
 * The calls of the native binding. They serve what does not happen per request; everything that does goes
 * through the rings of docs/border.md.
 */

export interface ListenOptions {
  backlog?: number
  reusePort?: boolean
  ipv6Only?: boolean
  noDelay?: boolean
  keepAlive?: boolean
  recvBuffer?: number
  sendBuffer?: number
  /** Remove a stale socket file at the path of a unix address before binding. */
  unlink?: boolean
}

/** `family` is 4, 6 or 1 (unix); a unix address has its path, an abstract one '@name', in `address`. */
export interface Endpoint {
  family: number
  address: string
  port: number
}

export interface ListenSuccess extends Endpoint {
  id: number
  fd: number
}

/** A failed system call: `errno` is positive. `syscall` is 'listen' for bind and listen, as in net. */
export interface SystemFailure {
  errno: number
  syscall: string
}

/** The address text is malformed, or names a host that only a resolver could know. */
export interface AddressFailure {
  reason: string
}

export interface ServeOptions {
  /** Comes back as the first argument of ACCEPT. */
  server: number
  writeTimeout: number
  idleTimeout: number
  readHighWaterMark: number
  /** 0 = no limit. One too many is accepted and closed at once, without a record. */
  maxConnections: number
  /** Ring the doorbell for an ACCEPT alone, not only together with the first DATA. */
  announceAccept: boolean
}

/** Times in milliseconds, 0 = none. */
export interface DialSettings {
  network: string
  address: string
  /** IP addresses of the host, if that is a name. */
  resolved: string[]
  localAddress: string | undefined
  noDelay: boolean
  timeout: number
  writeTimeout: number
  idleTimeout: number
  readHighWaterMark: number
}

/** Which poll works at a dial, and what DIALED calls the addresses. */
export interface DialStart {
  poll: number
  endpoints: Endpoint[]
}

/** Of a connection; a unix socket has family 1 and the path ('' when the peer has none) in `address`. */
export interface Addresses {
  remote: Endpoint
  local: Endpoint
}

export interface PollStats {
  connections: number
  turns: number
  wakeups: number
  doorbells: number
  reads: number
  sends: number
  accepts: number
  /** DATA records, and so the size of batches: records / doorbells. */
  records: number
  staleRecords: number
  flips: number
  isOnThread: boolean
  /** Of `sends`, those from the memory itself, without a copy. */
  lent: number
  /** Of `lent`, those that the kernel had to copy all the same. */
  copied: number
  /** Of `sends`, those with a copy for want of room in the kernel. */
  fallbacks: number
}

export interface NativeStats {
  polls: PollStats[]
  /** Blocks handed out and not yet back, their bytes, and the bytes of all chunks. */
  blocksOut: number
  bytesOut: number
  chunkBytes: number
  maxMemory: number
  pins: number
}

export interface EnvironmentOptions {
  control: Int32Array
  polls: Int32Array[]
  ringEntries: number
  slots: number
  /** 0 = a quarter of the memory of the cgroup or the machine. */
  maxMemory: number
  /** Ring the doorbell through libuv where the runtime has it; otherwise by a threadsafe function. */
  libuv: boolean
  /** Who runs the polls' turns; `'thread'` where there is no libuv. */
  driver: string
  /** How long a poll looks for more instead of sleeping, in microseconds; 0 = never. */
  busyPoll: number
}

export interface NativeEnvironment {
  /** A new ArrayBuffer over the chunk's memory at each call. */
  mapChunk(chunk: number): ArrayBuffer
  chunkShift(chunk: number): number
  /** chunk * 2**32 + offset of a block of at least `size` bytes (at most 1 MiB), lent once; -1 at maxMemory. */
  alloc(size: number): number
  /** One more lent reference of the block, for one SEND_LENT; false when JavaScript has none of it. */
  share(chunk: number, offset: number): boolean
  /** Starts one more poll, with the next number; an errno or 0. */
  addPoll(words: Int32Array): number
  /** Starts a poll anew whose thread has ended, and the header of whose words is 0 again; an errno or 0. */
  restartPoll(poll: number): number
  /** Gives the poll no new connections, and lets it move those that it has to the others: MOVED for each. */
  retirePoll(poll: number): void
  /** Ends a poll that is empty (RETIRED is 1); all that was published before is still taken. */
  endPoll(poll: number): void
  setLoadBalance(kind: string): void
  /** `'off'` until then. */
  setZeroCopy(kind: string): void
  /** What a poll that the loop drives is to send is sent before this returns. */
  wake(poll: number): void
  /** A poll that the loop drives notices ends that have come: the status table tells of them. */
  look(poll: number): void
  /** Whether the environment keeps the process alive. It does not at first. */
  ref(): void
  unref(): void
  /** Holds the memory for one SEND_PIN; -1 at maxMemory. `unpin` drops it in answer to UNPIN. */
  pin(bytes: Uint8Array): number
  unpin(pin: number): void
  /** The host name that has to be resolved before listen() can take the address, or null. */
  hostToResolve(network: string, address: string): string | null | AddressFailure
  /** The same for an address to dial and a local one to dial from. */
  hostToDial(network: string, address: string, local: string | undefined): string | null | AddressFailure
  listen(
    network: string,
    address: string,
    options: ListenOptions,
  ): ListenSuccess | SystemFailure | AddressFailure
  /** Listens at an inherited descriptor; an AddressFailure when a listener has it already. */
  inherit(fd: number): ListenSuccess | SystemFailure | AddressFailure
  /** Gives away the open descriptor that a DETACHED of the poll has named; false when it is closed already. */
  takeDetached(poll: number, fd: number): boolean
  /** The poll that accepts. */
  serve(listener: number, options: ServeOptions): number
  /** The event loop of that number serves no more. */
  forgetServer(server: number): void
  closeListener(listener: number): void
  /** DIALED with this number tells what came of it. */
  dial(dial: number, settings: DialSettings): DialStart | AddressFailure
  /** DIALED still comes. */
  cancelDial(poll: number, dial: number): void
  addresses(poll: number, slot: number): Addresses
  stats(): NativeStats
  /** Of process 'exit': stops the polls and waits for them for at most 50 ms. */
  exit(): void
  /** For tests: makes the poll's thread panic. */
  crash(poll: number): void
  /** For tests: the poll's other driver runs it after the next turn. */
  flip(poll: number): void
}

export interface NativeBinding {
  Environment: new (options: EnvironmentOptions, doorbell: () => void) => NativeEnvironment
  /** Slots that a poll's tables need: no process can have more descriptors. */
  slotLimit(): number
  /** Whether the loop of this runtime can drive polls. */
  hasLoopDriver(): boolean
  /** Whether this runtime lets JavaScript see native memory. */
  sharesMemory(): boolean
}

/** Loads the binding, which napi's generated `native.js` finds for this platform. */
function loadBinding(): NativeBinding {
  try {
    return require('../native.js') as NativeBinding
  } catch (error) {
    throw new Error(
      `netpoll has no native binding for ${process.platform}-${process.arch} here. It supports Linux on x64 and ` +
        'arm64; in a clone of the repository, `npm run build` makes it.',
      { cause: error },
    )
  }
}

export const binding = loadBinding()

/** Whether the loop of this runtime can ring for and drive polls. NETPOLL_WITHOUT_LIBUV=1 denies it, for tests. */
export function hasLoopDriver(): boolean {
  return process.env.NETPOLL_WITHOUT_LIBUV !== '1' && binding.hasLoopDriver()
}
