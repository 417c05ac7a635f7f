"use strict";

/**
 * Returns the strengths of the Bradley–Terry model, {name: strength}.
 *
 * The minorisation–maximisation algorithm of Hunter 2004 (MM algorithms for generalized
 * Bradley–Terry models, eq. 3): p_i ← W_i / Σ_j N_ij / (p_i + p_j), with W_i the wins of i and N_ij
 * the comparisons of i with j.
 *
 * @param {string[]} names
 * @param {{winner: string, loser: string, count: number}[]} wins A tie is half a win for each.
 * @param {number} prior Ties of each name with an imaginary opponent of strength 1. With 0, there
 *   are finite strengths only where no group of names wins or loses all against the others, and
 *   their geometric mean is 1.
 */
function bradleyTerry(names, wins, prior) {
  const zeros = () => new Map(names.map((name) => [name, 0]));
  const won = zeros();
  const compared = new Map(names.map((name) => [name, zeros()]));
  for (const { winner, loser, count } of wins) {
    won.set(winner, won.get(winner) + count);
    for (const [one, other] of [[winner, loser], [loser, winner]]) {
      compared.get(one).set(other, compared.get(one).get(other) + count);
    }
  }
  let strengths = new Map(names.map((name) => [name, 1]));
  for (let round = 0, change = 1; round < 10000 && change > 1e-10; round++) {
    const next = new Map();
    for (const name of names) {
      const own = strengths.get(name);
      let sum = prior / (own + 1);
      for (const [other, count] of compared.get(name)) sum += count / (own + strengths.get(other));
      next.set(name, sum > 0 ? (won.get(name) + prior / 2) / sum : own);
    }
    change = Math.max(...names.map((name) => Math.abs(next.get(name) / strengths.get(name) - 1)));
    strengths = next;
  }
  if (prior) return Object.fromEntries(strengths);
  const logs = [...strengths.values()].map(Math.log);
  const mean = Math.exp(logs.reduce((sum, log) => sum + log, 0) / logs.length);
  return Object.fromEntries(names.map((name) => [name, strengths.get(name) / mean]));
}
