"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const canvas = at("overlay");
const Patch = data.windowed ? "Cell" : "Patch";
const images = [...document.querySelectorAll("input[name=image]")];
let patch = null; // what is pointed at: x and y in shares of the image

const percent = (share) => `${Math.round(100 * share)} %`;
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const number = () => images.findIndex((input) => input.checked);
const look = () => data.images[number()].looks[at("stop").value];
const view = () => at("view").value; // "" for what all stages compute, "depth", or the number of a stage
const grid = () => look().stages[view()] ?? look().all;
const depths = (map) => (map.unpacked ??= bytes(map.depth));

/** ChartRow and column of the patch of a map that holds a point of the image. */
function cellAt(map, { x, y }) {
  const [top, left, height, width] = map.extent;
  const place = (share, cells) => Math.min(cells - 1, Math.max(0, Math.floor(share * cells)));
  return [place((y - top) / height, map.rows), place((x - left) / width, map.cols)];
}

/** Centre of a patch in shares of the image. */
function centre(map, row, col) {
  const [top, left, height, width] = map.extent;
  return { x: left + ((col + 0.5) / map.cols) * width, y: top + ((row + 0.5) / map.rows) * height };
}

/** Edges of the columns and rows of a map in whole pixels of the canvas: patches leave no gap, nor one at its border. */
function edges(map) {
  const [top, left, height, width] = map.extent;
  const lines = (cells, start, length, pixels) => {
    const inner = Array.from({ length: cells - 1 }, (_, i) => start + ((i + 1) / cells) * length);
    return [0, ...inner, 1].map((share) => Math.round(share * pixels));
  };
  return [lines(map.cols, left, width, canvas.width), lines(map.rows, top, height, canvas.height)];
}

/** The router's score of a patch, null where nothing was scored. */
function scoreAt(map, index) {
  if (!map.scores) return null;
  map.scores.unpacked ??= bytes(map.scores.steps);
  const { low, step, unpacked } = map.scores;
  return low + step * (unpacked[2 * index] + 256 * unpacked[2 * index + 1]);
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const box = canvas.getBoundingClientRect();
  canvas.width = Math.max(1, Math.round(box.width * ratio));
  canvas.height = Math.max(1, Math.round(box.height * ratio));
  const pen = canvas.getContext("2d");
  drawPatches(pen, ratio);
  if (at("boxes").checked) for (const found of look().boxes) drawBox(pen, ratio, found);
  if (patch) drawPointed(pen, ratio);
}

/** Shade what is skipped, or colour each patch by the blocks it passed; with lines between, or around each window. */
function drawPatches(pen, ratio) {
  const map = grid();
  const coloured = view() === "depth";
  const passed = coloured ? depths(map) : depths(map).map(Math.sign);
  const [xs, ys] = edges(map);
  const borders = new Path2D();
  for (let row = 0; row < map.rows; row++) {
    for (let col = 0; col < map.cols; col++) {
      const depth = passed[row * map.cols + col];
      const [x, y, right, bottom] = [xs[col], ys[row], xs[col + 1], ys[row + 1]];
      pen.globalAlpha = depth && !coloured ? 0 : data.opacity[depth];
      pen.fillStyle = data.palette[depth];
      pen.fillRect(x, y, right - x, bottom - y);
      if (col + 1 < map.cols && passed[row * map.cols + col + 1] !== depth) borders.rect(right, y, 0, bottom - y);
      if (row + 1 < map.rows && passed[(row + 1) * map.cols + col] !== depth) borders.rect(x, bottom, right - x, 0);
    }
  }
  if (data.windowed) return drawWindows(pen, ratio);
  pen.globalAlpha = 1;
  pen.strokeStyle = coloured ? data.palette[0] : "#fff";
  pen.lineWidth = ratio;
  pen.stroke(borders);
}

/** Draw a hairline around each window, the first ones on top, and its number. */
function drawWindows(pen, ratio) {
  pen.globalAlpha = 1;
  pen.lineWidth = ratio;
  const boxes = (look().windows?.boxes ?? []).map((box, i) => [i + 1, ...box]);
  for (const [number, top, left, height, width] of boxes.reverse()) {
    const [x, right] = [left, left + width].map((share) => Math.min(1, Math.max(0, share)) * canvas.width);
    const [y, bottom] = [top, top + height].map((share) => Math.min(1, Math.max(0, share)) * canvas.height);
    for (const [colour, inset] of [["#282828", 0.5 * ratio], ["#fff", 1.5 * ratio]]) {
      pen.strokeStyle = colour;
      pen.strokeRect(x + inset, y + inset, right - x - 2 * inset, bottom - y - 2 * inset);
    }
    const side = 18 * ratio;
    if (boxes.length <= data.numbered && right - x > 3 * side && bottom - y > 3 * side)
      drawText(pen, ratio, `${number}`, x, bottom - side, "#fff", "#282828");
  }
}

/** Write a text on a rectangle of a colour, of which the upper left corner is given. */
function drawText(pen, ratio, text, left, top, colour, ink) {
  pen.font = `${12 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
  const width = pen.measureText(text).width + 8 * ratio;
  const start = Math.max(0, Math.min(left, canvas.width - width));
  pen.fillStyle = colour;
  pen.fillRect(start, top, width, 18 * ratio);
  pen.fillStyle = ink;
  pen.fillText(text, start + 4 * ratio, top + 13 * ratio);
}

function drawBox(pen, ratio, found) {
  const [x1, y1, x2, y2] = found.box.map((share, i) => share * (i % 2 ? canvas.height : canvas.width));
  for (const [colour, width] of [["#111", 4], ["#fff", 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width * ratio;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  drawText(pen, ratio, `${found.name} ${found.conf.toFixed(2)}`, x1, Math.max(0, y1 - 18 * ratio), "#111", "#fff");
}

/** Outline the patch that is pointed at. */
function drawPointed(pen, ratio) {
  const map = grid();
  const [row, col] = cellAt(map, patch);
  const [xs, ys] = edges(map);
  for (const [colour, width] of [["#111", 5], ["#fff", 2.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width * ratio;
    pen.strokeRect(xs[col], ys[row], xs[col + 1] - xs[col], ys[row + 1] - ys[row]);
  }
}

/** What each stage did with the patch that is pointed at. */
function routes() {
  return look().stages.map((map, i) => {
    const [row, col] = cellAt(map, patch);
    const index = row * map.cols + col;
    return { ...data.stages[i], passed: depths(map)[index], score: scoreAt(map, index) };
  });
}

/** How many blocks, or windows, a patch passed, in words. */
const passed = (route) => (data.windowed ? `${route.passed}` : `${route.passed} of ${route.blocks}`);

function showRoute() {
  const rows = [...at("route").rows];
  const found = patch ? routes() : [];
  rows.forEach((row, i) => {
    const cells = [...row.cells].slice(1);
    const route = found[i];
    cells[0].className = route?.passed ? "computed" : "";
    const score = route && route.score !== null ? route.score.toFixed(2) : "-";
    const texts = route ? [route.passed ? "computed" : "skipped", passed(route), score] : ["-", "-", "-"];
    texts.forEach((text, j) => (cells[j].textContent = text));
  });
  const map = grid();
  const [row, col] = patch ? cellAt(map, patch) : [];
  at("route-title").textContent = patch ? `${Patch}, row ${row + 1}, column ${col + 1}` : Patch;
}

function speakRoute() {
  const said = routes().map((route) => {
    const score = route.score === null ? "" : `, score ${route.score.toFixed(2)}`;
    const unit = data.windowed ? (route.passed === 1 ? "window" : "windows") : "blocks";
    return `${route.title} ${route.passed ? `computed, ${passed(route)} ${unit}` : "skipped"}${score}`;
  });
  at("spoken").textContent = `${at("route-title").textContent}: ${said.join("; ")}`;
}

function showSummary() {
  const [all, stage, stop] = [look().all, data.stages[view()], data.stops[at("stop").value]];
  const big = document.createElement("strong");
  big.textContent = percent(grid().skipped);
  const windows = look().windows ? `: ${look().windows.told}` : "";
  const text = data.windowed
    ? ` of the image skipped at ${stop.words}${windows}.`
    : stage
    ? ` of the patches skipped by the ${stage.title} at ${stop.words}.`
    : ` of the block passes skipped at ${stop.words}; ${percent(all.none)} of the patches pass no routed block.`;
  at("summary").replaceChildren(big, text, ` ${stop.verdict} ${look().note}`);
}

function showBoxes() {
  at("found").hidden = !at("boxes").checked;
  const found = look().boxes.map(({ name, conf }) => `${name} ${conf.toFixed(2)}`);
  at("found-list").textContent = found.length ? found.join(", ") : "none";
}

/** Bring the whole page to what the controls say. */
function show() {
  const { name, width, height } = data.images[number()];
  const stop = at("stop").value;
  at("photo").src = images[number()].nextElementSibling.src;
  at("photo").alt = name;
  at("photo").style.aspectRatio = `${width} / ${height}`;
  at("photo").classList.toggle("gray", view() === "depth" && !data.windowed);
  at("mask-legend").hidden = view() === "depth";
  at("depth-legend").hidden = view() !== "depth";
  at("photo").width = width >= height ? 800 : Math.round((800 * width) / height);
  at("name").textContent = `Image ${number() + 1} of ${images.length}: ${name}`;
  at("stop-name").textContent = data.stops[stop].label;
  at("stop").setAttribute("aria-valuetext", data.stops[stop].label);
  canvas.setAttribute("aria-label", `${data.windowed ? "Cells" : "Patches"} of ${name}`);
  for (const figure of document.querySelectorAll("[data-stop]")) figure.hidden = figure.dataset.stop !== stop;
  const ofStops = document.querySelectorAll("[data-stop]");
  at("nothing").hidden = !ofStops.length || [...ofStops].some((figure) => !figure.hidden);
  showSummary();
  showBoxes();
  showRoute();
  draw();
}

function chooseImage(index) {
  images[(index + images.length) % images.length].checked = true;
  patch = null;
  show();
}

function pointAt(event) {
  const box = canvas.getBoundingClientRect();
  patch = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  showRoute();
  draw();
}

function leave() {
  patch = null;
  showRoute();
  draw();
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** Arrow keys move over the patches of the picture. */
function movePatch(event) {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  const map = grid();
  const [row, col] = patch ? cellAt(map, patch) : [0, 0];
  const inside = (value, cells) => Math.min(cells - 1, Math.max(0, value));
  patch = centre(map, inside(row + step[0], map.rows), inside(col + step[1], map.cols));
  showRoute();
  speakRoute();
  draw();
}

canvas.addEventListener("pointermove", pointAt);
canvas.addEventListener("pointerdown", pointAt);
canvas.addEventListener("pointerleave", () => document.activeElement === canvas || leave());
canvas.addEventListener("blur", leave);
canvas.addEventListener("focus", () => {
  patch ??= centre(grid(), 0, 0);
  showRoute();
  speakRoute();
  draw();
});
canvas.addEventListener("keydown", movePatch);
at("controls").addEventListener("input", show);
at("controls").addEventListener("submit", (event) => event.preventDefault());
for (const input of images) input.addEventListener("change", () => chooseImage(number()));
for (const link of document.querySelectorAll("[data-image]"))
  link.addEventListener("click", () => chooseImage(Number(link.dataset.image)));
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && document.activeElement === document.body) chooseImage(number() + step);
});
new ResizeObserver(draw).observe(canvas);
at("controls").hidden = false;
at("picture").hidden = false;
show();
