// The package as those who depend on it see it: its two kinds of importers, its types, its files, its codes.

import { execFile } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'

const project = new URL('..', import.meta.url).pathname

test('CommonJS and ES module importers share one native instance', async (t) => {
  const { names, differing, nativeModules } = JSON.parse(await node('__test__/fixtures/one_instance.mjs'))
  t.true(['createListener', 'createEventLoop'].every((name) => names.includes(name)))
  t.deepEqual(differing, [])
  t.is(nativeModules, 1)
})

test('netpoll/mux is the same to both kinds of importers, and takes the connections of both', async (t) => {
  const { names, differing, received } = JSON.parse(await node('__test__/fixtures/mux_importers.mjs'))
  t.deepEqual(names, ['ShardQueue'])
  t.deepEqual(differing, [])
  t.is(received, 'imported, required')
})

test('the module that is published knows nothing of faults by script', (t) => {
  const modules = readdirSync(project).filter((file) => /^netpoll\..*\.node$/.test(file))
  t.true(modules.length > 0)
  for (const file of modules) t.false(readFileSync(join(project, file)).includes('NETPOLL_FAULT'), file)
})

const importers = {
  commonjs: `const { createEventLoop, createListener } = require('netpoll')`,
  module: `import { createEventLoop, createListener } from 'netpoll'`,
}

for (const [type, load] of Object.entries(importers)) {
  test(`a program of type ${type} serves a request, and ends by itself when all is closed`, async (t) => {
    const program = `${load}
      const listener = createListener('tcp', '127.0.0.1:0')
      createEventLoop(({ reader, writer }) => {
        writer.writeString(reader.readString(reader.length).toUpperCase())
        writer.flush()
      }).serve(listener)
      const client = process.getBuiltinModule('net').connect(listener.address().port, '127.0.0.1')
      client.end('hello')
      client.setEncoding('utf8').on('data', console.log).on('close', () => listener.close())`
    t.is(await node(`--input-type=${type}`, '--eval', program), 'HELLO\n')
  })
}

test('the types hold for both kinds of importers', async (t) => {
  const options = [
    '--ignoreConfig',
    '--noEmit',
    '--strict',
    '--module',
    'nodenext',
    '--target',
    'es2023',
    '--types',
    'node',
  ]
  const consumers = ['__test__/fixtures/consumer.mts', '__test__/fixtures/consumer.cts']
  await t.notThrowsAsync(run(join(project, 'node_modules/.bin/tsc'), ...options, ...consumers))
})

test('nothing but the entries and package.json can be imported', async (t) => {
  const { name } = (await import('netpoll/package.json', { with: { type: 'json' } })).default
  t.is(name, 'netpoll')
  for (const path of ['dist/index.js', 'mux.js', 'dist/shard_queue.js']) {
    await t.throwsAsync(import(`netpoll/${path}`), { code: 'ERR_PACKAGE_PATH_NOT_EXPORTED' })
  }
})

test('the published files are the built ones, without sources and tests', async (t) => {
  const [{ files }] = JSON.parse(await run('npm', 'pack', '--dry-run', '--json', '--ignore-scripts'))
  const paths = files.map(({ path }) => path)
  const needed = [
    'LICENSE',
    'README.md',
    'dist/index.js',
    'index.d.ts',
    'index.js',
    'mux.d.ts',
    'mux.js',
    'native.js',
    'package.json',
  ]
  t.deepEqual(
    needed.filter((path) => !paths.includes(path)),
    [],
  )
  t.true(paths.some((path) => path.endsWith('.node')))
  t.deepEqual(
    paths.filter((path) => /^(?:crates|ts|target|benchmark|__test__|\.)/.test(path)),
    [],
  )
})

test('docs/errors.md lists the codes that the sources use, and no other', (t) => {
  const used = new Set()
  for (const folder of ['ts', 'crates']) {
    for (const name of readdirSync(join(project, folder), { recursive: true })) {
      if (/\.(?:ts|rs)$/.test(name)) codes(join(folder, name)).forEach((code) => used.add(code))
    }
  }
  t.not(used.size, 0)
  t.deepEqual([...new Set(codes('docs/errors.md'))].toSorted(), [...used].toSorted())
})

function codes(path) {
  return readFileSync(join(project, path), 'utf8').match(/\bERR_NETPOLL_[A-Z_]+\b/g) ?? []
}

function node(...args) {
  return run(process.execPath, ...args)
}

/** What a program prints; rejects, with all its output, when it fails or takes too long. */
async function run(command, ...args) {
  const { stdout } = await promisify(execFile)(command, args, { cwd: project, timeout: 60_000 })
  return stdout
}
