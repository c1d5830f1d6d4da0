import { kinds } from './kinds.mjs'

const COLORS = {
  netpoll: '#0b7285',
  base: '#66d9e8',
  'go-netpoll': '#e8590c',
  'go-netpoll-2': '#ffa94d',
  gnet: '#5f3dc4',
  'go-net': '#b197fc',
  net: '#adb5bd',
  floor: '#495057',
}
const LABELS = { net: 'node:net', floor: 'floor (plain epoll in Rust)' }
const TITLES = {
  cpu: 'CPU of the server per request, all threads; net = 100 %, less is better',
  throughput: 'Requests a second; net = 100 %, more is better',
}

const [LETTER, WIDTH, BAR, GAP, TOP] = [6.7, 400, 12, 12, 56]

/**
 * Bars as an SVG: a figure of each peer in each scenario, net's being 100 %. Undefined if no scenario has both.
 *
 * @param {{ peers: string[], scenarios: object[] }} results
 * @param {'cpu' | 'throughput'} figure
 */
export function chart({ peers, scenarios }, figure) {
  const rows = scenarios
    .filter(({ kind }) => kinds[kind].ratios.net?.includes(figure))
    .map(({ title, peers: measured }) => ({ title, bars: shares(measured, figure) }))
    .filter(({ bars }) => bars.length > 1)
  if (rows.length === 0) return undefined
  const left = Math.ceil(LETTER * Math.max(...rows.map(({ title }) => title.length))) + 16
  const most = Math.max(1, ...rows.flatMap(({ bars }) => bars.map(({ share }) => share)))
  const parts = []
  let top = TOP
  for (const { title, bars } of rows) {
    parts.push(row(title, bars, { left, top, most }))
    top += bars.length * BAR + GAP
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${left + WIDTH + 60}" height="${top}"
  font-family="sans-serif" font-size="12">
<style>text{fill:#212529}.small{font-size:10px}@media (prefers-color-scheme: dark){text{fill:#dee2e6}}</style>
<text x="0" y="16" font-size="14" font-weight="bold">${TITLES[figure]}</text>
${[...legend(peers), ...parts].join('\n')}
</svg>
`
}

/** The same as text, for where no image can be shown. */
export function textChart({ scenarios }, figure) {
  const rows = scenarios.flatMap(({ title, kind, peers }) => {
    const bars = shares(peers, figure)
    if (bars.length < 2 || !kinds[kind].ratios.net?.includes(figure)) return []
    return [
      title,
      ...bars.map(({ peer, share }) => {
        const length = Math.min(60, Math.round(share * 30))
        return `  ${peer.padEnd(14)} ${'█'.repeat(length)} ${percent(share)}`
      }),
    ]
  })
  return rows.length === 0 ? undefined : [TITLES[figure], '', ...rows].join('\n')
}

/** Relative to net; nothing without net. */
function shares(measured, figure) {
  const whole = measured.net?.[figure]?.median
  if (!(whole > 0)) return []
  return Object.entries(measured).flatMap(([peer, summary]) =>
    summary[figure] === undefined ? [] : [{ peer, share: summary[figure].median / whole }],
  )
}

function row(title, bars, { left, top, most }) {
  const middle = top + (bars.length * BAR) / 2 + 4
  const x = (share) => (share / most) * WIDTH
  const drawn = bars.map(({ peer, share }, index) => {
    const y = top + index * BAR
    return (
      `<rect x="${left}" y="${y}" width="${x(share).toFixed(1)}" height="${BAR - 2}" fill="${colorOf(peer)}"/>` +
      `<text x="${(left + x(share) + 6).toFixed(1)}" y="${y + 9}" class="small">${percent(share)}</text>`
    )
  })
  return `<text x="${left - 12}" y="${middle}" text-anchor="end">${title}</text>${drawn.join('')}`
}

function legend(peers) {
  let at = 0
  return peers.map((peer) => {
    const label = LABELS[peer] ?? peer
    const key =
      `<rect x="${at.toFixed()}" y="28" width="12" height="12" fill="${colorOf(peer)}"/>` +
      `<text x="${(at + 16).toFixed()}" y="38">${label}</text>`
    at += 34 + label.length * LETTER
    return key
  })
}

/** The variants of a peer share its colour. */
function colorOf(peer) {
  return COLORS[peer.split(':')[0]]
}

function percent(share) {
  return `${Math.round(share * 100)} %`
}
