/**
 * @typedef {object} Spread
 * @property {number} median
 * @property {number} min
 * @property {number} max
 * @property {number} rounds that it is of
 */

/** Of two runs of the same program, no more than this share may seem to differ. */
const CHANCE = 0.05

/**
 * Of the values that are there; undefined if there are none.
 *
 * @param {(number | undefined)[]} values
 * @returns {Spread | undefined}
 */
export function spread(values) {
  const sorted = values.filter(Number.isFinite).toSorted((a, b) => a - b)
  if (sorted.length === 0) return undefined
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
  return { median, min: sorted[0], max: sorted.at(-1), rounds: sorted.length }
}

/**
 * Medians of the figures of a peer, and of their ratios to those of each reference in the same round. A measurement that
 * has failed has no figures.
 *
 * @param {Record<string, Record<string, number>>[]} rounds by peer, the figures of each round
 * @param {string} peer
 * @param {string[]} figures
 * @param {string[]} references
 */
export function summarize(rounds, peer, figures, references) {
  const all = (value) => Object.fromEntries(figures.map((name) => [name, spread(rounds.map(value(name)))]))
  const summary = all((name) => (round) => round[peer]?.[name])
  for (const reference of references.filter((name) => name !== peer)) {
    summary[`to_${reference}`] = all((name) => (round) => round[peer]?.[name] / round[reference]?.[name])
  }
  return summary
}

/**
 * What has become of a figure. It has changed if the rounds of one side are all below those of the other, and the
 * medians are further apart than `threshold`, a share. With few rounds chance alone does that too often: it is unsure
 * then.
 *
 * @param {Spread | undefined} before
 * @param {Spread | undefined} after
 * @param {{ more?: boolean, threshold?: number, least?: number }} [options] more of it is better; a difference
 *   below `least` is none
 * @returns {'better' | 'worse' | 'same' | 'unsure' | 'missing' | 'new' | 'unknown'}
 */
export function verdict(before, after, { more = false, threshold = 0.03, least = 0 } = {}) {
  if (before === undefined && after === undefined) return 'unknown'
  if (after === undefined) return 'missing'
  if (before === undefined) return 'new'
  const difference = after.median - before.median
  const overlap = after.min <= before.max && before.min <= after.max
  if (overlap || Math.abs(difference) <= Math.max(threshold * Math.abs(before.median), least)) return 'same'
  if (chanceOfGap(before.rounds, after.rounds) > CHANCE) return 'unsure'
  return difference > 0 === more ? 'better' : 'worse'
}

/** How likely all of `a` values are below all of `b` others, or above, when they come from the same source. */
export function chanceOfGap(a, b) {
  let orders = 1
  for (let index = 1; index <= b; index++) orders *= (a + index) / index
  return 2 / orders
}
