import {diffused, level, logProb, mixtureScore} from "../compass.mjs";
import {choice, colour, frames, gridOver, number, opacities, pair, player, slider, stage, tell} from "../stage.mjs";

const CELLS = 64;
const ARROWS = 19;

// The score's arrows on the density, at any noise of three processes.
export function fieldFigure(section, page) {
  const score = mixtureScore(page.eight);
  const cells = gridOver(page.plane, CELLS);
  const places = gridOver(page.plane, ARROWS);
  const arrows = new Float64Array(places.length);
  let held = [0.6, -1.1];
  let shade = null; // it and the arrows stay while only the point moves

  const draw = () => {
    const chosen = page[process.value];
    const now = level(chosen, Math.min(chosen.tMax, Math.max(chosen.tMin, time.value)));
    const noised = diffused(page.eight, now);
    if (!shade) {
      shade = opacities(logProb(noised, cells)).map((value) => 0.8 * value);
      score.at(now)(places, arrows);
    }
    const ink = colour();
    s.clear();
    s.heat(shade, CELLS, CELLS, ink.first);
    drawArrows(s, places, arrows, ARROWS, ink.ink);
    const x = Float64Array.from(held);
    const here = score.at(now)(x, new Float64Array(2));
    s.handle(...held, ink.second);
    tell(section, {
      alpha: number(now.alpha, 3),
      sigma: number(now.sigma, 3),
      place: pair(...held),
      score: pair(...here),
      length: number(Math.hypot(...here)),
      density: number(logProb(noised, x)[0]),
    });
  };

  const redraw = frames(draw);
  const moved = () => {
    shade = null;
    redraw();
  };
  const time = slider(section, "time", moved, (value) => value.toFixed(3));
  const process = choice(section, "process", moved);
  const s = stage(section.querySelector("canvas"), {
    ...page.plane,
    redraw,
    at: () => held,
    move: (u, v) => {
      held = [u, v];
      redraw();
    },
  });
  player(section.querySelector("button"), time, 6, {down: true});
}

// Arrows (n², 2) at a grid's places, as long as the root of what they show, the longest as long as a cell.
export function drawArrows(s, places, arrows, n, colour) {
  let longest = 0;
  for (let i = 0; i < arrows.length; i += 2) longest = Math.max(longest, Math.hypot(arrows[i], arrows[i + 1]));
  const cell = (s.x[1] - s.x[0]) / n;
  for (let i = 0; i < arrows.length; i += 2) {
    const length = Math.hypot(arrows[i], arrows[i + 1]);
    if (length === 0) continue;
    const factor = (cell * Math.sqrt(length / longest)) / length;
    const [u, v] = [factor * arrows[i], factor * arrows[i + 1]];
    s.arrow(places[i] - u / 2, places[i + 1] - v / 2, u, v, colour, {width: 1, opacity: 0.8, head: 3.5});
  }
}
