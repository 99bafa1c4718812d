import {diffused, finish, heun, inaccurate, level, levels, logProb, mixtureScore} from "../compass.mjs";
import {colour, frames, gridOver, number, opacities, pair, slider, stage, tell} from "../stage.mjs";

const ACCURACIES = [0, 0.25, 0.5, 0.75, 1];
const CELLS = 56;

// At a point the compass says where the data are; with less accuracy it knows only their middle.
export function noiseCompassFigure(section, page) {
  const score = mixtureScore(page.eight);
  const grid = gridOver(page.plane, CELLS);
  let held = [0.3, 1.8];
  let shade = null;

  // A walk at each accuracy, from the point and the time on.
  const walks = (accuracies, from) => {
    const x = Float64Array.from(accuracies.flatMap(() => held));
    const paths = accuracies.map(() => [held]);
    const down = levels({...page.vp, tMax: from.t}, 40);
    for (const _ of heun(inaccurate(score, accuracies), x, down)) {
      paths.forEach((path, i) => path.push([x[2 * i], x[2 * i + 1]]));
    }
    return paths;
  };

  const draw = () => {
    const now = level(page.vp, Math.max(2 * page.vp.tMin, time.value));
    shade ??= opacities(logProb(diffused(page.eight, now), grid));
    const share = accuracy.value / 100;
    const x = Float64Array.from(held);
    const exact = score.at(now)(x, new Float64Array(2));
    const said = inaccurate(score, [share]).at(now)(x, new Float64Array(2));
    const guess = [0, 1].map((i) => (x[i] + now.sigma ** 2 * exact[i]) / now.alpha);
    const [path, ...others] = walks([share, ...ACCURACIES], now);

    const ink = colour();
    s.clear();
    s.heat(shade.map((value) => 0.6 * value), CELLS, CELLS, ink.first);
    s.line(page.outline, ink.soft, {dash: [4, 5], width: 1});
    for (const thin of others) {
      s.line(thin, ink.soft, {width: 1.2});
      s.circle(...thin.at(-1), 2.5, ink.soft, {fill: true});
    }
    s.line(path, ink.second, {width: 2.2});
    s.circle(...path.at(-1), 4, ink.second, {fill: true});
    s.circle(...guess, 5, ink.third, {width: 2});
    const length = Math.hypot(...said);
    const needle = said.map((value) => (0.6 * value) / Math.max(length, 1e-9));
    s.arrow(...held, ...needle, ink.ink, {width: 2.4, head: 9});
    s.handle(...held, ink.second);
    tell(section, {
      score: pair(...exact),
      noise: pair(-now.sigma * exact[0], -now.sigma * exact[1]),
      guess: pair(...guess),
      said: pair(...said),
      end: pair(...path.at(-1)),
      apart: number(page.medianDistance(Float64Array.from(path.at(-1))), 3),
    });
  };

  const redraw = frames(draw);
  const time = slider(section, "time", () => {
    shade = null;
    redraw();
  }, (value) => value.toFixed(3));
  const accuracy = slider(section, "accuracy", redraw, (value) => `${value} %`);
  const s = stage(section.querySelector("canvas"), {
    ...page.plane,
    redraw,
    at: () => held,
    move: (u, v) => {
      held = [u, v];
      redraw();
    },
  });
}
