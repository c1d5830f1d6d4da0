import { constants } from 'node:os'
import { getSystemErrorMap } from 'node:util'
import { Cause } from './record.js'

const MESSAGES = {
  ERR_NETPOLL_CONN_CLOSED: 'The connection is closed',
  ERR_NETPOLL_EOF: 'The peer has ended the connection',
  ERR_NETPOLL_READ_TIMEOUT: 'The bytes did not come within the read timeout',
  ERR_NETPOLL_WRITE_TIMEOUT: 'Pending output made no progress within the write timeout',
  ERR_NETPOLL_IDLE_TIMEOUT: 'The connection had no traffic within the idle timeout',
  ERR_NETPOLL_DIAL_TIMEOUT: 'No address has answered within the timeout',
  ERR_NETPOLL_SHUTDOWN_TIMEOUT: 'Connections were cut because the shutdown timeout had passed',
  ERR_NETPOLL_SHORT_READ: 'Fewer bytes are here than were asked for',
  ERR_NETPOLL_INPUT_LIMIT: 'A message is longer than maxReadBytes',
  ERR_NETPOLL_OUTPUT_LIMIT: 'Pending output is more than maxPendingBytes or maxMemory allows',
  ERR_NETPOLL_ADDRESS: 'The address is malformed',
  ERR_NETPOLL_INVALID_STATE: 'The call is not possible in this state',
  ERR_NETPOLL_UNSUPPORTED: 'Not supported here',
  ERR_NETPOLL_POLL_DIED: 'The poll of the connection has died',
} as const

/** The library's own codes; docs/errors.md says who is at fault and when each comes. */
export type ErrorCode = keyof typeof MESSAGES

/** An error of the library, or of a system call (then with Node's code, `errno` and `syscall`). Match by `code`. */
export class NetpollError extends Error {
  readonly code: string
  readonly errno?: number
  readonly syscall?: string
  readonly address?: string
  readonly port?: number

  constructor(code: ErrorCode | (string & {}), message?: string, fields?: SystemFields) {
    super(message ?? MESSAGES[code as ErrorCode])
    this.code = code
    if (fields !== undefined) Object.assign(this, fields)
  }
}
NetpollError.prototype.name = 'NetpollError'

/** What a failed system call says besides its code; `errno` is negative, as everywhere in Node. */
export interface SystemFields {
  errno: number
  syscall: string
  address?: string
  port?: number
}

/**
 * The error of a failed system call as net makes it: "listen EADDRINUSE: address already in use 127.0.0.1:80", but
 * "connect ECONNREFUSED 127.0.0.1:80". Port 0 is not told; a unix socket's is -1.
 */
export function systemError(errno: number, syscall: string, address?: string, port?: number): NetpollError {
  const [code, message] = getSystemErrorMap().get(-errno) ?? [`E${errno}`, 'unknown error']
  const place =
    address === undefined ? '' : port !== undefined && port > 0 ? ` ${address}:${port}` : ` ${address}`
  const what = syscall === 'connect' || syscall === 'bind' ? code : `${code}: ${message}`
  const fields: SystemFields = { errno: -errno, syscall }
  if (address !== undefined) fields.address = address
  if (port) fields.port = port
  return new NetpollError(code, `${syscall} ${what}${place}`, fields)
}

/** What has ended a connection. The poll does not tell which call has failed; EPIPE is what only a send gives. */
export function endError(errno: number): NetpollError {
  return systemError(errno, errno === constants.errno.EPIPE ? 'write' : 'read')
}

const CAUSES: Record<Exclude<Cause, Cause.DIAL_TIMEOUT>, ErrorCode> = {
  [Cause.WRITE_TIMEOUT]: 'ERR_NETPOLL_WRITE_TIMEOUT',
  [Cause.OUTPUT_LIMIT]: 'ERR_NETPOLL_OUTPUT_LIMIT',
  [Cause.INPUT_LIMIT]: 'ERR_NETPOLL_INPUT_LIMIT',
}

/** What a negative cause of CLOSED stands for. */
export function causeCode(cause: number): ErrorCode {
  return CAUSES[cause as keyof typeof CAUSES]
}

/** What ends a connection from outside, so that a handler which fails with it is not to blame. */
const CONNECTION_ENDS = new Set<unknown>([
  'ERR_NETPOLL_CONN_CLOSED',
  'ERR_NETPOLL_EOF',
  'ERR_NETPOLL_READ_TIMEOUT',
  'ERR_NETPOLL_WRITE_TIMEOUT',
  'ERR_NETPOLL_IDLE_TIMEOUT',
  'ERR_NETPOLL_INPUT_LIMIT',
  'ERR_NETPOLL_OUTPUT_LIMIT',
  'ERR_NETPOLL_POLL_DIED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
])

/**
 * Whether a handler that fails with `error` has only seen its connection end, which no peer may turn into the end
 * of the process. `ended`: the connection had ended before; a read timeout is the peer's doing in any case.
 */
export function isConnectionEnd(error: unknown, ended: boolean): boolean {
  const code = (error as { code?: unknown } | null | undefined)?.code
  return (ended && CONNECTION_ENDS.has(code)) || code === 'ERR_NETPOLL_READ_TIMEOUT'
}

/** Leaves an error to the process: as an unhandledRejection, or thrown after the batch. */
export function uncaught(error: unknown, rejected: boolean): void {
  if (rejected) void reject(error)
  else {
    process.nextTick(() => {
      throw error
    })
  }
}

async function reject(error: unknown): Promise<never> {
  throw error
}
