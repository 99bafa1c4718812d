import {heun, levels, mixtureScore, normalPoints, normals, reverseSDE, samples} from "../compass.mjs";
import {choice, colour, frames, number, pair, player, slider, stage, tell, worker} from "../stage.mjs";

const SHOWN = 800;
const STEPS = 120;

// Noise becomes data: every step of every particle is kept, and a slider goes through them.
export function reverseFigure(section, page) {
  const score = mixtureScore(page.eight);
  const all = levels(page.vp, STEPS);
  const clean = samples(page.eight, SHOWN, 11);
  const noise = normalPoints(SHOWN, 2, 12);
  const forward = []; // how far from the figure noised data are, at each step that was seen
  let kept = [];
  let seed = 3;
  let chosen = 0;
  let place = [1.5, 1];

  const draw = () => {
    const i = Math.min(step.value, kept.length - 1);
    const now = all[i];
    const x = kept[i];
    const ink = colour();
    s.clear();
    s.line(page.outline, ink.soft, {dash: [5, 5], width: 1.4});
    s.dots(x, ink.first);
    const trail = kept.slice(0, i + 1).map((points) => [points[2 * chosen], points[2 * chosen + 1]]);
    s.line(trail, ink.second, {width: 1.2, opacity: 0.8});
    s.handle(...trail.at(-1), ink.second);
    forward[i] ??= page.medianDistance(clean.map((value, j) => now.alpha * value + now.sigma * noise[j]));
    tell(section, {
      time: number(now.t, 3),
      sigma: number(now.sigma, 3),
      apart: number(page.medianDistance(x), 3),
      forward: number(forward[i], 3),
      place: pair(...trail.at(-1)),
    });
  };

  const redraw = frames(draw);
  const step = slider(section, "step", redraw, (value) => `${value} / ${STEPS}`);
  const nearest = (x, y) => {
    place = [x, y];
    const points = kept[Math.min(step.value, kept.length - 1)];
    const square = (j) => (points[2 * j] - x) ** 2 + (points[2 * j + 1] - y) ** 2;
    for (let j = 0; j < SHOWN; j++) if (square(j) < square(chosen)) chosen = j;
    redraw();
  };
  const s = stage(section.querySelector("canvas"), {...page.plane, redraw, move: nearest, at: () => place, step: 0.2});

  const work = worker(redraw);
  const run = () => {
    const x = normalPoints(SHOWN, 2, seed);
    kept = [Float32Array.from(x)];
    const solver = method.value === "sde" ? reverseSDE(score, x, all, normals(seed + 100)) : heun(score, x, all);
    const keeping = function* () {
      for (const _ of solver) {
        kept.push(Float32Array.from(x));
        yield;
      }
    };
    work(keeping());
    redraw();
  };
  const method = choice(section, "method", run);
  const [play, again] = section.querySelectorAll("button");
  player(play, step, 5);
  again.addEventListener("click", () => {
    seed += 1;
    run();
  });
  run();
}
