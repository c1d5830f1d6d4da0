import { lookup } from 'node:dns/promises'
import { constants } from 'node:os'
import { boolean, checkInteger, checkOptions, integer, invalidType, MAX_SIZE, oneOf } from './arguments.js'
import { environment } from './environment.js'
import { NetpollError, systemError } from './errors.js'
import type { AddressFailure, ListenSuccess, ServeOptions, SystemFailure } from './native.js'

/**
 * `'tcp'` takes IPv4 and IPv6 (and listens on both where the host is empty), `'tcp4'` and `'tcp6'` one of them.
 * `'unix'` is a stream socket at a path, or abstract as `'@name'`.
 */
export type Network = 'tcp' | 'tcp4' | 'tcp6' | 'unix'

export interface ListenerOptions {
  /** Connects that wait to be accepted. Default: 4096, or what the system allows. */
  backlog?: number
  /** Several sockets, also of other processes and workers, may share the port. */
  reusePort?: boolean
  /** An IPv6 socket takes no IPv4. */
  ipv6Only?: boolean
  /** TCP_NODELAY on the connections. Default: true. */
  noDelay?: boolean
  /** SO_KEEPALIVE on the connections. */
  keepAlive?: boolean
  /** SO_RCVBUF of the connections, in bytes. */
  recvBuffer?: number
  /** SO_SNDBUF of the connections, in bytes. */
  sendBuffer?: number
  /** Removes a stale socket file at the path before binding. */
  unlink?: boolean
}

const OPTIONS = {
  backlog: integer(1, MAX_SIZE),
  reusePort: boolean,
  ipv6Only: boolean,
  noDelay: boolean,
  keepAlive: boolean,
  recvBuffer: integer(1, MAX_SIZE),
  sendBuffer: integer(1, MAX_SIZE),
  unlink: boolean,
}

/** @internal */
export const checkNetwork = oneOf('tcp', 'tcp4', 'tcp6', 'unix')

/** As in net: what Server.address() answers. */
export interface AddressInfo {
  address: string
  port: number
  family: string
}

/** A listening socket. Connects wait in its backlog until an event loop serves it. */
export class Listener {
  readonly fd: number
  /** @internal The poll that accepts. */
  poll = 0
  private state: 'listening' | 'served' | 'closed' = 'listening'
  private readonly closed: Promise<void>
  private ended!: (error: NetpollError | null) => void

  /** @internal */
  constructor(private readonly socket: ListenSuccess) {
    this.fd = socket.fd
    this.closed = new Promise((resolve) => (this.ended = () => resolve()))
  }

  /** Where it listens; a unix socket's is its path, or '@name'. */
  address(): AddressInfo | string {
    const { address, port, family } = this.socket
    return family === 1 ? address : { address, port, family: `IPv${family}` }
  }

  /** @internal Neither served nor closed yet. */
  get isWaiting(): boolean {
    return this.state === 'listening'
  }

  /** Stops accepting and frees the address. The loop that serves it goes on with the connections that are open. */
  close(): void {
    if (this.state === 'closed') return
    const served = this.state === 'served'
    this.state = 'closed'
    environment().native.closeListener(this.socket.id)
    if (!served) this.ended(null)
  }

  /** close(), and resolves when the socket is closed. */
  [Symbol.asyncDispose](): Promise<void> {
    this.close()
    return this.closed
  }

  /** @internal One that is waiting. `ended` is called once when it no longer accepts. */
  serve(options: ServeOptions, ended: (error: NetpollError | null) => void): void {
    this.state = 'served'
    const resolve = this.ended
    this.ended = (error) => {
      resolve(error)
      ended(error)
    }
    environment().listeners.set(this.socket.id, this)
    this.poll = environment().native.serve(this.socket.id, options)
  }

  /** @internal LISTENER */
  closedWith(error: NetpollError | null): void {
    this.state = 'closed'
    // Nobody accepts any more: nobody shall connect.
    if (error !== null) environment().native.closeListener(this.socket.id)
    this.ended(error)
  }
}

/**
 * Binds and listens at once. `address` is `host:port`, `[ipv6]:port`, `:port`, or for unix a path or `@name`; the
 * host an IP literal, empty (all) or `localhost`. Throws ERR_NETPOLL_ADDRESS for any other, and the system's errors
 * as net has them (EADDRINUSE, EACCES ...).
 */
export function createListener(network: Network, address: string, options?: ListenerOptions): Listener {
  check(network, address, options)
  const answer = environment().native.listen(network, address, options ?? {})
  if ('reason' in answer) throw addressError(answer)
  if ('errno' in answer) throw listenError(answer, network, address)
  return new Listener(answer)
}

/**
 * Listens at a descriptor that this process has inherited, from systemd or a parent: a listening stream socket of inet
 * or unix. The Listener owns it from then on. close() leaves the socket to others that have it too, and the path of a
 * unix socket in its place. Throws EBADF, ENOTSOCK or EINVAL for anything else, ERR_NETPOLL_INVALID_STATE when a
 * Listener of this process has it already. TCP_NODELAY is set, as by createListener().
 */
export function listenerFrom(fd: number): Listener {
  checkInteger(fd, 'fd', 0, MAX_SIZE)
  const answer = environment().native.inherit(fd)
  if ('reason' in answer)
    throw new NetpollError('ERR_NETPOLL_INVALID_STATE', 'A Listener has this descriptor already')
  if ('errno' in answer) throw systemError(answer.errno, answer.syscall)
  return new Listener(answer)
}

/**
 * createListener() with any host name, which Node's resolver is asked for first. A malformed address throws; what the
 * resolver and the system answer rejects.
 */
export function listen(network: Network, address: string, options?: ListenerOptions): Promise<Listener> {
  check(network, address, options)
  const host = environment().native.hostToResolve(network, address)
  if (host !== null && typeof host !== 'string') throw addressError(host)
  return resolveAndListen(network, host, address, options)
}

async function resolveAndListen(
  network: Network,
  host: string | null,
  address: string,
  options?: ListenerOptions,
): Promise<Listener> {
  if (host === null) return createListener(network, address, options)
  const resolved = await lookup(host, { family: network === 'tcp4' ? 4 : network === 'tcp6' ? 6 : 0 })
  const literal = resolved.family === 6 ? `[${resolved.address}]` : resolved.address
  return createListener(network, literal + address.slice(address.lastIndexOf(':')), options)
}

function check(network: unknown, address: unknown, options: unknown): void {
  checkNetwork(network, 'network')
  if (typeof address !== 'string') throw invalidType('address', 'a string', address)
  checkOptions(options, OPTIONS)
}

/** @internal */
export function addressError(failure: AddressFailure): NetpollError {
  return new NetpollError('ERR_NETPOLL_ADDRESS', failure.reason)
}

/** With the address as net tells it. */
function listenError(failure: SystemFailure, network: Network, address: string): NetpollError {
  const { EACCES, EADDRINUSE, ENOENT } = constants.errno
  if (network === 'unix') {
    // A folder that is not there: libuv, and so net, says EACCES.
    const errno = failure.errno === ENOENT ? EACCES : failure.errno
    return systemError(errno, failure.syscall, address, -1)
  }
  const colon = address.lastIndexOf(':')
  const host = address.slice(0, colon).replace(/^\[|\]$/g, '')
  // Where [::] fails for another reason than its port, net goes on to 0.0.0.0.
  const both = failure.errno === EADDRINUSE ? '::' : '0.0.0.0'
  const any = network === 'tcp4' ? '0.0.0.0' : network === 'tcp6' ? '::' : both
  const local = network === 'tcp6' ? '::1' : '127.0.0.1'
  const shown = host === '' ? any : host === 'localhost' ? local : host
  return systemError(failure.errno, failure.syscall, shown, Number(address.slice(colon + 1)))
}
