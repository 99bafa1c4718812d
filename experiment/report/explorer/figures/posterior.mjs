import {
  levels, logProb, momentsOf, normalPoints, normals, observe, observed, reverseSDE, samples,
} from "../compass.mjs";
import {choice, colour, frames, gridOver, number, opacities, pair, slider, stage, tell, worker} from "../stage.mjs";

const CELLS = 72;
const DRAWS = 400;
const STEPS = 60;

// One number y = a·x + noise is seen of a point of the figure: where the point may be, exactly and by approximations.
export function posteriorFigure(section, page) {
  const grid = gridOver(page.plane, CELLS);
  const down = levels(page.vp, STEPS);
  let held = [0.9, 0.5];
  let drawn = null;

  const direction = () => {
    const angle = (angleSlider.value * Math.PI) / 180;
    return [Math.cos(angle), Math.sin(angle)];
  };
  const seen = () => {
    const a = direction();
    return {a, y: a[0] * held[0] + a[1] * held[1], noise: noise.value};
  };

  const draw = () => {
    const {a, y, noise} = seen();
    const {posterior, logEvidence} = observe(page.eight, a, y, noise);
    const ink = colour();
    s.clear();
    s.heat(opacities(logProb(posterior, grid)), CELLS, CELLS, ink.first);
    s.line(page.outline, ink.soft, {dash: [4, 5], width: 1});
    for (const shift of [-noise, 0, noise]) {
      const foot = [a[0] * (y + shift), a[1] * (y + shift)];
      s.line([-9, 9].map((far) => [foot[0] - far * a[1], foot[1] + far * a[0]]), ink.second, {
        width: shift ? 1 : 1.8, dash: shift ? [3, 4] : [], opacity: shift ? 0.7 : 1,
      });
    }
    if (drawn) s.dots(drawn, ink.ink, {size: 1.3, opacity: 0.55});
    s.handle(...held, ink.second);
    const {mean, variance} = momentsOf(posterior);
    tell(section, {
      y: number(y),
      evidence: number(logEvidence),
      mean: pair(...mean),
      spread: number(Math.sqrt(variance)),
      "drawn-mean": drawn ? pair(...meanPoint(drawn)) : "…",
      "drawn-spread": drawn ? number(spreadOf(drawn)) : "…",
    });
  };

  const redraw = frames(draw);
  const work = worker((done) => done && redraw());
  const run = () => {
    const {a, y, noise} = seen();
    drawn = null;
    const x = normalPoints(DRAWS, 2, 51);
    const drawing = function* () {
      if (method.value === "exact") drawn = samples(observe(page.eight, a, y, noise).posterior, DRAWS, 52);
      else {
        yield* reverseSDE(observed(page.eight, a, y, noise, method.value), x, down, normals(53));
        drawn = x;
      }
    };
    work(drawing());
    redraw();
  };
  const angleSlider = slider(section, "angle", run, (value) => `${value}°`);
  const noise = slider(section, "noise", run);
  const method = choice(section, "method", run);
  const s = stage(section.querySelector("canvas"), {
    ...page.plane,
    redraw,
    at: () => held,
    move: (u, v) => {
      held = [u, v];
      run();
    },
  });
  run();
}

function meanPoint(x) {
  const mean = [0, 0];
  x.forEach((value, i) => (mean[i % 2] += (2 * value) / x.length));
  return mean;
}

// The root mean square distance from the mean.
function spreadOf(x) {
  const mean = meanPoint(x);
  return Math.sqrt(x.reduce((sum, value, i) => sum + (value - mean[i % 2]) ** 2, 0) / (x.length / 2));
}
