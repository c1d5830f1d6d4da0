// Debug mode: views are copies that release() detaches, so that late use is seen at once.

import test from 'ava'
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const program = new URL('fixtures/debug_views.mjs', import.meta.url).pathname
const LENGTHS = { peek: 10, next: 10, until: 5, large: 50_000, copy: 10, slice: 100 }

/** What the program says of its views, with NETPOLL_DEBUG and the argument for configure(). */
async function viewsOf(debug, ...configured) {
  const env = { ...process.env, NETPOLL_DEBUG: debug }
  const { stdout } = await promisify(execFile)(process.execPath, [program, ...configured], {
    env,
    timeout: 60_000,
  })
  return JSON.parse(stdout)
}

for (const [how, ...given] of [
  ['NETPOLL_DEBUG=1', '1'],
  ['configure({ debug: true })', '', 'true'],
]) {
  test(`with ${how}, release() detaches the views it ends, and no others`, async (t) => {
    const views = await viewsOf(...given)
    t.deepEqual(views.before, LENGTHS)
    t.is(views.text, '0123456789')
    const released = { peek: 0, next: 0, until: 0, large: 0 }
    t.deepEqual(views.afterRelease, { ...LENGTHS, ...released }, 'not the copy, and not the view of a slice')
    t.deepEqual(views.afterSliceRelease, { ...LENGTHS, ...released, slice: 0 })
  })

  test(`with ${how}, the end of a handler detaches its views`, async (t) => {
    const { unread, afterHandler } = await viewsOf(...given)
    t.is(unread, 49_875)
    t.is(afterHandler.later, 0)
    t.is(afterHandler.copy, 10)
  })

  test(`with ${how}, a view that was written before its release is sent`, async (t) => {
    t.true((await viewsOf(...given)).echoed)
  })
}

for (const [how, ...given] of [
  ['without it', ''],
  ['with NETPOLL_DEBUG=0', '0'],
  ['with configure({ debug: false }) over NETPOLL_DEBUG=1', '1', 'false'],
]) {
  test(`${how}, views keep their lengths`, async (t) => {
    const { before, afterRelease, afterSliceRelease, afterHandler, unread, echoed } = await viewsOf(...given)
    for (const lengths of [before, afterRelease, afterSliceRelease]) t.deepEqual(lengths, LENGTHS)
    t.deepEqual(afterHandler, { ...LENGTHS, later: unread })
    t.true(echoed)
  })
}
