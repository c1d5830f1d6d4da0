// The hard tests: what takes minutes, or most of the machine. `npm run test:hard` runs them, `npm test` does not.

export default { files: ['__test__/hard/*.test.mjs'], timeout: '20m', workerThreads: false }
