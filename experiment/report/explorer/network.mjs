// A trained network in the page: models/mlp.py and its parameterisation, from the weights that Python wrote.
//
// A level has, beside t, alpha and sigma, what the parameterisation is there: s = known + out F(c_in x, c_noise), known
// = M x + b. A choice is what the network is told, as the vectors that this adds to its embedding and its first layer.

export function decoded(text, Type) {
  return new Type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

export function runLevels(rows) {
  return rows.map(([t, alpha, sigma, cIn, out, cNoise, ...known]) => ({t, alpha, sigma, cIn, out, cNoise, known}));
}

const silu = (z) => z / (1 + Math.exp(-z));

// out = bias + h kernel, kernel (inputs, outputs).
function affine({kernel, bias}, h, out) {
  const n = bias.length;
  out.set(bias);
  for (let i = 0; i < h.length; i++) {
    const value = h[i];
    for (let j = 0, k = i * n; j < n; j++, k++) out[j] += value * kernel[k];
  }
  return out;
}

// The score of the network under one choice.
export function networkScore({width, depth, frequencies, layers: written}, choice) {
  const layers = {};
  for (const [name, {kernel, bias}] of Object.entries(written)) {
    layers[name] = {kernel: decoded(kernel, Float32Array), bias: decoded(bias, Float32Array)};
  }
  const told = decoded(choice.told, Float32Array);
  const beside = decoded(choice.beside, Float32Array);
  const modulations = new Map();

  const modulation = ({cNoise}) => {
    if (!modulations.has(cNoise)) {
      const phases = frequencies.map((w) => Math.fround(Math.fround(cNoise) * w)); // rounded as the network's are
      const embedded = [...phases.map(Math.cos), ...phases.map(Math.sin)].map((value) => Math.SQRT2 * value);
      const inner = affine(layers["condition.inner"], embedded, new Float64Array(width));
      const outer = affine(layers["condition.outer"], inner.map((h, i) => silu(h + told[i])), new Float64Array(width));
      modulations.set(cNoise, affine(layers.modulation, outer.map(silu), new Float64Array(2 * depth * width)));
    }
    return modulations.get(cNoise);
  };

  const h = new Float64Array(width);
  const u = new Float64Array(width);
  const v = new Float64Array(width);
  const raw = new Float64Array(2);
  const place = new Float64Array(2);
  return {
    d: 2,
    at: (level) => {
      const m = modulation(level);
      const [a, b, c, d, e, f] = level.known;
      return (x, out) => {
        for (let row = 0; row < x.length; row += 2) {
          place[0] = level.cIn * x[row];
          place[1] = level.cIn * x[row + 1];
          affine(layers.inner, place, h);
          for (let i = 0; i < width; i++) h[i] += beside[i];
          for (let block = 0; block < depth; block++) {
            const scale = 2 * block * width;
            const shift = scale + width;
            for (let i = 0; i < width; i++) v[i] = silu(h[i]);
            affine(layers[`blocks.${block}.inner`], v, u);
            for (let i = 0; i < width; i++) u[i] = silu(u[i] * (1 + m[scale + i]) + m[shift + i]);
            affine(layers[`blocks.${block}.outer`], u, v);
            for (let i = 0; i < width; i++) h[i] += v[i];
          }
          for (let i = 0; i < width; i++) v[i] = silu(h[i]);
          affine(layers.outer, v, raw);
          out[row] = a * x[row] + b * x[row + 1] + e + level.out * raw[0];
          out[row + 1] = c * x[row] + d * x[row + 1] + f + level.out * raw[1];
        }
        return out;
      };
    },
  };
}
