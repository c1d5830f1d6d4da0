import { createEventLoop, createListener } from '../../index.js'
import { completeFrames } from './frames.mjs'
import { ready } from './session.mjs'

const services = { echo, frame }

const listener = createListener('tcp', '127.0.0.1:0')
createEventLoop(services[process.argv[2]], { onError() {} }).serve(listener)
ready(listener.address().port)

function echo({ reader, writer }) {
  writer.append(reader)
  writer.flush()
}

/** Frames are parsed in place and their blocks moved to the writer; a partial one stays in the reader. */
function frame({ reader, writer }) {
  const end = completeFrames(reader.peek(reader.length))
  if (end === 0) return
  writer.append(reader.slice(end))
  writer.flush()
}
