// Computes with the page's own mathematics what test_compass.py holds against sde_lib:
// node compute.mjs COMPASS.mjs GIVEN.json prints JSON.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const c = await import(pathToFileURL(process.argv[2]));
const given = JSON.parse(readFileSync(process.argv[3]));
const {processes, eight, peaks} = given.numbers;
const data = c.mixture(eight.weights, eight.means, eight.covariances);
const line = c.mixture(peaks.weights, peaks.means, peaks.covariances);
const made = {vp: c.vp(processes.vp), cosine: c.cosineVP(processes.cosine), flow: c.rectifiedFlow(processes.flow)};
const list = (x) => Array.from(x);

const fields = {};
for (const [name, process] of Object.entries(made)) {
  fields[name] = given.times.map((t, i) => {
    const level = c.level(process, t);
    const x = Float64Array.from(given.points[name][i].flat());
    const score = c.mixtureScore(data);
    return {
      alpha: level.alpha,
      sigma: level.sigma,
      score: list(score.at(level)(x, new Float64Array(x.length))),
      logProb: list(c.logProb(c.diffused(data, level), x)),
      denoiser: list(c.denoiser(score, level, x)),
    };
  });
}

const {a, y, noise} = given.seen;
const {posterior, logEvidence} = c.observe(data, a, y, noise);
const at = Float64Array.from(given.places.flat());
const observed = {logEvidence, logProb: list(c.logProb(posterior, at)), moments: c.momentsOf(posterior), scores: {}};
for (const method of ["matching", "dps"]) {
  observed.scores[method] = given.seenTimes.map((t) =>
    list(c.observed(data, a, y, noise, method).at(c.level(made.vp, t))(at, new Float64Array(at.length))));
}

const laws = given.scales.map((g) => c.guidanceLaw(...given.gaussians, g));
const drawn = given.scales.map((g) => {
  const [one, none] = given.gaussians.map(([m, v]) => c.mixtureScore(c.mixture([1], [[m]], [[[v]]])));
  const moments = (x) => {
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    return {mean, variance: x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length};
  };
  const levels = c.levels(made.vp, 200);
  const x = {ode: c.normalPoints(4000, 1, 1), sde: c.normalPoints(4000, 1, 2)};
  c.finish(c.heun(c.guided(one, none, g), x.ode, levels));
  c.finish(c.reverseSDE(c.guided(one, none, g), x.sde, levels, c.normals(3)));
  return {ode: moments(x.ode), sde: moments(x.sde)};
});

// 2,000 particles on the line, whose paths are kept, and their ends.
const levels = c.levels(made.vp, 160);
const paths = {};
for (const name of ["ode", "sde"]) {
  const x = c.normalPoints(2000, 1, 5);
  paths[name] = [list(x)];
  const solver = name === "ode" ? c.heun(c.mixtureScore(line), x, levels)
    : c.reverseSDE(c.mixtureScore(line), x, levels, c.normals(6));
  for (const _ of solver) paths[name].push(list(x));
}

// The figure at the end of noise, and back.
const clean = c.samples(data, 2000, 7);
const noise2 = c.normalPoints(2000, 2, 8);
const last = c.level(made.vp, 1);
const forward = list(clean.map((value, i) => last.alpha * value + last.sigma * noise2[i]));
const back = {};
for (const name of ["ode", "sde"]) {
  const x = c.normalPoints(1000, 2, 9);
  const down = c.levels(made.vp, 100);
  c.finish(name === "ode" ? c.heun(c.mixtureScore(data), x, down) : c.reverseSDE(c.mixtureScore(data), x, down, c.normals(10)));
  back[name] = list(c.logProb(c.diffused(data, down.at(-1)), x));
}

const normal = c.normals(11);
const stream = Array.from({length: 20000}, normal);
const again = c.normals(11);
const repeated = stream.every((value) => value === again());

console.log(JSON.stringify({
  fields, observed, laws, drawn, paths, forward, back, stream, repeated, clean: list(clean), times: levels.map((l) => l.t),
}));
