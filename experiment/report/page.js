// What the report's page does beyond showing pictures: a slider over the frames of each path, whose pixels are those of
// the strip that is there already, and a bar's numbers under the pointer or the focus.
"use strict";
(() => {
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const small = matchMedia("(max-width: 40rem)");
  const GAP = 8; // pixels between samples
  const MILLISECONDS = 250; // of a frame, when they play

  function add(parent, name, properties, before = null) {
    const element = Object.assign(document.createElement(name), properties);
    parent.insertBefore(element, before);
    return element;
  }

  function scrub(figure) {
    const { texts, wide } = JSON.parse(figure.dataset.frames);
    const picture = figure.querySelector("img");
    const strip = new Image();
    const last = texts.length - 1;
    const scale = wide[last].length > 1 ? 1 : 2; // one cloud has room
    const [, , width, height] = wide[last][0];
    const box = add(figure, "div", { className: "scrub" }, figure.querySelector("figcaption"));
    const canvas = add(box, "canvas", {
      width: scale * wide[last].length * (width + GAP) - GAP,
      height: scale * height,
    });
    const row = add(box, "div", { className: "row" });
    const play = add(row, "button", { type: "button", textContent: "Play" });
    const slider = add(row, "input", { type: "range", min: 0, max: last, step: 1, value: last });
    const told = add(row, "output", {});
    const pen = canvas.getContext("2d");
    let timer = 0;

    canvas.setAttribute("role", "img");
    slider.setAttribute("aria-label", `Frame: ${picture.alt}`);

    function show() {
      const frame = Number(slider.value);
      pen.clearRect(0, 0, canvas.width, canvas.height);
      wide[frame].forEach(([x, y, w, h], i) =>
        pen.drawImage(strip, x, y, w, h, scale * i * (width + GAP), 0, scale * width, scale * height));
      told.textContent = texts[frame];
      slider.setAttribute("aria-valuetext", texts[frame]);
      canvas.setAttribute("aria-label", `${picture.alt} ${texts[frame]}`);
    }

    function stop() {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    }

    function forward() {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === last) stop();
    }

    play.onclick = () => {
      if (timer) return stop();
      if (Number(slider.value) === last) slider.value = 0;
      play.textContent = "Stop";
      timer = setInterval(forward, MILLISECONDS);
      show();
    };
    slider.oninput = () => {
      stop();
      show();
    };
    still.addEventListener("change", stop); // there the button is not shown
    strip.onload = show;
    strip.src = picture.src; // the wide one, also where a narrow page shows the other
  }

  function hover(figure) {
    const given = JSON.parse(figure.dataset.bars);
    const picture = figure.querySelector("picture");
    const image = picture.querySelector("img");
    const over = add(figure, "div", { className: "over" }, picture);
    over.append(picture);
    over.setAttribute("role", "group");
    over.setAttribute("aria-label", "The bars' numbers; arrow keys go from one to the next");
    const tip = add(over, "div", { className: "tip", hidden: true });
    tip.setAttribute("aria-hidden", "true"); // a bar's own label says the same
    let bars = [];

    function tell(bar) {
      tip.hidden = false;
      tip.textContent = bar.getAttribute("aria-label");
      const room = over.clientWidth - tip.offsetWidth;
      const middle = bar.offsetLeft + (bar.offsetWidth - tip.offsetWidth) / 2;
      tip.style.left = `${Math.max(0, Math.min(room, middle))}px`;
      tip.style.top = `${Math.max(0, bar.offsetTop - tip.offsetHeight - 4)}px`;
    }

    function hide() {
      tip.hidden = true;
    }

    function move(event) {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!by) return;
      event.preventDefault();
      const next = bars[(bars.indexOf(event.target) + by + bars.length) % bars.length];
      for (const bar of bars) bar.tabIndex = bar === next ? 0 : -1; // one stop for Tab
      next.focus();
    }

    function place() {
      if (!image.naturalWidth) return;
      for (const bar of bars) bar.remove();
      hide();
      bars = (small.matches ? given.narrow : given.wide).map(([[x, y, w, h]], i) => {
        const bar = add(over, "button", { type: "button", className: "bar", tabIndex: i ? -1 : 0 });
        bar.setAttribute("aria-label", given.texts[i]);
        const share = (pixels, of) => `${(100 * pixels) / of}%`;
        Object.assign(bar.style, {
          left: share(x, image.naturalWidth), width: share(w, image.naturalWidth),
          top: share(y, image.naturalHeight), height: share(h, image.naturalHeight),
        });
        bar.onmouseenter = bar.onfocus = () => tell(bar);
        bar.onmouseleave = bar.onblur = hide;
        bar.onkeydown = move;
        return bar;
      });
    }

    image.addEventListener("load", place); // and again where the page becomes narrow or wide
    place();
  }

  document.querySelectorAll("[data-frames]").forEach(scrub);
  document.querySelectorAll("[data-bars]").forEach(hover);
})();
