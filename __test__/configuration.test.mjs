// configure(), the limits of an environment, and a package without its native part.

import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { configure } from '../index.js'
import { run } from './fixtures/program.mjs'

const project = new URL('..', import.meta.url).pathname

const CONFIGURE = `import { configure, stats } from '${project}index.js'\n`

/** What a program prints as JSON. */
async function told(t, source, options) {
  const { code, stdout, stderr } = await run(CONFIGURE + source, options)
  t.is(code, 0, stderr)
  return JSON.parse(stdout)
}

const wrong = [
  [{ maxMemory: 0 }, 'ERR_OUT_OF_RANGE'],
  [{ maxMemory: 1000 }, 'ERR_OUT_OF_RANGE'],
  [{ maxMemory: -1 }, 'ERR_OUT_OF_RANGE'],
  [{ maxMemory: NaN }, 'ERR_OUT_OF_RANGE'],
  [{ maxMemory: 2 ** 53 }, 'ERR_OUT_OF_RANGE'],
  [{ maxMemory: 2 ** 20 + 0.5 }, 'ERR_OUT_OF_RANGE'],
  [{ maxMemory: '1 GiB' }, 'ERR_INVALID_ARG_TYPE'],
  [{ driver: 'uring' }, 'ERR_INVALID_ARG_VALUE'],
  [{ driver: 1 }, 'ERR_INVALID_ARG_VALUE'],
  [{ busyPoll: -1 }, 'ERR_OUT_OF_RANGE'],
  [{ busyPoll: 1001 }, 'ERR_OUT_OF_RANGE'],
  [{ busyPoll: 0.5 }, 'ERR_OUT_OF_RANGE'],
  [{ busyPoll: '50' }, 'ERR_INVALID_ARG_TYPE'],
  [{ zeroCopy: 'sometimes' }, 'ERR_INVALID_ARG_VALUE'],
  [{ zeroCopy: true }, 'ERR_INVALID_ARG_VALUE'],
  [{ debug: 1 }, 'ERR_INVALID_ARG_TYPE'],
  [{ memory: 1 << 30 }, 'ERR_INVALID_ARG_VALUE'],
  [null, 'ERR_INVALID_ARG_TYPE'],
  ['debug', 'ERR_INVALID_ARG_TYPE'],
]

for (const [options, code] of wrong) {
  test(`configure(${JSON.stringify(options)}) with ${Object.values(options ?? {})[0]} throws ${code}`, (t) => {
    t.throws(() => configure(options), { code })
  })
}

test('what configure() sets holds, later calls keep what they do not name, and failed ones change nothing', async (t) => {
  const { maxMemory, turns } = await told(
    t,
    `configure({ maxMemory: 64 << 20 })
    configure({ driver: 'thread' })
    configure({ maxMemory: undefined, driver: 'adaptive', debug: false })
    try { configure({ maxMemory: 32 << 20, debug: 'no' }) } catch {}
    try { configure({ maxMemory: 32 << 20, driver: 'uring' }) } catch {}
    createListener('tcp', '127.0.0.1:0').close()
    console.log(JSON.stringify(stats()))`,
  )
  t.is(maxMemory, 64 << 20)
  t.is(typeof turns, 'number')
})

test('configure() comes before the first listener', async (t) => {
  const codes = await told(
    t,
    `const attempt = () => { try { configure({ debug: false }); return 'done' } catch (error) { return error.code } }
    const codes = [attempt()]
    createEventLoop(() => {})
    codes.push(attempt())
    stats()
    codes.push(attempt())
    createListener('tcp', '127.0.0.1:0').close()
    codes.push(attempt())
    console.log(JSON.stringify(codes))`,
  )
  t.deepEqual(codes, ['done', 'done', 'done', 'ERR_NETPOLL_INVALID_STATE'])
})

test('createEventLoop() chooses the driver as configure() does, and none but that of the others', async (t) => {
  const codes = await told(
    t,
    `const codes = []
    const attempt = (act) => { try { act(); codes.push('done') } catch (error) { codes.push(error.code) } }
    attempt(() => createEventLoop(() => {}, { driver: 'uring' }))
    attempt(() => createEventLoop(() => {}, { driver: 'thread' }))
    attempt(() => createEventLoop(() => {}, { driver: 'loop' }))
    attempt(() => createEventLoop(() => {}, { driver: 'thread' }))
    createListener('tcp', '127.0.0.1:0').close()
    attempt(() => createEventLoop(() => {}, { driver: 'thread' }))
    attempt(() => createEventLoop(() => {}, { driver: 'adaptive' }))
    codes.push(stats().polls[0].driver)
    console.log(JSON.stringify(codes))`,
  )
  const refused = 'ERR_NETPOLL_INVALID_STATE'
  t.deepEqual(codes, ['ERR_INVALID_ARG_VALUE', 'done', refused, 'done', 'done', refused, 'thread'])
})

test('a first use that fails leaves configure() open', async (t) => {
  const codes = await told(
    t,
    `const codes = []
    const attempt = (act) => { try { act(); codes.push('done') } catch (error) { codes.push(error.code) } }
    process.env.NETPOLL_NUM_LOOPS = '65'
    attempt(() => createListener('tcp', '127.0.0.1:0'))
    attempt(() => configure({ numLoops: 2 }))
    attempt(() => createListener('tcp', '127.0.0.1:0').close())
    codes.push(stats().polls.length)
    console.log(JSON.stringify(codes))`,
  )
  t.deepEqual(codes, ['ERR_OUT_OF_RANGE', 'done', 'done', 2])
})

test('stats() are all 0 before the first listener', async (t) => {
  const { polls, zeroCopy, ...counts } = await told(t, `console.log(JSON.stringify(stats()))`)
  t.deepEqual([polls, zeroCopy], [[], { sent: 0, copied: 0, fallbacks: 0 }])
  t.true(Object.keys(counts).length >= 10)
  t.deepEqual([...new Set(Object.values(counts))], [0])
})

test('without a limit it is a part of the memory of the machine', async (t) => {
  const { maxMemory } = await told(
    t,
    `createListener('tcp', '127.0.0.1:0').close()
    console.log(JSON.stringify(stats()))`,
  )
  const all = process.constrainedMemory() || Number.MAX_SAFE_INTEGER
  t.true(maxMemory > 1 << 20 && maxMemory <= all / 2, String(maxMemory))
})

for (const [name, options, call] of [
  ['configure({ debug: true })', {}, 'configure({ debug: true })'],
  ['NETPOLL_DEBUG=1', { env: { ...process.env, NETPOLL_DEBUG: '1' } }, ''],
]) {
  test(`with ${name} a released view is seen as detached`, async (t) => {
    const lengths = await told(
      t,
      `${call}
      const lengths = []
      const { port, stop } = serve(({ reader }) => {
        const view = reader.next(5)
        lengths.push(view.length)
        reader.release()
        lengths.push(view.length)
      })
      const socket = await connect(port)
      socket.write('hello')
      await until(() => lengths.length === 2)
      console.log(JSON.stringify(lengths))
      socket.destroy()
      await stop()`,
      options,
    )
    t.deepEqual(lengths, [5, 0])
  })
}

for (const entries of ['7', '12', '0', '4', '-8', 'many', '8.5', '2097152']) {
  test(`NETPOLL_RING_ENTRIES=${entries} is refused when it is needed`, async (t) => {
    const { code, stderr } = await run(`createListener('tcp', '127.0.0.1:0')`, {
      env: { ...process.env, NETPOLL_RING_ENTRIES: entries },
    })
    t.is(code, 1)
    t.regex(stderr, /ERR_(OUT_OF_RANGE|INVALID_ARG_VALUE)/)
    t.regex(stderr, /NETPOLL_RING_ENTRIES/)
  })
}

test('NETPOLL_ZERO_COPY=sometimes is refused when it is needed', async (t) => {
  const { code, stderr } = await run(`createListener('tcp', '127.0.0.1:0')`, {
    env: { ...process.env, NETPOLL_ZERO_COPY: 'sometimes' },
  })
  t.is(code, 1)
  t.regex(stderr, /ERR_INVALID_ARG_VALUE.*NETPOLL_ZERO_COPY/s)
})

test('a package without its native part says what it has not, where, and what helps', async (t) => {
  const copy = mkdtempSync(join(tmpdir(), 'netpoll-copy-'))
  t.teardown(() => rmSync(copy, { recursive: true }))
  for (const name of ['index.js', 'native.js', 'package.json', 'dist']) {
    cpSync(join(project, name), join(copy, name), { recursive: true })
  }
  const { code, stdout } = await run(
    `const { createRequire } = await import('node:module')
    try {
      createRequire('${copy}/')('./index.js')
    } catch (error) {
      console.log(JSON.stringify([error.message, error.cause instanceof Error]))
    }`,
  )
  t.is(code, 0)
  const [message, hasCause] = JSON.parse(stdout)
  t.regex(message, new RegExp(`no native binding for ${process.platform}-${process.arch}`))
  t.regex(message, /Linux on x64 and arm64/)
  t.regex(message, /npm run build/)
  t.true(hasCause)
})
