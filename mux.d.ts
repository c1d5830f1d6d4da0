export * from './dist/shard_queue.js'
