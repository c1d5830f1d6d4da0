// A runtime that allows no ArrayBuffers over native memory, as Electron does: nothing works there, and it is said why.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { run } from './fixtures/program.mjs'

const project = new URL('..', import.meta.url).pathname
/** The call of Node, and one of the same length that a library of ours has instead. */
const CALL = 'napi_create_external_arraybuffer'
const OTHER = CALL.replace('create', 'refuse')

/** Answers napi_no_external_buffers_allowed, whatever it is asked. */
const REFUSING = `#[no_mangle] pub extern "C" fn ${OTHER}() -> i32 { 22 }`

test('where native memory cannot be shared with JavaScript it is said so, and the process lives', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const library = join(folder, 'refusing.so')
  const compile = ['--crate-type', 'cdylib', '--crate-name', 'refusing', '-o', library, '-']
  const { status, stderr: said } = spawnSync('rustc', compile, { input: REFUSING, encoding: 'utf8' })
  t.is(status, 0, said)
  const name = readdirSync(project).find((file) => /^netpoll\..*\.node$/.test(file))
  const binary = readFileSync(join(project, name))
  const patched = join(folder, 'netpoll.node')
  writeFileSync(patched, Buffer.from(binary.toString('latin1').replaceAll(CALL, OTHER), 'latin1'))

  const env = { ...process.env, LD_PRELOAD: library, NAPI_RS_NATIVE_LIBRARY_PATH: patched }
  const { code, signal, stdout, stderr } = await run(
    `
    const tried = []
    for (let i = 0; i < 2; i++) {
      try {
        serve(() => {})
        tried.push('it serves')
      } catch (error) {
        tried.push(error.code)
      }
    }
    console.log(JSON.stringify(tried))
  `,
    { env },
  )
  t.deepEqual([code, signal], [0, null], stderr)
  t.deepEqual(JSON.parse(stdout), ['ERR_NETPOLL_UNSUPPORTED', 'ERR_NETPOLL_UNSUPPORTED'])
})
