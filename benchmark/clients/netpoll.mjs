import { dialConnection } from '../servers/package.mjs'
import { measureCalls, port, size } from './calls.mjs'

const connection = await dialConnection('tcp', `127.0.0.1:${port}`)
const { reader, writer } = connection

await measureCalls(async (request) => {
  writer.writeBinary(request)
  writer.flush()
  await reader.waitRead(size)
  reader.skip(size)
  reader.release()
})
connection.close()
