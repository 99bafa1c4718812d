// The mathematics of the page, as pure functions: forward processes, exact mixtures, guidance, observations, solvers.
//
// x_t = alpha x_0 + sigma eps. A mixture of Gaussians stays one, so its density, its score and its best guess of the
// clean point are exact at every level of noise. Each formula is the one of sde_lib, and tests hold both together.
//
// Points are a Float64Array of n rows of d numbers. A level is {t, alpha, sigma}. A score is an object whose
// at(level) gives a function (x, out) that fills out with the score of each row of x.

// -- Forward processes -------------------------------------------------------------------------------------------

export function vp({beta_min, beta_max, t_min, t_max}) {
  const integral = (t) => t * (beta_min + 0.5 * t * (beta_max - beta_min));
  return {
    tMin: t_min,
    tMax: t_max,
    alpha: (t) => Math.exp(-0.5 * integral(t)),
    sigma: (t) => Math.sqrt(-Math.expm1(-integral(t))),
  };
}

export function cosineVP({s, t_min, t_max}) {
  const angle = (t) => ((t + s) / (1 + s)) * (Math.PI / 2);
  const start = angle(0);
  const moved = (t) => (t / (1 + s)) * (Math.PI / 2);
  return {
    tMin: t_min,
    tMax: t_max,
    alpha: (t) => Math.cos(angle(t)) / Math.cos(start),
    sigma: (t) => Math.sqrt(Math.sin(moved(t)) * Math.sin(moved(t) + 2 * start)) / Math.cos(start),
  };
}

export function rectifiedFlow({t_min, t_max}) {
  return {tMin: t_min, tMax: t_max, alpha: (t) => 1 - t, sigma: (t) => t};
}

export function level(process, t) {
  return {t, alpha: process.alpha(t), sigma: process.sigma(t)};
}

export function logSNR({alpha, sigma}) {
  return 2 * Math.log(alpha / sigma);
}

export function timeOfLogSNR(process, value) {
  let low = process.tMin;
  let high = process.tMax;
  for (let i = 0; i < 60; i++) {
    const middle = 0.5 * (low + high);
    if (logSNR(level(process, middle)) > value) low = middle;
    else high = middle;
  }
  return 0.5 * (low + high);
}

// steps + 1 levels from t_max down to t_min, even in log SNR.
export function levels(process, steps) {
  const first = logSNR(level(process, process.tMax));
  const last = logSNR(level(process, process.tMin));
  return Array.from({length: steps + 1}, (_, i) => {
    const t = i === 0 ? process.tMax : i === steps ? process.tMin
      : timeOfLogSNR(process, first + ((last - first) * i) / steps);
    return level(process, t);
  });
}

// -- Random numbers: one seed, one stream ------------------------------------------------------------------------

export function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
  };
}

export function normals(seed) {
  const uniform = uniforms(seed);
  let kept = null;
  return () => {
    if (kept !== null) {
      const value = kept;
      kept = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    kept = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

export function normalPoints(n, d, seed) {
  return Float64Array.from({length: n * d}, normals(seed));
}

// -- Mixtures of Gaussians in one and two dimensions -------------------------------------------------------------

// weights (k), means (k, d), covariances (k, d, d), as nested arrays; each covariance is kept as its eigenbasis and the
// variances along it, which is all that diffusion moves.
export function mixture(weights, means, covariances) {
  const k = weights.length;
  const d = means[0].length;
  const basis = new Float64Array(k * d * d);
  const variances = new Float64Array(k * d);
  covariances.forEach((S, i) => {
    if (d === 1) {
      basis[i] = 1;
      variances[i] = S[0][0];
      return;
    }
    const angle = 0.5 * Math.atan2(S[0][1] + S[1][0], S[0][0] - S[1][1]);
    const c = Math.cos(angle);
    const s = Math.sin(angle);
    const cross = (S[0][1] + S[1][0]) * c * s;
    basis.set([c, -s, s, c], 4 * i);
    variances[2 * i] = Math.max(0, S[0][0] * c * c + S[1][1] * s * s + cross);
    variances[2 * i + 1] = Math.max(0, S[0][0] * s * s + S[1][1] * c * c - cross);
  });
  const logWeights = Float64Array.from(weights, Math.log);
  return {k, d, logWeights, means: Float64Array.from(means.flat()), basis, variances};
}

// The mixture of x_t: means alpha m, variances alpha² v + sigma².
export function diffused(m, {alpha, sigma}) {
  return {
    ...m,
    means: m.means.map((value) => alpha * value),
    variances: m.variances.map((v) => alpha * alpha * v + sigma * sigma),
  };
}

export function samples(m, n, seed) {
  const uniform = uniforms(seed);
  const normal = normals(seed + 1);
  const {k, d} = m;
  const out = new Float64Array(n * d);
  for (let row = 0; row < n; row++) {
    let left = uniform();
    let i = 0;
    while (i < k - 1 && (left -= Math.exp(m.logWeights[i])) > 0) i++;
    for (let j = 0; j < d; j++) {
      const z = Math.sqrt(m.variances[i * d + j]) * normal();
      for (let axis = 0; axis < d; axis++) out[row * d + axis] += m.basis[(i * d + axis) * d + j] * z;
    }
    for (let axis = 0; axis < d; axis++) out[row * d + axis] += m.means[i * d + axis];
  }
  return out;
}

const LOG_2PI = Math.log(2 * Math.PI);

// What is the same for every row: log w_k minus the logarithm of the normaliser, and 1/variance.
function prepared(m) {
  const {k, d, logWeights, variances} = m;
  const normalisers = logWeights.map((w, i) => {
    for (let j = 0; j < d; j++) w -= 0.5 * (LOG_2PI + Math.log(variances[i * d + j]));
    return w;
  });
  const precisions = variances.map((v) => 1 / v);
  return {...m, normalisers, precisions, along: new Float64Array(k * d), share: new Float64Array(k)};
}

// Of one row: fills `along` (k d) with the offsets in each basis and `share` (k) with p(component | x).
// Returns log p(x).
function parts({k, d, means, basis, precisions, normalisers, along, share}, x, offset) {
  let largest = -Infinity;
  for (let i = 0; i < k; i++) {
    let square;
    if (d === 2) { // written out, since the page spends its time here
      const dx = x[offset] - means[2 * i];
      const dy = x[offset + 1] - means[2 * i + 1];
      const u = basis[4 * i] * dx + basis[4 * i + 2] * dy;
      const w = basis[4 * i + 1] * dx + basis[4 * i + 3] * dy;
      along[2 * i] = u;
      along[2 * i + 1] = w;
      square = u * u * precisions[2 * i] + w * w * precisions[2 * i + 1];
    } else {
      along[i] = x[offset] - means[i];
      square = along[i] * along[i] * precisions[i];
    }
    share[i] = normalisers[i] - 0.5 * square;
    if (share[i] > largest) largest = share[i];
  }
  let sum = 0;
  for (let i = 0; i < k; i++) {
    const apart = share[i] - largest;
    share[i] = apart < -45 ? 0 : Math.exp(apart); // e^-45 is below rounding
    sum += share[i];
  }
  for (let i = 0; i < k; i++) share[i] /= sum;
  return largest + Math.log(sum);
}

export function logProb(m, x) {
  const ready = prepared(m);
  const out = new Float64Array(x.length / m.d);
  for (let row = 0; row < out.length; row++) out[row] = parts(ready, x, row * m.d);
  return out;
}

// The score of each row: -sum_k p(k | x) S_k^-1 (x - m_k).
export function scoreOf(m) {
  const ready = prepared(m);
  const {k, d, basis, precisions, along, share} = ready;
  return (x, out) => {
    out.fill(0);
    for (let offset = 0; offset < x.length; offset += d) {
      parts(ready, x, offset);
      for (let i = 0; i < k; i++) {
        if (share[i] === 0) continue;
        if (d === 1) {
          out[offset] -= share[i] * along[i] * precisions[i];
          continue;
        }
        const u = share[i] * along[2 * i] * precisions[2 * i];
        const w = share[i] * along[2 * i + 1] * precisions[2 * i + 1];
        out[offset] -= basis[4 * i] * u + basis[4 * i + 1] * w;
        out[offset + 1] -= basis[4 * i + 2] * u + basis[4 * i + 3] * w;
      }
    }
    return out;
  };
}

export function mixtureScore(m) {
  return {d: m.d, at: (level) => scoreOf(diffused(m, level))};
}

// E[x_0 | x] = (x + sigma² s)/alpha, of each row.
export function denoiser(score, level, x) {
  const out = score.at(level)(x, new Float64Array(x.length));
  return out.map((s, i) => (x[i] + level.sigma * level.sigma * s) / level.alpha);
}

// In the plane: a function of one row of x that gives the mean D and the covariance V = [xx, xy, yy] of x_0 given it.
export function posteriorMoments(m, level) {
  const {k, d} = m;
  const noised = prepared(diffused(m, level));
  const {along, share} = noised;
  return (x, offset) => {
    parts(noised, x, offset);
    const D = [0, 0];
    const second = [0, 0, 0];
    for (let i = 0; i < k; i++) {
      if (share[i] === 0) continue;
      const mean = [m.means[i * d], m.means[i * d + 1]];
      for (let j = 0; j < d; j++) {
        const v = m.variances[i * d + j];
        const total = noised.variances[i * d + j];
        const [bx, by] = [m.basis[i * 4 + j], m.basis[i * 4 + 2 + j]];
        const shift = (level.alpha * v * along[i * d + j]) / total;
        mean[0] += bx * shift;
        mean[1] += by * shift;
        const left = (share[i] * v * level.sigma * level.sigma) / total;
        second[0] += left * bx * bx;
        second[1] += left * bx * by;
        second[2] += left * by * by;
      }
      D[0] += share[i] * mean[0];
      D[1] += share[i] * mean[1];
      second[0] += share[i] * mean[0] * mean[0];
      second[1] += share[i] * mean[0] * mean[1];
      second[2] += share[i] * mean[1] * mean[1];
    }
    return {D, V: [second[0] - D[0] * D[0], second[1] - D[0] * D[1], second[2] - D[1] * D[1]]};
  };
}

// -- Scores made of scores ---------------------------------------------------------------------------------------

// a s(x) + (1 - a)(-x): a compass of accuracy a, which else knows the data's mean 0 and variance 1 alone; one for each
// row of x.
export function inaccurate(score, accuracies) {
  return {
    d: score.d,
    at: (level) => {
      const exact = score.at(level);
      return (x, out) => {
        exact(x, out);
        for (let i = 0; i < x.length; i++) {
          const accuracy = accuracies[Math.floor(i / score.d)];
          out[i] = accuracy * out[i] - (1 - accuracy) * x[i];
        }
        return out;
      };
    },
  };
}

// Classifier-free guidance s_0 + g (s_1 - s_0); g = 1 is none.
export function guided(conditional, unconditional, g) {
  return {
    d: conditional.d,
    at: (level) => {
      const [one, none] = [conditional.at(level), unconditional.at(level)];
      let scratch = new Float64Array(0);
      return (x, out) => {
        if (scratch.length !== x.length) scratch = new Float64Array(x.length);
        one(x, out);
        none(x, scratch);
        for (let i = 0; i < x.length; i++) out[i] = scratch[i] + g * (out[i] - scratch[i]);
        return out;
      };
    },
  };
}

// y = a·x_0 + noise was seen. The score then gains alpha/sigma² (D' - D), where the shift of the guess is
// V a r/(noise² + a·V a) by moment matching and V a r/noise² by DPS, r = y - a·D.
export function observed(m, a, y, noise, method) {
  const plain = mixtureScore(m);
  return {
    d: 2,
    at: (level) => {
      const exact = plain.at(level);
      const moments = posteriorMoments(m, level);
      return (x, out) => {
        exact(x, out);
        for (let row = 0; row < x.length; row += 2) {
          const {D, V} = moments(x, row);
          const Va = [V[0] * a[0] + V[1] * a[1], V[1] * a[0] + V[2] * a[1]];
          const spread = method === "dps" ? 0 : a[0] * Va[0] + a[1] * Va[1];
          const pull = (y - a[0] * D[0] - a[1] * D[1]) / (noise * noise + spread);
          const gain = (level.alpha / (level.sigma * level.sigma)) * pull;
          out[row] += gain * Va[0];
          out[row + 1] += gain * Va[1];
        }
        return out;
      };
    },
  };
}

// The exact posterior of a mixture in the plane given y = a·x + noise, again a mixture, and log p(y).
export function observe(m, a, y, noise) {
  const weights = [];
  const means = [];
  const covariances = [];
  for (let i = 0; i < m.k; i++) {
    const [c, e, s, f] = m.basis.subarray(4 * i, 4 * i + 4);
    const [v, w] = m.variances.subarray(2 * i, 2 * i + 2);
    const S = [[v * c * c + w * e * e, v * c * s + w * e * f], [v * c * s + w * e * f, v * s * s + w * f * f]];
    const Sa = [S[0][0] * a[0] + S[0][1] * a[1], S[1][0] * a[0] + S[1][1] * a[1]];
    const total = a[0] * Sa[0] + a[1] * Sa[1] + noise * noise;
    const miss = y - a[0] * m.means[2 * i] - a[1] * m.means[2 * i + 1];
    weights.push(m.logWeights[i] - 0.5 * (LOG_2PI + Math.log(total) + (miss * miss) / total));
    means.push([m.means[2 * i] + (Sa[0] * miss) / total, m.means[2 * i + 1] + (Sa[1] * miss) / total]);
    covariances.push(S.map((row, p) => row.map((value, q) => value - (Sa[p] * Sa[q]) / total)));
  }
  const largest = Math.max(...weights);
  const logEvidence = largest + Math.log(weights.reduce((sum, w) => sum + Math.exp(w - largest), 0));
  const posterior = mixture(weights.map((w) => Math.exp(w - logEvidence)), means, covariances);
  return {posterior, logEvidence};
}

// The mean of a mixture, (d), and the sum of its variances over the axes.
export function momentsOf({k, d, logWeights, means, variances}) {
  const mean = new Array(d).fill(0);
  let square = 0;
  for (let i = 0; i < k; i++) {
    const weight = Math.exp(logWeights[i]);
    for (let j = 0; j < d; j++) {
      mean[j] += weight * means[i * d + j];
      square += weight * (means[i * d + j] ** 2 + variances[i * d + j]);
    }
  }
  return {mean, variance: square - mean.reduce((sum, value) => sum + value * value, 0)};
}

// -- What guidance samples, on two Gaussians N(m1, v1) and N(m0, v0) ---------------------------------------------

// From infinite noise, with u = (sigma/alpha)², A = (1 + u/v1)^g (1 + u/v0)^(1-g), b = g m1/(v1+u) + (1-g) m0/(v0+u):
// the ODE has variance v1^g v0^(1-g) and mean ∫ ½ b A^-½ du, the SDE variance ∫ A^-2 du and mean ∫ b/A du.
export function guidanceLaw([m1, v1], [m0, v0], g) {
  const law = {ode: {mean: 0, variance: v1 ** g * v0 ** (1 - g)}, sde: {mean: 0, variance: 0}};
  const step = 0.05;
  for (let z = -40; z <= 60; z += step) {
    const u = Math.exp(z);
    const logA = g * Math.log1p(u / v1) + (1 - g) * Math.log1p(u / v0);
    const b = (g * m1) / (v1 + u) + ((1 - g) * m0) / (v0 + u);
    law.ode.mean += 0.5 * b * Math.exp(z - 0.5 * logA) * step;
    law.sde.mean += b * Math.exp(z - logA) * step;
    law.sde.variance += Math.exp(z - 2 * logA) * step;
  }
  const precision = g / v1 + (1 - g) / v0;
  law.tilted = {mean: ((g * m1) / v1 + ((1 - g) * m0) / v0) / precision, variance: 1 / precision};
  return law;
}

// -- From noise to data ------------------------------------------------------------------------------------------

// The probability flow by Heun's method: x/alpha moves along the predicted noise eps = -sigma s,
// d(x/alpha) = eps d(sigma/alpha). A generator: x changes in place, and each step yields its number.
export function* heun(score, x, levels) {
  const slope = new Float64Array(x.length);
  const second = new Float64Array(x.length);
  const ahead = new Float64Array(x.length);
  for (let step = 1; step < levels.length; step++) {
    const [from, to] = [levels[step - 1], levels[step]];
    const change = to.sigma / to.alpha - from.sigma / from.alpha;
    score.at(from)(x, slope);
    for (let i = 0; i < x.length; i++) ahead[i] = to.alpha * (x[i] / from.alpha - change * from.sigma * slope[i]);
    score.at(to)(ahead, second);
    for (let i = 0; i < x.length; i++) {
      const eps = -0.5 * (from.sigma * slope[i] + to.sigma * second[i]);
      x[i] = to.alpha * (x[i] / from.alpha + change * eps);
    }
    yield step;
  }
}

// The reverse SDE by SDE-DPM-Solver++(2M), on levels even in log SNR. With q = (sigma' alpha/(sigma alpha'))² and the
// guess E = D + ½ (D - the D before), x' = alpha' (E + q (x/alpha - E)) + sigma' sqrt(1 - q) z.
export function* reverseSDE(score, x, levels, normal) {
  const slope = new Float64Array(x.length);
  const before = new Float64Array(x.length);
  for (let step = 1; step < levels.length; step++) {
    const [from, to] = [levels[step - 1], levels[step]];
    const q = ((to.sigma * from.alpha) / (from.sigma * to.alpha)) ** 2;
    const noise = to.sigma * Math.sqrt(1 - q);
    score.at(from)(x, slope);
    for (let i = 0; i < x.length; i++) {
      const D = (x[i] + from.sigma * from.sigma * slope[i]) / from.alpha;
      const guess = step === 1 ? D : 1.5 * D - 0.5 * before[i];
      before[i] = D;
      x[i] = to.alpha * (guess + q * (x[i] / from.alpha - guess)) + noise * normal();
    }
    yield step;
  }
}

export function finish(generator) {
  for (const _ of generator);
}
