// The types of the public API, as a strict program sees them.

import { execFile } from 'node:child_process'
import { join } from 'node:path'
import test from 'ava'

const project = new URL('..', import.meta.url).pathname

test('all of the public API is typed, and what is wrong does not compile', async (t) => {
  const options = '--ignoreConfig --noEmit --strict --module nodenext --target es2022'.split(' ')
  const lib = ['--lib', 'es2022,esnext.disposable', '--types', 'node']
  const { code, output } = await new Promise((resolve) => {
    const files = [...options, ...lib, '__test__/fixtures/public_api.mts']
    const settings = { cwd: project, timeout: 60_000 }
    execFile(join(project, 'node_modules/.bin/tsc'), files, settings, (error, stdout, stderr) => {
      resolve({ code: error?.code ?? 0, output: stdout + stderr })
    })
  })
  t.is(code, 0, output)
  t.is(output, '')
})
