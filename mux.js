'use strict'

module.exports = require('./dist/shard_queue.js')
