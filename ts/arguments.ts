import { inspect } from 'node:util'

/** Throws one of Node's own argument errors when `value` is not what `name` may be. */
export type Check = (value: unknown, name: string) => void

/** The largest size that a record of the rings can tell, in bytes or milliseconds. */
export const MAX_SIZE = 2 ** 31 - 1

export function invalidType(name: string, expected: string, value: unknown): TypeError {
  return withCode(
    new TypeError(`The "${name}" argument must be ${expected}. Received ${inspect(value)}`),
    'ERR_INVALID_ARG_TYPE',
  )
}

export function invalidValue(name: string, expected: string, value: unknown): TypeError {
  return withCode(
    new TypeError(`The argument "${name}" must be ${expected}. Received ${inspect(value)}`),
    'ERR_INVALID_ARG_VALUE',
  )
}

export function outOfRange(name: string, range: string, value: unknown): RangeError {
  const text = `The value of "${name}" is out of range. It must be ${range}. Received ${inspect(value)}`
  return withCode(new RangeError(text), 'ERR_OUT_OF_RANGE')
}

export function checkInteger(
  value: unknown,
  name: string,
  min: number,
  max: number,
): asserts value is number {
  if (typeof value !== 'number') throw invalidType(name, 'a number', value)
  if (!(value >= min && value <= max) || !Number.isInteger(value)) {
    throw outOfRange(name, `an integer >= ${min} and <= ${max}`, value)
  }
}

export const integer =
  (min: number, max: number): Check =>
  (value, name) =>
    checkInteger(value, name, min, max)

export const milliseconds = integer(0, MAX_SIZE)

export const boolean: Check = (value, name) => {
  if (typeof value !== 'boolean') throw invalidType(name, 'a boolean', value)
}

export const callback: Check = (value, name) => {
  if (typeof value !== 'function') throw invalidType(name, 'a function', value)
}

export const abortSignal: Check = (value, name) => {
  if (!(value instanceof AbortSignal)) throw invalidType(name, 'an AbortSignal', value)
}

export const oneOf =
  (...values: string[]): Check =>
  (value, name) => {
    if (!values.includes(value as string)) throw invalidValue(name, `one of ${inspect(values)}`, value)
  }

/** Checks each option that is given (undefined is not) against `table`; one that is not in it is an error too. */
export function checkOptions(options: unknown, table: Record<string, Check>): void {
  if (options === undefined) return
  if (typeof options !== 'object' || options === null) throw invalidType('options', 'an object', options)
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(table, name))
      throw invalidValue('options', `of ${Object.keys(table).join(', ')}`, name)
    if (value !== undefined) table[name]!(value, `options.${name}`)
  }
}

function withCode<E extends Error>(error: E, code: string): E {
  return Object.assign(error, { code })
}

export function checkEncoding(encoding: unknown): void {
  if (!Buffer.isEncoding(encoding as string))
    throw invalidValue('encoding', 'an encoding of Buffer', encoding)
}
