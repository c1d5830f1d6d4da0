/** cloudwego/netpoll for Node: see README.md. */
export {
  configure,
  type Configuration,
  type Driver,
  type LoadBalance,
  type ZeroCopy,
} from './configuration.js'
export type { Connection } from './connection.js'
export type { Delimiter } from './delimiter.js'
export type { Detached } from './detachment.js'
export { Dialer, dialConnection, type DialOptions } from './dialer.js'
export type { ConnectionDuplex } from './duplex.js'
export { NetpollError, type ErrorCode } from './errors.js'
export { createEventLoop, type EventLoop, type EventLoopOptions, type ShutdownOptions } from './event_loop.js'
export type { ConnectionOptions, OnConnect, OnDisconnect, OnRequest } from './handlers.js'
export type { ConnectionStatistics } from './inquiry.js'
export {
  createListener,
  listen,
  listenerFrom,
  type AddressInfo,
  type Listener,
  type ListenerOptions,
  type Network,
} from './listener.js'
export { LinkBuffer } from './link_buffer.js'
export { setLoadBalance, setNumLoops } from './loops.js'
export type { Reader, WaitOptions } from './reader.js'
export {
  readerFrom,
  toReadable,
  toWritable,
  writerFrom,
  type ReadableSource,
  type ReaderFromOptions,
  type StreamWriter,
} from './streams.js'
export { stats, type PollStatistics, type Statistics, type ZeroCopyStatistics } from './statistics.js'
export type { Writer } from './writer.js'
