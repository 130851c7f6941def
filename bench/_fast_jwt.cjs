// fast-jwt, asked by lines of JSON on standard input and answering by lines on standard output (see _fast_jwt.py).
// argv[2]: the folder of the package.
'use strict'

const { createSigner, createVerifier } = require(process.argv[2])

const WARM_UP_MS = 150 // the compiler replaces a function while it runs; a round must not pay for that
const acts = {} // by algorithm and name: what to do, and the items to do it with

const questions = {
  verifiers({ alg, key, isSecret, issuer, audience, tokens, before }) {
    const options = {
      key: isSecret ? Buffer.from(key, 'base64') : key,
      algorithms: [alg],
      allowedIss: issuer,
      allowedAud: audience,
      requiredClaims: ['exp', 'iss', 'aud']
    }
    // A request builds its own string of the header's bytes; so does every round, before the clock starts.
    const fresh = texts => texts.map(text => Buffer.from(text).toString('latin1'))
    const items = () => [fresh(before), fresh(tokens)]
    for (const [name, cache] of [['verify', false], ['verify cached', true]]) {
      acts[`${alg} ${name}`] = { act: createVerifier({ ...options, cache }), items }
      warmUp(acts[`${alg} ${name}`])
    }
  },

  signer({ alg, key, isSecret, header, claims }) {
    const sign = createSigner({ key: isSecret ? Buffer.from(key, 'base64') : key, algorithm: alg, header })
    acts[`${alg} sign`] = { act: sign, items: () => [claims.slice(0, claims.length / 5), claims] }
    warmUp(acts[`${alg} sign`])
  },

  once({ alg, name, item }) {
    try {
      return { result: acts[`${alg} ${name}`].act(item) }
    } catch (error) {
      return { refused: error.message }
    }
  },

  round({ alg, name }) {
    return { us: usEach(acts[`${alg} ${name}`]) }
  }
}

function warmUp({ act, items }) {
  const until = Date.now() + WARM_UP_MS
  do {
    for (const item of items().flat()) act(item)
  } while (Date.now() < until)
}

// Older Node has no clock of one thread. The thread's time is at most the process's and at most the wall clock's.
function usEach({ act, items }) {
  const [before, ready] = items()
  global.gc({ type: 'minor' })
  for (const item of before) act(item)
  const clock = process.threadCpuUsage ?? process.cpuUsage
  const wallBegan = process.hrtime.bigint()
  const began = clock.call(process)
  for (const item of ready) act(item)
  const took = clock.call(process, began)
  const wallNs = Number(process.hrtime.bigint() - wallBegan)
  return Math.min(took.user + took.system, wallNs / 1000) / ready.length
}

require('node:readline')
  .createInterface({ input: process.stdin })
  .on('line', line => {
    const { ask, ...rest } = JSON.parse(line)
    process.stdout.write(`${JSON.stringify(questions[ask](rest) ?? {})}\n`)
  })
